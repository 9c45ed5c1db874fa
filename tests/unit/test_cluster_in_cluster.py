"""The pod's own cluster: its ServiceAccount's token and authority, over TLS, as a pod finds them."""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import pytest
from kubernetes.config import incluster_config

from pytest_vllm_stage.cluster import client, in_cluster
from pytest_vllm_stage.cluster.local import pki
from pytest_vllm_stage.cluster.local.network import Addresses
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.settings import pod
from pytest_vllm_stage.stage import client as stage_client
from pytest_vllm_stage.stage import objects
from tests.unit.made_api import ApiServer, served

SECRET = "very-secret-token"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> pki.Pki:
    return pki.create(tmp_path_factory.mktemp("pki") / "certificates", Addresses(IPv4Network("10.9.0.0/16")))


@pytest.fixture
def api(certificates: pki.Pki) -> Iterator[ApiServer]:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificates.certificate("apiserver"), certificates.key("apiserver"))
    with served(tls=tls) as server:
        yield server


@pytest.fixture
def account(api: ApiServer, certificates: pki.Pki, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The files of the pod's ServiceAccount, and the variables that name the API server."""
    (tmp_path / "token").write_text(SECRET)
    (tmp_path / "ca.crt").write_text(Path(certificates.certificate("ca")).read_text())
    (tmp_path / "namespace").write_text("vllm-stage\n")
    monkeypatch.setattr(pod, "SERVICE_ACCOUNT", tmp_path)
    monkeypatch.setattr(in_cluster, "find_kubectl", lambda: "/bin/kubectl")
    parts = urlsplit(api.url)
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", str(parts.hostname))
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(parts.port))
    return tmp_path


def test_the_pods_account_reaches_its_cluster(api: ApiServer, account: Path) -> None:
    assert pod.runs_in_pod()
    assert pod.read_pod_namespace() == "vllm-stage"
    facts = in_cluster.connect()
    assert (facts.kind, facts.kubernetes_version, facts.owned) == ("in-cluster", "v1.34.4", False)
    assert facts.kubectl_for("ns") == "kubectl -n ns"
    with stage_client.connection(facts, "ns") as kube:
        api.add({"kind": "Pod", "metadata": {"name": "p"}})
        assert [objects.name_of(found) for found in objects.listed(kube, "Pod", "ns")] == ["p"]
    assert api.headers["authorization"] == f"bearer {SECRET}"


def test_a_rotated_token_is_read_again(api: ApiServer, account: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kube = client.connect_in_cluster()
    try:
        (account / "token").write_text("rotated")
        objects.listed(kube, "Pod", "ns")
        assert api.headers["authorization"] == f"bearer {SECRET}", "it was read before it could have expired"

        class Later(datetime.datetime):
            @classmethod
            def now(cls, tz: Any = None) -> Any:
                return datetime.datetime.now(tz) + datetime.timedelta(minutes=2)

        later = SimpleNamespace(datetime=Later, timedelta=datetime.timedelta)
        monkeypatch.setattr(incluster_config, "datetime", later)
        objects.listed(kube, "Pod", "ns")
        assert api.headers["authorization"] == "bearer rotated"
    finally:
        kube.client.close()


def test_a_server_of_another_authority_is_not_trusted(account: Path, tmp_path: Path) -> None:
    other = pki.create(tmp_path / "other", Addresses(IPv4Network("10.8.0.0/16")))
    (account / "ca.crt").write_text(Path(other.certificate("ca")).read_text())
    with pytest.raises(EnvironmentUnusable, match=r"\(in-cluster\).*certificate verify failed") as failed:
        in_cluster.connect()
    assert SECRET not in str(failed.value)


def test_a_pod_without_a_token_is_named(account: Path) -> None:
    (account / "token").unlink()
    assert not pod.runs_in_pod()
    with pytest.raises(ConfigError, match=r"--stage-cluster=in-cluster: .*token file does not exist") as failed:
        in_cluster.connect()
    assert "automountServiceAccountToken" in failed.value.hint

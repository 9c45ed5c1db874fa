"""A kubeconfig's fields about TLS and proxies, against a server with a certificate: as kubectl reads them."""

from __future__ import annotations

import importlib.util
import os
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_vllm_stage.cluster import client, port_forward
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from tests.unit.made_api import ApiServer, kubeconfig, served
from tests.unit.made_certificates import Authority
from tests.unit.socks_server import socks_server

INNER = "api.inner.test"
#: The extra `test` installs it, so that it is there in CI.
needs_pysocks = pytest.mark.skipif(
    importlib.util.find_spec("socks") is None and os.environ.get("CI") != "true", reason="PySocks is not installed"
)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    (tmp_path / "authority").mkdir()
    return Authority(tmp_path / "authority")


@pytest.fixture
def api(authority: Authority) -> Iterator[ApiServer]:
    """An API server whose certificate is for another name than the address at which it is reached."""
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(authority.issue(INNER))
    with served(tls=tls) as server:
        yield server


def write(folder: Path, api: ApiServer, **cluster: Any) -> str:
    """The path of a kubeconfig whose cluster has these fields, ``_`` in the place of ``-``."""
    content = kubeconfig(api.url)
    content["clusters"][0]["cluster"] |= {name.replace("_", "-"): value for name, value in cluster.items()}
    (folder / "kubeconfig").write_text(yaml.safe_dump(content))
    return str(folder / "kubeconfig")


def ask(paths: str) -> str:
    with client.connection(paths, "ctx") as kube:
        return str(kube.version["kubernetes"]["gitVersion"])


def test_tls_server_name_is_what_the_certificate_is_verified_for(
    tmp_path: Path, api: ApiServer, authority: Authority
) -> None:
    known = {"certificate_authority": str(authority.certificate)}
    paths = write(tmp_path, api, **known, tls_server_name=INNER)
    assert ask(paths) == "v1.34.4"
    with client.connection(paths, "ctx") as kube:
        assert port_forward._tls(kube.client)["server_hostname"] == INNER
    with pytest.raises(EnvironmentUnusable, match="certificate verify failed: IP address mismatch"):
        ask(write(tmp_path, api, **known))
    with pytest.raises(EnvironmentUnusable, match=r"certificate verify failed: Hostname mismatch.*other\.test"):
        ask(write(tmp_path, api, **known, tls_server_name="other.test"))


def test_verification_is_off_only_where_the_kubeconfig_says_so(tmp_path: Path, api: ApiServer) -> None:
    assert ask(write(tmp_path, api, insecure_skip_tls_verify=True)) == "v1.34.4"
    for off in ({}, {"insecure_skip_tls_verify": False}):
        with pytest.raises(EnvironmentUnusable, match="certificate verify failed: unable to get local issuer"):
            ask(write(tmp_path, api, **off))


def write_behind_socks(folder: Path, authority: Authority, proxy: str) -> str:
    """A kubeconfig for a server whose name only the proxy knows."""
    content = kubeconfig(f"https://{INNER}:6443")
    content["clusters"][0]["cluster"] |= {"certificate-authority": str(authority.certificate), "proxy-url": proxy}
    (folder / "kubeconfig").write_text(yaml.safe_dump(content))
    return str(folder / "kubeconfig")


@pytest.mark.parametrize(
    ("user", "password", "credentials"), [("", "", ""), ("alice", "p@ss:%", "alice:p%40ss%3A%25@")]
)
def test_requests_go_through_a_socks5_proxy_which_resolves_the_servers_name(
    tmp_path: Path, api: ApiServer, authority: Authority, user: str, password: str, credentials: str
) -> None:
    port = int(api.url.rpartition(":")[2])
    with socks_server({(INNER, 6443): ("127.0.0.1", port)}, user, password) as proxy:
        url = f"socks5://{credentials}127.0.0.1:{proxy.port}"
        assert ask(write_behind_socks(tmp_path, authority, url)) == "v1.34.4"
    assert set(proxy.asked) == {(INNER, 6443)}
    assert "proxy-authorization" not in {name.lower() for name, _ in api.header_lines}


@needs_pysocks
def test_a_socks5_proxy_that_refuses_is_named_without_its_password(
    tmp_path: Path, api: ApiServer, authority: Authority
) -> None:
    with socks_server({}, "alice", "right") as proxy:
        url = f"socks5://alice:wr0ng@127.0.0.1:{proxy.port}"
        with pytest.raises(EnvironmentUnusable) as refused:
            ask(write_behind_socks(tmp_path, authority, url))
    assert "SOCKS5 authentication failed" in str(refused.value)
    assert "wr0ng" not in f"{refused.value} {refused.value.hint}"
    assert api.requests == []


def test_a_socks5_proxy_names_the_package_that_it_needs(
    tmp_path: Path, api: ApiServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kubectl needs none."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(ConfigError) as refused:
        ask(write(tmp_path, api, insecure_skip_tls_verify=True, proxy_url="socks5://127.0.0.1:1"))
    assert "proxy-url: the Kubernetes client needs the package PySocks for a socks5 proxy" in str(refused.value)
    assert refused.value.hint == "pip install PySocks"
    assert api.requests == []

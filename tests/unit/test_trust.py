"""Trust in certificates: the authorities that a cluster publishes, and what a refused certificate's error names."""

from __future__ import annotations

import datetime
import json
import shlex
import ssl
import subprocess
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.cluster import authorities, client
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.certificates import parse_pem, split_pem
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.report import record
from pytest_vllm_stage.run.context import Run, RunIdentity
from pytest_vllm_stage.serving.client import EndpointClient, RequestFailed
from pytest_vllm_stage.serving.target import Target
from pytest_vllm_stage.session import targets
from pytest_vllm_stage.settings.resolver import resolve_settings
from pytest_vllm_stage.stage.facts import StageFacts, TargetFacts
from tests.unit.made_api import ApiServer, served, status
from tests.unit.made_certificates import DAY, Authority
from tests.unit.web_server import Reply, web_server

Object = dict[str, Any]
PROFILE = 'name = "p"\noverlay = "overlay"\nnamespace = "stage"\n[models.full]\ninference_service = "f"\n'
INGRESS = "/api/v1/namespaces/openshift-config-managed/configmaps/default-ingress-cert"
ROOT = "/api/v1/namespaces/stage/configmaps/kube-root-ca.crt"
SERVICES = "/api/v1/namespaces/stage/configmaps/openshift-service-ca.crt"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def serve(authority: Authority) -> Callable[..., Any]:
    """A server on loopback whose certificate is for the given hosts."""

    def start(*hosts: str, **validity: Any) -> Any:
        return web_server(lambda _request: Reply(200), authority.issue(*hosts, **validity))

    return start


def refusal(url: str, ca_file: Path | None) -> RequestFailed:
    trusted = str(ca_file) if ca_file else None
    with EndpointClient(Target("full", "m", url, ca_file=trusted)) as endpoint, pytest.raises(RequestFailed) as failed:
        endpoint.health()
    assert f"GET /health at {url} was not sent: " in failed.value.message
    host_and_port = url.removeprefix("https://")
    assert f"openssl s_client -connect {host_and_port} -servername 127.0.0.1" in failed.value.hint
    return failed.value


def test_unknown_authority_is_named_with_the_option_that_trusts_it(serve: Any) -> None:
    with serve("127.0.0.1") as server:
        failed = refusal(server.url, None)
    assert "signed by 'private-ca', an authority that is not trusted (unable to get local issuer" in failed.message
    assert "--stage-ca-file=FILE" in failed.hint
    assert "--stage-ca-file=cluster" in failed.hint


def test_authority_that_a_file_lacks_is_named_with_the_file(serve: Any, tmp_path: Path) -> None:
    other = Authority(tmp_path).certificate
    with serve("127.0.0.1") as server:
        failed = refusal(server.url, other)
    assert "an authority that is not trusted" in failed.message
    assert failed.hint.startswith(f"add its authority to those of {other} (--stage-ca-file); ")


def test_expired_certificate_is_named_with_its_date(serve: Any, authority: Authority) -> None:
    with serve("127.0.0.1", since=-5 * DAY, until=-3 * DAY) as server:
        failed = refusal(server.url, authority.certificate)
    expired = (datetime.datetime.now(datetime.UTC) - 3 * DAY).strftime("%Y-%m-%dT")
    assert f"the server's certificate has expired at {expired}" in failed.message
    assert failed.message.endswith("Z, 3 days ago")
    assert failed.hint.startswith("renew it; ")


def test_certificate_that_is_not_valid_yet_is_compared_with_the_clock(serve: Any, authority: Authority) -> None:
    with serve("127.0.0.1", since=1 * DAY, until=2 * DAY) as server:
        failed = refusal(server.url, authority.certificate)
    assert "the server's certificate is not valid yet before " in failed.message
    assert "this machine's clock is " in failed.message


def test_certificate_of_another_host_is_named_with_its_hosts(serve: Any, authority: Authority) -> None:
    with serve("m.apps.example.org", "*.apps.example.org", "192.0.2.7") as server:
        failed = refusal(server.url, authority.certificate)
    assert "for another host: expected 127.0.0.1, got m.apps.example.org, *.apps.example.org, 192.0.2.7" in (
        failed.message
    )


def chained(root: Authority, folder: Path, *, sent: bool = True, **validity: Any) -> Path:
    """A certificate for this machine by an authority that the root has signed, with or without the authority's own."""
    folder.mkdir()
    between = root.issue_authority(folder, "issuing-ca", **validity)
    pem = between.issue("127.0.0.1")
    if sent:
        pem.write_text(pem.read_text() + between.certificate.read_text())
    return pem


def test_chain_without_its_intermediate_certificate_names_what_the_server_must_send(
    authority: Authority, tmp_path: Path
) -> None:
    pem = chained(authority, tmp_path / "sent")
    with (
        web_server(lambda _request: Reply(200), pem) as server,
        EndpointClient(Target("full", "m", server.url, ca_file=str(authority.certificate))) as endpoint,
    ):
        endpoint.health()
    pem = chained(authority, tmp_path / "lacking", sent=False)
    with web_server(lambda _request: Reply(200), pem) as server:
        failed = refusal(server.url, authority.certificate)
    assert "signed by 'issuing-ca', an authority that is not trusted" in failed.message
    assert "where 'issuing-ca' is not a root, the server must send its certificate, too; look at it: " in failed.hint


def test_expired_intermediate_certificate_is_not_taken_for_the_servers_own(
    authority: Authority, tmp_path: Path
) -> None:
    pem = chained(authority, tmp_path / "expired", since=-5 * DAY, until=-3 * DAY)
    with web_server(lambda _request: Reply(200), pem) as server:
        failed = refusal(server.url, authority.certificate)
    assert failed.message.endswith("was not sent: a certificate of the server's chain has expired")


def test_server_with_old_tls_alone_is_named(authority: Authority) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(authority.issue("127.0.0.1"))
    old.set_ciphers("ALL:@SECLEVEL=0")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # which is what the server is
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with web_server(lambda _request: Reply(200), old) as server:
        failed = refusal(server.url, authority.certificate)
    assert "the server offers no version of TLS that is accepted here: expected TLS 1.2 or later" in failed.message


def test_server_without_tls_is_named() -> None:
    with web_server(lambda _request: Reply(200)) as server:
        url = server.url.replace("http:", "https:")
        with EndpointClient(Target("full", "m", url)) as endpoint, pytest.raises(RequestFailed) as failed:
            endpoint.health()
    assert f"the server does not speak TLS at port {server.url.rpartition(':')[2]}" in failed.value.message
    assert failed.value.hint == f"does it speak HTTP? curl -i {server.url}"


def test_shown_openssl_command_prints_the_certificate(serve: Any, authority: Authority) -> None:
    with serve("other.example.org") as server:
        command = refusal(server.url, authority.certificate).hint.partition("look at it: ")[2]
        done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False, timeout=60)
    assert "DNS:other.example.org" in done.stdout, done.stderr
    assert shlex.split(command)[0] == "openssl"


def test_server_with_a_trusted_certificate_answers(serve: Any, authority: Authority) -> None:
    with (
        serve("127.0.0.1") as server,
        EndpointClient(Target("full", "m", server.url, ca_file=str(authority.certificate))) as endpoint,
    ):
        endpoint.health()


def test_facts_of_a_certificate_are_read(authority: Authority) -> None:
    found = parse_pem(authority.issue("a.example.org", "10.0.0.1").read_bytes())
    assert found is not None
    assert (found.subject, found.issuer, found.hosts) == ("a.example.org", "private-ca", ("a.example.org", "10.0.0.1"))
    assert found.not_after - found.not_before == 2 * DAY


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nMAMCAQA=\n-----END CERTIFICATE-----"])
def test_text_without_a_certificate_has_no_facts(pem: bytes) -> None:
    assert parse_pem(pem) is None


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with served(ApiServer()) as server:
        yield server


def publish(api: ApiServer, path: str, key: str, text: str) -> None:
    metadata = {"name": path.rpartition("/")[2]}
    api.objects[path] = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": metadata, "data": {key: text}}


def make_run(tmp_path: Path, ca_file: str = "cluster") -> Run:
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text("")
    profile = tmp_path / "p.toml"
    profile.write_text(PROFILE)
    cli = {"profile": str(profile), "ca_file": ca_file}
    config = resolve_settings(cli.get, {}, lambda _: None, tmp_path)
    return Run(RunIdentity("20260101-000000-0000", str(tmp_path / "run"), 1), lambda: config, lambda _: None)


def trusted_by(run: Run, facts: ClusterFacts) -> set[bytes]:
    path = authorities.find_ca_file(run, facts)
    assert path is not None
    ssl.create_default_context(cafile=path)
    return set(split_pem(Path(path).read_bytes())) - set(authorities.read_system_authorities())


@pytest.mark.parametrize(
    ("path", "key", "source"),
    [
        (INGRESS, "ca-bundle.crt", "configmap openshift-config-managed/default-ingress-cert (key ca-bundle.crt)"),
        (ROOT, "ca.crt", "configmap stage/kube-root-ca.crt (key ca.crt)"),
    ],
)
def test_authorities_of_the_cluster_are_added_to_the_systems(
    api: ApiServer, authority: Authority, tmp_path: Path, path: str, key: str, source: str
) -> None:
    publish(api, path, key, authority.certificate.read_text())
    run = make_run(tmp_path)
    assert trusted_by(run, api.facts(tmp_path)) == set(split_pem(authority.certificate.read_bytes()))
    written = record.build(run.journal_path, run.config)["authorities"]
    assert written["sources"] == [source]
    asked = len(api.requests)
    authorities.find_ca_file(run, api.facts(tmp_path))
    assert len(api.requests) == asked, "read once per run"


def test_system_authorities_stay_trusted(api: ApiServer, authority: Authority, tmp_path: Path) -> None:
    publish(api, ROOT, "ca.crt", authority.certificate.read_text())
    path = authorities.find_ca_file(make_run(tmp_path), api.facts(tmp_path))
    system = authorities.read_system_authorities()
    assert path is not None
    assert set(system) < set(split_pem(Path(path).read_bytes()))
    assert len(system) == len({*system})


def test_serving_certificates_of_openshift_are_trusted_too(api: ApiServer, tmp_path: Path) -> None:
    pems = {}
    for path, key in ((INGRESS, "ca-bundle.crt"), (SERVICES, "service-ca.crt")):
        folder = tmp_path / key
        folder.mkdir()
        pems[path] = Authority(folder).certificate.read_bytes()
        publish(api, path, key, pems[path].decode())
    assert trusted_by(make_run(tmp_path), api.facts(tmp_path)) == {
        block for pem in pems.values() for block in split_pem(pem)
    }


def test_targets_are_verified_against_the_clusters_authorities(
    api: ApiServer, authority: Authority, tmp_path: Path, serve: Any
) -> None:
    publish(api, INGRESS, "ca-bundle.crt", authority.certificate.read_text())
    with serve("127.0.0.1") as server:
        stage = StageFacts("stage", "", False, (TargetFacts("full", "f", server.url),))
        found = targets.find_stage_targets(make_run(tmp_path), stage, lambda: api.facts(tmp_path))
        with EndpointClient(found["full"]) as endpoint:
            endpoint.health()


def test_cluster_without_readable_authorities_names_each_place_and_right(api: ApiServer, tmp_path: Path) -> None:
    forbidden = status(403, 'configmaps "x" is forbidden: User "al" cannot get resource "configmaps"')
    api.answers[f"GET {INGRESS}"] = (403, forbidden)
    publish(api, ROOT, "ca.crt", "no certificate")
    with pytest.raises(EnvironmentUnusable) as failed:
        authorities.find_ca_file(make_run(tmp_path), api.facts(tmp_path))
    assert "missing right: get configmaps in namespace openshift-config-managed" in failed.value.message
    assert "configmap stage/kube-root-ca.crt (key ca.crt): holds no certificate" in failed.value.message
    path = fixtures_dir() / "access" / "trust" / "authorities.yaml"
    assert str(path) in failed.value.hint
    assert path.is_file()


def test_api_server_that_does_not_answer_is_not_a_missing_authority(api: ApiServer, tmp_path: Path) -> None:
    facts = api.facts(tmp_path)
    api.answers[f"GET {INGRESS}"] = (503, status(503, "starting"))
    with client.connection(facts.kubeconfig, facts.context) as kube, pytest.raises(EnvironmentUnusable, match="503"):
        authorities.collect_authorities(kube, "stage")


def test_file_is_trusted_without_asking_the_cluster(api: ApiServer, authority: Authority, tmp_path: Path) -> None:
    run = make_run(tmp_path, str(authority.certificate))
    assert authorities.find_ca_file(run, api.facts(tmp_path)) == str(authority.certificate)
    assert api.requests == []


def test_endpoint_without_a_cluster_has_no_authorities_of_it(tmp_path: Path) -> None:
    cli = {"ca_file": "cluster", "endpoint": "https://h"}
    with pytest.raises(ConfigError, match=r"--stage-ca-file is cluster, and --stage-endpoint validates a server"):
        resolve_settings(cli.get, {}, lambda _: None, tmp_path)


def test_facts_of_authorities_survive_the_journal(api: ApiServer, authority: Authority, tmp_path: Path) -> None:
    publish(api, ROOT, "ca.crt", authority.certificate.read_text())
    run = make_run(tmp_path)
    authorities.find_ca_file(run, api.facts(tmp_path))
    written = record.build(run.journal_path, run.config)
    assert "does not exist" in json.dumps(written["authorities"]["refused"])
    assert written["settings"]["ca_file"] == {"value": "cluster", "source": "--stage-ca-file"}

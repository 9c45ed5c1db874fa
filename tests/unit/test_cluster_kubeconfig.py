"""Kubeconfig files: merged as kubectl merges them, and every mistake named by file and entry, never by value."""

from __future__ import annotations

import base64
import os
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_vllm_stage.cluster import client, kubeconfig, kubeconfig_files, port_forward
from pytest_vllm_stage.cluster.api_errors import RequestRejected
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.stage import objects
from tests.unit.made_api import kubeconfig as made_kubeconfig
from tests.unit.made_api import served

SECRET = "very-secret-token"
CONTEXTS = """# contexts alone, as teams hand them out
contexts:
  - name: stage
    context: {cluster: stage, user: operator, namespace: vllm-stage}
current-context: stage
"""
CLUSTERS = f"""
clusters:
  - name: stage
    cluster: {{server: "https://127.0.0.1:1"}}
users:
  - name: operator
    user: {{token: {SECRET}}}
"""


def write(folder: Path, name: str, content: Any) -> Path:
    path = folder / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return path


def joined(*paths: Path) -> str:
    return os.pathsep.join(map(str, paths))


@pytest.fixture
def kubectl(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubectl that would blame localhost:8080."""
    program = write(tmp_path, "bin/kubectl", "#!/bin/sh\necho localhost:8080 >&2; exit 1\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(program.parent))


def test_split_files_are_merged_and_their_server_is_named(
    tmp_path: Path, kubectl: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = joined(write(tmp_path, "contexts.yaml", CONTEXTS), write(tmp_path, "clusters.yaml", CLUSTERS))
    monkeypatch.setenv("KUBECONFIG", paths)
    with pytest.raises(EnvironmentUnusable, match=r"https://127\.0\.0\.1:1 \(context stage\).*refused") as failed:
        kubeconfig.connect("stage")
    assert "8080" not in str(failed.value)
    assert SECRET not in str(failed.value)


def test_facts_carry_every_file_and_kubectl_gets_them_too(
    tmp_path: Path, kubectl: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served() as api:
        first = write(tmp_path, "a", {"contexts": made_kubeconfig(api.url)["contexts"]})
        second = write(tmp_path, "b", {**made_kubeconfig(api.url), "contexts": None})
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("KUBECONFIG", f"a{os.pathsep}{os.pathsep}b{os.pathsep}a")
        facts = kubeconfig.connect("ctx")
    assert facts.kubeconfig == joined(first, second)
    assert facts.kubernetes_version == "v1.34.4"
    assert facts.kubectl_for("ns") == f"KUBECONFIG={joined(first, second)} kubectl --context ctx -n ns"
    one = ClusterFacts("local", "kc", "ctx", "v1", "kubectl", True, True)
    assert one.kubectl_for("ns") == "kubectl --kubeconfig kc --context ctx -n ns"


def test_the_first_file_with_a_name_wins_and_absent_files_are_skipped(tmp_path: Path) -> None:
    first = write(tmp_path, "a", made_kubeconfig("https://first:1"))
    second = write(tmp_path, "b", made_kubeconfig("https://second:1"))
    empty = write(tmp_path, "c", "")
    found = kubeconfig_files.read(joined(tmp_path / "absent", empty, first, second))
    cluster, _ = found.entries_of("ctx")
    assert (cluster.value["server"], cluster.path) == ("https://first:1", first)


def test_the_users_own_file_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert kubeconfig_files.configured_paths() == str(tmp_path / ".kube" / "config")


ONE_CONTEXT = {"contexts": [{"name": "ctx", "context": {"cluster": "c", "user": "u"}}]}
A_CLUSTER = {"clusters": [{"name": "c", "cluster": {"server": "https://h:1"}}]}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "no such context in .*FILE; valid: none"),
        ({**ONE_CONTEXT, "contexts": [{"name": "b", "context": {}}]}, "no such context in .*FILE; valid: b"),
        (
            {"contexts": [{"name": name, "context": {}} for name in ("prod", "ctx-2")]},
            r"no such context in .*FILE \(did you mean ctx-2\?\); valid: prod, ctx-2",
        ),
        (ONE_CONTEXT, r"FILE: context ctx names cluster c, which no file defines \(.*FILE\); valid: none"),
        (
            {**ONE_CONTEXT, **A_CLUSTER},
            r"FILE: context ctx names user u, which no file defines \(.*FILE\); valid: none",
        ),
        ({"contexts": [{"name": "ctx", "context": {}}]}, "FILE: context ctx names no cluster"),
        ({"contexts": [{"name": "ctx"}]}, "FILE: context ctx names no cluster"),
        ({**ONE_CONTEXT, "clusters": [{"name": "c", "cluster": {}}]}, "FILE: cluster c names no server"),
        (
            {**ONE_CONTEXT, "clusters": [{"name": "c", "cluster": {"server": "h:6443"}}]},
            "expected an http or https URL",
        ),
        ({"clusters": [A_CLUSTER["clusters"][0]] * 2}, "FILE: clusters: c is defined twice"),
        ({"users": {"name": "u"}}, "FILE: users: expected a list, got dict"),
        ({"users": [{"user": {"token": SECRET}}]}, r"FILE: users\[0\]: expected a mapping with a name"),
        ({"users": [{"name": "u", "user": SECRET}]}, r"FILE: users\[0\] \(u\): user: expected a mapping"),
        ([SECRET], "FILE: expected a mapping, got list"),
        (f"users:\n- name: u\n  user: {{token: {SECRET}\n", "FILE:4 is not YAML: "),
        (f"a: {SECRET}é".encode("latin-1"), r"FILE:1: not valid UTF-8 \(Latin-1 or Windows-1252\?\): save it as UTF-8"),
    ],
)
def test_a_wrong_file_is_named_with_its_entry(tmp_path: Path, content: Any, message: str) -> None:
    path = write(tmp_path, "FILE", content)
    with pytest.raises(ConfigError, match=message) as failed:
        kubeconfig_files.read(str(path)).entries_of("ctx")
    assert SECRET not in f"{failed.value}"


def test_absent_file_is_reported_as_absent(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no such context in /nowhere/config \(does not exist\)"):
        kubeconfig_files.read("/nowhere/config").entries_of("ctx")


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"kubeconfig {tmp_path} cannot be read: Is a directory"):
        kubeconfig_files.read(str(tmp_path))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_byte_order_marks_are_read(tmp_path: Path, encoding: str) -> None:
    path = write(tmp_path, "kc", yaml.safe_dump(made_kubeconfig("https://h:1")).encode(encoding))
    assert kubeconfig_files.read(str(path)).entries_of("ctx")[0].value["server"] == "https://h:1"


def loaded(*paths: Path) -> Any:
    from kubernetes.client import Configuration

    configuration = Configuration()
    kubeconfig_files.load(joined(*paths), "ctx", configuration, str(paths[0].parent / "inline"))
    return configuration


def test_relative_paths_are_relative_to_their_own_file(tmp_path: Path) -> None:
    for name in ("one/ca.pem", "two/token", "two/cert.pem", "two/key.pem"):
        write(tmp_path, name, f"{name}\n")
    contexts = write(tmp_path, "contexts", ONE_CONTEXT)
    clusters = {"clusters": [{"name": "c", "cluster": {"server": "https://h:1", "certificate-authority": "ca.pem"}}]}
    user = {"tokenFile": "token", "client-certificate": "cert.pem", "client-key": "key.pem"}
    one = write(tmp_path, "one/kc", clusters)
    two = write(tmp_path, "two/kc", {"users": [{"name": "u", "user": user}]})
    found = loaded(contexts, one, two)
    assert found.ssl_ca_cert == str(tmp_path / "one" / "ca.pem")
    assert (found.cert_file, found.key_file) == (str(tmp_path / "two/cert.pem"), str(tmp_path / "two/key.pem"))
    assert found.api_key["BearerToken"] == "Bearer two/token", "the line end of the file is not part of the token"


@pytest.mark.parametrize(
    ("user", "message"),
    [
        ({"tokenFile": "absent"}, "tokenFile .*/absent cannot be read: No such file"),
        ({"client-certificate": "absent.pem", "client-key": "absent.pem"}, "File does not exist: .*/absent.pem"),
        ({"client-certificate-data": "eA==", "client-key-data": "eA=="}, "loaded: client-certificate and client-key:"),
    ],
)
def test_credentials_that_cannot_be_loaded_are_named_without_their_value(
    tmp_path: Path, user: dict[str, str], message: str
) -> None:
    path = write(tmp_path, "kc", made_kubeconfig("https://127.0.0.1:1", **user))
    with pytest.raises(ConfigError, match=message) as failed:
        client.connect(str(path), "ctx")
    assert SECRET not in str(failed.value)


def test_a_proxy_of_the_kubeconfig_is_used(tmp_path: Path) -> None:
    made = made_kubeconfig("http://cluster.invalid:6443")
    with served() as proxy:
        made["clusters"][0]["cluster"]["proxy-url"] = proxy.url
        path = write(tmp_path, "kc", made)
        with client.connection(str(path), "ctx", uses_env_proxy=False):
            assert proxy.requests[0] == "GET http://cluster.invalid:6443/version"


def test_credentials_of_a_proxy_are_sent_to_it(tmp_path: Path) -> None:
    made = made_kubeconfig("https://cluster.invalid:6443")
    made["clusters"][0]["cluster"]["proxy-url"] = "http://user:p%40ss@127.0.0.1:1"
    found = loaded(write(tmp_path, "kc", made))
    assert found.proxy_headers == {"proxy-authorization": f"Basic {base64.b64encode(b'user:p@ss').decode()}"}


def test_user_that_acts_as_another_sends_each_group(tmp_path: Path) -> None:
    acts = {"as": "system:serviceaccount:ci:run", "as-uid": "7", "as-groups": ["a", "b"], "as-user-extra": {"k": ["v"]}}
    with served() as api:
        path = write(tmp_path, "kc", made_kubeconfig(api.url, token=SECRET, **acts))
        with client.connection(str(path), "ctx") as kube:
            objects.listed(kube, "Pod", "ns")
            expected = [
                ("Impersonate-User", "system:serviceaccount:ci:run"), ("Impersonate-Uid", "7"),
                ("Impersonate-Group", "a"), ("Impersonate-Group", "b"), ("Impersonate-Extra-k", "v"),
            ]  # fmt: skip
            assert [line for line in api.header_lines if line[0].startswith("Impersonate-")] == expected
            assert port_forward._options(kube.client)["header"][1:] == [f"{name}: {value}" for name, value in expected]


def test_no_port_forward_goes_through_a_socks_proxy(tmp_path: Path) -> None:
    with served() as api, client.connection(str(write(tmp_path, "kc", made_kubeconfig(api.url))), "ctx") as kube:
        kube.client.configuration.proxy = "socks5h://127.0.0.1:1080"
        with socket.socket() as local, pytest.raises(EnvironmentUnusable, match="port-forward through a SOCKS proxy"):
            port_forward.open_tunnel(kube.client, "ns", "p", 80, local, lambda *_: None)


def test_server_below_a_path_is_asked_there(tmp_path: Path) -> None:
    """As behind a proxy of several clusters: https://HOST/k8s/clusters/ID."""
    with served() as api, pytest.raises(RequestRejected):
        client.connect(str(write(tmp_path, "kc", made_kubeconfig(f"{api.url}/k8s/clusters/c-1"))), "ctx")
    assert api.requests[0] == "GET /k8s/clusters/c-1/version"


def test_inline_keys_leave_no_file_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import tempfile

    key, certificate = tmp_path / "k.pem", tmp_path / "c.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=u", "-days", "1"]
    subprocess.run([*command, "-keyout", str(key), "-out", str(certificate)], check=True, capture_output=True)
    inline = {
        "client-certificate-data": base64.b64encode(certificate.read_bytes()).decode(),
        "client-key-data": base64.b64encode(key.read_bytes()).decode(),
    }
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    path = write(tmp_path, "kc", made_kubeconfig("https://127.0.0.1:1", **inline))
    opened = client._open_api_client(str(path), "ctx", uses_env_proxy=False)
    assert list(temporary.rglob("*")) == []
    opened.close()

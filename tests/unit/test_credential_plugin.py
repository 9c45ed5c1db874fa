"""Credentials of a kubeconfig that a program or a file gives: by kubectl's rules, and renewed while a run goes on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_vllm_stage.cluster import client, credential_plugin
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable, StageError
from pytest_vllm_stage.stage import objects
from tests.unit import kubeconfig_cases
from tests.unit.kubeconfig_cases import REFUSED
from tests.unit.made_api import kubeconfig as made_kubeconfig
from tests.unit.made_api import served

SECRET = "very-secret-token"
PAST, FUTURE = "2020-01-01T00:00:00Z", "2999-01-01T00:00:00.123456789Z"
#: Answers the token of its folder's file, and keeps its input.
PLUGIN = """#!/bin/sh
[ "$1" != --fail ] || { echo please run: cloud login >&2; exit 1; }
cd "$(dirname "$0")" && echo "$KUBERNETES_EXEC_INFO" >> runs
printf '{"apiVersion": "%s", "kind": "ExecCredential", "status": {"token": "%s", "expirationTimestamp": "%s"}}' \\
    "$VERSION" "$(cat answer)" "$EXPIRES"
"""


def with_plugin(folder: Path, url: str, *arguments: str, expires: str = "", **fields: Any) -> Path:
    program = folder / "plugin"
    program.write_text(PLUGIN)
    program.chmod(0o755)
    (folder / "answer").write_text(SECRET)
    version = fields.pop("apiVersion", "client.authentication.k8s.io/v1")
    command = {
        "apiVersion": version,
        "interactiveMode": "IfAvailable",
        "command": "./plugin",
        "args": list(arguments),
        "env": [{"name": "EXPIRES", "value": expires}, {"name": "VERSION", "value": version}],
        **fields,
    }
    path = folder / "kc"
    path.write_text(yaml.safe_dump(made_kubeconfig(url, exec=command)))
    return path


def runs_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runs").read_text().splitlines()]


@pytest.mark.parametrize("name", REFUSED)
def test_what_kubectl_refuses_is_refused_by_field_and_without_its_value(tmp_path: Path, name: str) -> None:
    case = REFUSED[name]
    (tmp_path / "kc").write_text(yaml.safe_dump(kubeconfig_cases.made_kubeconfig(case)))
    with pytest.raises((ConfigError, EnvironmentUnusable), match=case.ours) as failed:
        client.connect(str(tmp_path / "kc"), "ctx")
    assert str(tmp_path / "kc") in str(failed.value)


@pytest.mark.parametrize("version", ["v1", "v1beta1"])
def test_plugin_gives_the_token_and_hears_of_no_terminal(tmp_path: Path, version: str) -> None:
    api_version = f"client.authentication.k8s.io/{version}"
    with served() as api, client.connection(str(with_plugin(tmp_path, api.url, apiVersion=api_version)), "ctx"):
        assert api.headers["authorization"] == f"Bearer {SECRET}"
    (info,) = runs_of(tmp_path)
    assert info == {"apiVersion": api_version, "kind": "ExecCredential", "spec": {"interactive": False}}


def test_plugin_hears_of_the_cluster_where_it_asks(tmp_path: Path) -> None:
    with served() as api:
        path = with_plugin(tmp_path, api.url, provideClusterInfo=True)
        made = yaml.safe_load(path.read_text())
        made["clusters"][0]["cluster"] |= {
            "tls-server-name": "other",
            "certificate-authority": "answer",
            "extensions": [{"name": "client.authentication.k8s.io/exec", "extension": {"audience": "a"}}],
        }
        path.write_text(yaml.safe_dump(made))
        with client.connection(str(path), "ctx"):
            (info,) = runs_of(tmp_path)
    assert info["spec"]["cluster"] == {
        "server": api.url,
        "tls-server-name": "other",
        "certificate-authority-data": "dmVyeS1zZWNyZXQtdG9rZW4=",
        "config": {"audience": "a"},
    }


def test_failing_plugin_is_an_error_with_its_reason(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnusable, match="exit code 1: please run: cloud login"):
        client.connect(str(with_plugin(tmp_path, "http://127.0.0.1:1", "--fail")), "ctx")


def test_plugin_that_does_not_end_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credential_plugin, "TIMEOUT_S", 0.2)
    path = with_plugin(tmp_path, "http://127.0.0.1:1", "600", command="sleep")
    with pytest.raises(EnvironmentUnusable, match=r"sleep did not end within 0\.2 s; it may wait for a login"):
        client.connect(str(path), "ctx")


@pytest.mark.parametrize(("expires", "runs"), [(PAST, 3), (FUTURE, 1), ("", 1)])
def test_plugin_runs_again_when_its_token_has_expired(tmp_path: Path, expires: str, runs: int) -> None:
    with served() as api, client.connection(str(with_plugin(tmp_path, api.url, expires=expires)), "ctx") as kube:
        del api.requests[:]
        (tmp_path / "runs").write_text("")
        for _ in range(3):
            objects.listed(kube, "Pod", "ns")
        assert len(runs_of(tmp_path)) == (runs if expires == PAST else 0)


def test_refused_token_is_renewed_once_in_mid_run(tmp_path: Path) -> None:
    with served() as api, client.connection(str(with_plugin(tmp_path, api.url)), "ctx") as kube:
        api.tokens = {"renewed"}
        (tmp_path / "answer").write_text("renewed")
        objects.listed(kube, "Pod", "ns")
        assert api.headers["authorization"] == "Bearer renewed"
        api.tokens = {"nothing"}
        del api.requests[:]
        with pytest.raises(EnvironmentUnusable, match="rejects the credentials"):
            objects.listed(kube, "Pod", "ns")
        assert len(api.requests) == 1, "the plugin gave the same token again: asking twice is of no use"


def test_plugin_that_fails_in_mid_run_is_named(tmp_path: Path) -> None:
    with served() as api, client.connection(str(with_plugin(tmp_path, api.url, expires=PAST)), "ctx") as kube:
        (tmp_path / "plugin").write_text("#!/bin/sh\necho session expired >&2; exit 1\n")
        with pytest.raises(StageError, match=r"credential plugin failed: .*exit code 1: session expired"):
            objects.listed(kube, "Pod", "ns")


def test_rotated_token_file_is_read_again(tmp_path: Path) -> None:
    (tmp_path / "token").write_text(f"{SECRET}\n")
    (tmp_path / "kc").write_text(yaml.safe_dump(made_kubeconfig("PLACE", tokenFile="token")))
    with served() as api:
        (tmp_path / "kc").write_text((tmp_path / "kc").read_text().replace("PLACE", api.url))
        with client.connection(str(tmp_path / "kc"), "ctx") as kube:
            for content, sent in (("rotated\n", "rotated"), ("", "rotated"), ("again", "again")):
                (tmp_path / "token").write_text(content)
                objects.listed(kube, "Pod", "ns")
                assert api.headers["authorization"] == f"Bearer {sent}"


def test_empty_token_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "token").touch()
    (tmp_path / "kc").write_text(yaml.safe_dump(made_kubeconfig("http://127.0.0.1:1", tokenFile="token")))
    with pytest.raises(ConfigError, match=r"tokenFile .*/token is empty"):
        client.connect(str(tmp_path / "kc"), "ctx")

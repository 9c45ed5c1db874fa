"""Kubeconfig files as kubectl itself reads them: what it refuses and merges, a run refuses and merges too."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_vllm_stage.cluster import kubeconfig_files
from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.core.journal import Journal
from tests.unit.kubeconfig_cases import REFUSED, made_kubeconfig

pytestmark = pytest.mark.real

Kubectl = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def kubectl() -> Kubectl:
    program = str(components.ensure(Journal(), ["kubernetes"])["kubectl"])

    def run(paths: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "KUBECONFIG": paths}
        command = [program, "--request-timeout=20s", *arguments]
        return subprocess.run(
            command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=60
        )

    return run


@pytest.mark.parametrize("name", REFUSED)
def test_kubectl_refuses_the_mistake_that_a_run_refuses(tmp_path: Path, kubectl: Kubectl, name: str) -> None:
    (tmp_path / "kc").write_text(yaml.safe_dump(made_kubeconfig(REFUSED[name])))
    done = kubectl(str(tmp_path / "kc"), "--context=ctx", "get", "--raw=/version")
    assert done.returncode != 0
    assert REFUSED[name].kubectls in done.stderr


def entries(section: str, field: str, **values: dict[str, Any]) -> dict[str, Any]:
    return {section: [{"name": name, field: value} for name, value in values.items()]}


def test_files_are_merged_as_kubectl_merges_them(tmp_path: Path, kubectl: Kubectl) -> None:
    first = {
        **entries("contexts", "context", ctx={"cluster": "c", "user": "u"}),
        **entries("clusters", "cluster", c={"server": "https://first:1"}),
    }
    second = {
        **entries("contexts", "context", ctx={"cluster": "d", "user": "v"}, other={"cluster": "d", "user": "v"}),
        **entries("clusters", "cluster", c={"server": "https://second:1", "tls-server-name": "x"}),
        **entries("users", "user", u={"client-certificate": "c.pem", "client-key": "k.pem"}),
    }
    for folder, content in (("a", first), ("b", second)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "kc").write_text(yaml.safe_dump(content))
    (tmp_path / "empty").touch()
    paths = os.pathsep.join(str(tmp_path / name) for name in ("absent", "empty", "a/kc", "b/kc"))
    shown = json.loads(kubectl(paths, "config", "view", "--raw", "--output=json").stdout)
    found = kubeconfig_files.read(paths)
    for section, field, ours in (
        ("contexts", "context", found.contexts),
        ("clusters", "cluster", found.clusters),
        ("users", "user", found.users),
    ):
        expected = {entry["name"]: entry[field] for entry in shown[section]}
        assert {name: entry.value for name, entry in ours.items()} == expected

"""When a program of the local cluster is rebuilt, and the message of a failed build."""

from __future__ import annotations

import dataclasses
import os
import stat
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.local import components, gotool
from pytest_vllm_stage.cluster.local.components import COMPONENTS, Component
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal, read_events

#: Stands in for ``go``: it notes its arguments and writes what ``-o`` names.
GO = """#!/bin/sh
[ "$1" = version ] && echo "go version go1.99.0 linux/amd64" && exit 0
echo "$@" >> "$(dirname "$0")/calls"
[ -e "$(dirname "$0")/broken" ] && echo "no such package" >&2 && exit 1
while [ "$1" != -o ]; do shift; done
echo built > "$2"
"""


@pytest.fixture
def modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A module of our own, a cache of our own, and a ``go`` that builds in no time."""
    source = tmp_path / "modules" / "tool"
    source.mkdir(parents=True)
    (source / "go.mod").write_text("module local/tool\n\ngo 1.24.0\n\nrequire (\n\texample.org/tool v1.2.3\n)\n")
    (source / "go.sum").write_text("sums\n")
    program = tmp_path / "bin" / "go"
    program.parent.mkdir()
    program.write_text(GO)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setattr(components, "MODULES", source.parent)
    monkeypatch.setattr(components, "COMPONENTS", (TOOL,))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(tmp_path / "cache"))
    return source


TOOL = Component("tool", "example.org/tool", {"tool": "example.org/tool/cmd"}, ("main.version={version}",))


def calls(modules: Path) -> list[str]:
    log = modules.parents[1] / "bin" / "calls"
    return log.read_text().splitlines() if log.exists() else []


def test_it_is_built_once(modules: Path, tmp_path: Path) -> None:
    journal = Journal(tmp_path / "journal")
    first = components.ensure(journal)
    assert first["tool"].read_text() == "built\n"
    assert first["tool"].is_relative_to(tmp_path / "cache" / "components")
    assert components.ensure(journal) == first
    assert len(calls(modules)) == 1
    assert [event["name"] for event in read_events(tmp_path / "journal")] == ["build tool v1.2.3"]


def test_go_is_not_needed_when_all_is_built(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = components.ensure(Journal())
    monkeypatch.setattr(gotool, "find", lambda *_: pytest.fail("go was looked for"))
    assert components.ensure(Journal()) == built


def test_linker_gets_the_version_and_go_sum_is_binding(modules: Path) -> None:
    components.ensure(Journal())
    (call,) = calls(modules)
    assert "-X main.version=v1.2.3" in call
    assert "-mod=readonly" in call


@pytest.mark.parametrize("name", ["go.mod", "go.sum"])
def test_changed_pin_builds_a_new_component_next_to_the_old(modules: Path, name: str) -> None:
    before = components.ensure(Journal())["tool"]
    with (modules / name).open("a") as file:
        file.write("// changed\n")
    after = components.ensure(Journal())["tool"]
    assert before != after
    assert before.exists()
    assert len(calls(modules)) == 2


def test_changed_flags_rebuild(modules: Path) -> None:
    changed = dataclasses.replace(TOOL, variables=("main.release={version}",))
    assert changed.fingerprint != TOOL.fingerprint
    assert dataclasses.replace(TOOL).fingerprint == TOOL.fingerprint


def test_a_failed_build_shows_its_last_lines_and_leaves_no_component(modules: Path, tmp_path: Path) -> None:
    (tmp_path / "bin" / "broken").touch()
    with pytest.raises(EnvironmentUnusable, match="build of tool failed") as caught:
        components.ensure(Journal())
    assert "no such package" in str(caught.value)
    log = Path(str(caught.value).split("log: ")[1].splitlines()[0])
    assert "no such package" in log.read_text()
    assert not TOOL.folder.exists()
    (tmp_path / "bin" / "broken").unlink()
    assert components.ensure(Journal())["tool"].exists()
    assert list(TOOL.folder.parent.glob(".building-*")) == []


def test_leftovers_of_a_killed_build_are_removed(modules: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "cache" / "components" / ".building-tool-0123"
    unfinished.mkdir(parents=True)
    components.ensure(Journal())
    assert not unfinished.exists()


def test_only_requested_components_are_built(modules: Path) -> None:
    assert components.ensure(Journal(), names=["other"]) == {}
    assert calls(modules) == []


def test_every_component_is_pinned_and_offers_what_the_cluster_runs() -> None:
    programs = [program for component in COMPONENTS for program in component.programs]
    assert len(set(programs)) == len(programs)
    assert {"kube-apiserver", "kubelet", "kubectl", "etcd", "coredns", "kserve-manager", "minio", "pause"} <= set(
        programs
    )
    for component in COMPONENTS:
        assert (component.source / "go.mod").exists()
        assert component.version.startswith("v") or not component.module


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        (["module a\n\ngo 1.24.0\n"], (1, 24, 0)),
        (["go 1.24.0\n", "go 1.26.0\n", "go 1.25.8\n"], (1, 26, 0)),
        (["go 1.9\n", "go 1.10\n"], (1, 10)),
    ],
)
def test_newest_required_go_version_is_used(texts: list[str], expected: tuple[int, ...]) -> None:
    assert gotool.needed(texts) == expected


def test_the_wheel_is_new_enough_for_every_module() -> None:
    texts = [(component.source / "go.mod").read_text() for component in COMPONENTS]
    assert gotool._parse(gotool.WHEEL.partition("==")[2]) >= gotool.needed(texts)


def test_the_time_that_remains_follows_the_pace_so_far() -> None:
    assert components.describe_remaining([], ["etcd", "kubernetes"], 0.0) == (
        "components: 0 of 2 built, about 4 min left: etcd, kubernetes"
    )
    slow = components.describe_remaining(["etcd"], ["kubernetes"], 120.0)
    assert slow == "components: 1 of 2 built, about 11 min left: kubernetes"

"""When a program of the local cluster is rebuilt, what is built together, and the message of a failed build."""

from __future__ import annotations

import dataclasses
import os
import shutil
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from filelock import FileLock

from pytest_vllm_stage.cluster.local import builds, components, gotool
from pytest_vllm_stage.cluster.local.component import Component
from pytest_vllm_stage.cluster.local.components import COMPONENTS
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal, read_events

#: Stands in for ``go``: it notes its arguments, and writes a program per package.
GO = """#!/bin/sh
here=$(dirname "$0")
[ "$1" = version ] && echo "go version go1.99.0 linux/amd64" && exit 0
[ "$1" = list ] && exit 0
echo "$@" >> "$here/calls"
echo "$GOGC $GOMEMLIMIT $GOMAXPROCS" > "$here/runtime"
[ -e "$here/broken" ] && echo "no such package" >&2 && exit 1
while [ "$1" != -o ]; do shift; done
folder=$2; shift 2
for package in "$@"; do echo built > "$folder/${package##*/}"; done
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
    monkeypatch.setattr("pytest_vllm_stage.cluster.local.component.MODULES", source.parent)
    monkeypatch.setattr(components, "COMPONENTS", (TOOL,))
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(tmp_path / "cache"))
    return source


TOOL = Component("tool", "example.org/tool", {"tool": "example.org/tool/cmd"}, ("main.version={version}",))
TESTS = Path(__file__).resolve().parents[1]
#: Built by the same command as TOOL.
HELPER = Component("helper", "example.org/tool", {"helper": "example.org/tool/cmd/helper"}, shares="tool")


def calls(modules: Path) -> list[str]:
    log = modules.parents[1] / "bin" / "calls"
    return log.read_text().splitlines() if log.exists() else []


def test_all_components_of_a_cluster_are_built_by_one_command() -> None:
    assert {component.group for component in COMPONENTS} == {"cluster"}


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


@pytest.mark.parametrize(("chosen", "expected"), [({}, "400 2GiB 1"), ({"GOGC": "50"}, "50 2GiB 1")])
def test_compiler_collects_garbage_less_often_unless_the_user_has_set_it(
    modules: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, chosen: dict[str, str], expected: str
) -> None:
    for name in ("GOGC", "GOMEMLIMIT", "GOMAXPROCS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in chosen.items():
        monkeypatch.setenv(name, value)
    components.ensure(Journal())
    assert (tmp_path / "bin" / "runtime").read_text() == f"{expected}\n"


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
    with pytest.raises(EnvironmentUnusable, match=r"build of tool v1\.2\.3 failed") as caught:
        components.ensure(Journal())
    assert "no such package" in str(caught.value)
    log = Path(str(caught.value).split("log: ")[1].splitlines()[0])
    assert "no such package" in log.read_text()
    assert not TOOL.folder.exists()
    (tmp_path / "bin" / "broken").unlink()
    assert components.ensure(Journal())["tool"].exists()
    assert list(TOOL.folder.parent.glob(".building-*")) == []


def test_leftovers_of_a_killed_build_are_removed(modules: Path, tmp_path: Path) -> None:
    unfinished = tmp_path / "cache" / "components" / ".building-tool" / "built" / "leftover"
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


def test_node_of_kind_has_the_same_coredns() -> None:
    (coredns,) = [component for component in COMPONENTS if component.name == "coredns"]
    node = (TESTS / "real" / "kind_node" / "coredns" / "go.mod").read_text()
    assert f"\t{coredns.module} {coredns.version} // indirect\n" in node


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


def test_components_of_one_go_mod_are_built_by_one_command(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "COMPONENTS", (TOOL, HELPER))
    built = components.ensure(Journal())
    assert {name: path.parent for name, path in built.items()} == {"tool": TOOL.folder, "helper": HELPER.folder}
    assert all(path.exists() for path in built.values())
    (call,) = calls(modules)
    assert {"example.org/tool/cmd", "example.org/tool/cmd/helper"} < set(call.split())


def test_each_module_is_built_by_a_command_of_its_own(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(components, "COMPONENTS", (TOOL, dataclasses.replace(HELPER, shares="")))
    shutil.copytree(modules, modules.with_name("helper"))
    assert set(components.ensure(Journal())) == {"tool", "helper"}
    assert sorted(call.rpartition(" ")[2] for call in calls(modules)) == [
        "example.org/tool/cmd",
        "example.org/tool/cmd/helper",
    ]


@pytest.mark.parametrize(
    ("available", "expected"), [("7340032 kB", 3), ("4000000 kB", 2), ("1600000 kB", 1), ("99 kB", 1), ("unknown", 1)]
)
def test_compilers_at_a_time_fit_into_the_cores_and_the_memory(
    available: str, expected: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = tmp_path / "meminfo"
    memory.write_text(f"MemTotal:       8000000 kB\nMemFree:          90000 kB\nMemAvailable:   {available}\n")
    monkeypatch.setattr(builds, "_MEMORY", memory)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: {0, 1, 2})
    assert builds.count_processes() == expected


def test_a_failed_build_leaves_no_draft(modules: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(components, "COMPONENTS", (TOOL, dataclasses.replace(HELPER, shares="")))
    shutil.copytree(modules, modules.with_name("helper"))
    (tmp_path / "bin" / "broken").touch()
    with pytest.raises(EnvironmentUnusable, match=r"build of (tool|helper) v1\.2\.3 failed"):
        components.ensure(Journal())
    assert list(TOOL.folder.parent.glob(".building-*")) == []


def test_a_component_that_another_run_builds_is_waited_for(modules: Path, tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "cache" / "components" / "tool.lock")
    TOOL.folder.parent.mkdir(parents=True)
    lines: list[str] = []
    with ThreadPoolExecutor() as pool, lock:
        built = pool.submit(components.ensure, Journal(say=lines.append))
        TOOL.folder.mkdir()
        (TOOL.folder / "tool").write_text("built by the other run\n")
        assert built.result()["tool"].read_text() == "built by the other run\n"
    assert calls(modules) == []


def test_programs_that_another_run_builds_are_named(modules: Path) -> None:
    waiting = builds.GroupBuild([TOOL, HELPER], "", Path("go"))
    assert builds.describe_remaining([waiting]) == "2 programs remain: waiting for another run, which builds them"


@pytest.mark.parametrize(
    ("package", "name"),
    [("./pause", "pause"), ("go.etcd.io/etcd/server/v3", "server"), ("k8s.io/kubernetes/cmd/kubelet", "kubelet")],
)
def test_program_is_found_under_the_name_that_go_gives_it(package: str, name: str) -> None:
    assert builds._executable_of(package) == name


def test_kube_rbac_proxy_shares_the_libraries_of_the_cluster() -> None:
    """Its own build would compile a thousand packages again."""
    (proxy,) = [component for component in components.EXTRAS if component.name == "kube-rbac-proxy"]
    assert proxy.group == "cluster"


def test_largest_component_is_compiled_first(modules: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its largest package takes longest, and others are compiled meanwhile."""
    monkeypatch.setattr(components, "COMPONENTS", (TOOL, HELPER))
    components.ensure(Journal())
    (call,) = calls(modules)
    assert call.endswith("example.org/tool/cmd/helper example.org/tool/cmd")
    assert COMPONENTS[-1].name == "minio"

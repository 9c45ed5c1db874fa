"""However a run ends, the next run removes and reports everything that is left of its local cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from _pytest.mark.structures import ParameterSet

from pytest_vllm_stage.cluster import local
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.cluster.local import components, listing, locking
from pytest_vllm_stage.cluster.local.layout import SHADOWED
from pytest_vllm_stage.cluster.local.record import Record
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until

pytestmark = pytest.mark.real

SILENT = Journal()
#: A run of its own, which starts a cluster, says so, and then only exists.
RUN = """
import os, signal
from pytest_vllm_stage.cluster import local
from pytest_vllm_stage.core.journal import Journal
# A background job's children inherit that Ctrl-C is ignored; a person's shell does not do that.
signal.signal(signal.SIGINT, signal.default_int_handler)
say = lambda line: print(line, flush=True)
facts = local.start(run_id="child", lifeline_pid=os.getpid(), mounts={}, journal=Journal(None, say), wait_s=300)
say("facts " + facts.to_json())
signal.pause()
"""

Run = subprocess.Popen[str]


def nightly(moment_s: float) -> ParameterSet:
    return pytest.param(moment_s, marks=pytest.mark.nightly)


def until(what: str, true: Callable[[], bool], timeout_s: float = 60) -> None:
    wait_until(
        what,
        lambda: Observation(true(), "not yet"),
        timeout_s=timeout_s,
        journal=SILENT,
        interval_s=0.1,
        error=EnvironmentUnusable,
    )


def await_nothing_left(before: dict[str, list[str]]) -> None:
    """A supervisor that was killed while it started needs a moment to find its run gone, on a busy machine a second."""

    def compare() -> Observation:
        left = listing.difference(before, listing.snapshot())
        return Observation(not left, "; ".join(left))

    wait_until("nothing is left", compare, timeout_s=180, journal=SILENT, interval_s=0.1, error=EnvironmentUnusable)


@pytest.fixture
def before() -> Iterator[dict[str, list[str]]]:
    local.ensure_packages(SILENT)
    components.ensure(SILENT)
    until("no other run has a cluster", lambda: local.running() == [], timeout_s=300)
    local.sweep(SILENT)
    until("no process of a cluster is left", lambda: listing.processes() == [])
    yield listing.snapshot()
    for record in local.running():
        if record.run_id in ("child", "broken"):
            local.stop(record.state_dir, SILENT)


@pytest.fixture
def run(before: dict[str, list[str]]) -> Iterator[Run]:
    process = subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


def started(run: Run) -> ClusterFacts:
    assert run.stdout
    for line in run.stdout:
        if line.startswith("facts "):
            return ClusterFacts.from_json(line.removeprefix("facts "))
    raise AssertionError(f"the run ended with {run.wait()}")


def only_record() -> Record:
    (record,) = local.running()
    return record


def gone(record: Record) -> bool:
    assert record.supervisor
    return not record.supervisor.alive() and not Path(record.state_dir).exists()


def test_it_ends_with_the_process_it_serves(run: Run, before: dict[str, list[str]]) -> None:
    started(run)
    record = only_record()
    assert listing.difference(before, listing.snapshot())
    run.kill()
    run.wait()
    until("the cluster is gone", lambda: gone(record))
    await_nothing_left(before)
    assert local.sweep(SILENT) == []


def test_it_is_kept_until_it_is_stopped(run: Run, before: dict[str, list[str]]) -> None:
    facts = started(run)
    local.keep(facts)
    supervisor = only_record().supervisor
    assert supervisor
    run.kill()
    run.wait()
    assert not supervisor.wait(2)
    (kept,) = local.running()
    assert kept.kept
    assert "kept by run child" in kept.describe()
    command = [sys.executable, "-m", "pytest_vllm_stage.cluster.local"]
    listed = subprocess.run([*command, "list"], capture_output=True, text=True, check=True).stdout
    assert kept.id in listed
    assert facts.kubeconfig in listed
    subprocess.run([*command, "stop", kept.id], check=True)
    await_nothing_left(before)


def test_a_killed_supervisor_takes_the_processes_along_and_the_rest_is_swept(
    run: Run, before: dict[str, list[str]]
) -> None:
    started(run)
    record = only_record()
    assert record.supervisor
    record.supervisor.signal(signal.SIGKILL)
    until("no process is left", lambda: listing.processes() == [])
    removed = local.sweep(SILENT)
    kinds = {line.split()[0] for line in removed}
    assert {"cgroup", "folder", "route"} <= kinds
    assert any(record.state_dir in line for line in removed)
    await_nothing_left(before)


@pytest.mark.parametrize("moment_s", [0.4, 4.0, nightly(0.05), nightly(0.8), nightly(1.5)])
def test_killed_while_starting(run: Run, before: dict[str, list[str]], moment_s: float) -> None:
    assert run.stdout
    run.stdout.readline()
    time.sleep(moment_s)
    os.kill(run.pid, signal.SIGKILL)
    run.wait()
    local.sweep(SILENT)
    assert local.running() == []
    await_nothing_left(before)


@pytest.mark.parametrize("moment_s", [0.3, nightly(0.0), nightly(3.0)])
def test_ctrl_c_while_starting_leaves_nothing(run: Run, before: dict[str, list[str]], moment_s: float) -> None:
    until("it starts", lambda: local.running() != [])
    record = only_record()
    time.sleep(moment_s)
    os.kill(run.pid, signal.SIGINT)
    assert run.wait(60) != 0
    until("the cluster is gone", lambda: not Path(record.state_dir).exists() and listing.processes() == [])
    await_nothing_left(before)
    assert local.sweep(SILENT) == []


def test_a_program_that_cannot_run_is_named_with_its_log(
    before: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "kube-scheduler"
    broken.write_text("#!/bin/sh\necho the reason >&2\nexit 3\n")
    broken.chmod(0o755)
    real = components.ensure
    monkeypatch.setattr(components, "ensure", lambda journal: real(journal) | {"kube-scheduler": broken})
    with pytest.raises(EnvironmentUnusable) as caught:
        local.start(run_id="broken", lifeline_pid=os.getpid(), mounts={}, journal=SILENT, wait_s=300)
    text = str(caught.value)
    assert "kube-scheduler ended 4 times, exited with 3" in text.splitlines()[0]
    assert "the reason" in text
    (log,) = [line.split("log: ")[1] for line in text.splitlines() if "log: " in line]
    assert "the reason" in Path(log).read_text()
    await_nothing_left(before)


def test_failed_start_names_the_reason(before: dict[str, list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SHADOWED, "impossible", Path("/proc/impossible"))
    with pytest.raises(EnvironmentUnusable, match="the cluster ended: ") as caught:
        local.start(run_id="broken", lifeline_pid=os.getpid(), mounts={}, journal=SILENT, wait_s=300)
    assert "/proc/impossible" in str(caught.value)
    await_nothing_left(before)


@pytest.mark.nightly
def test_two_clusters_run_side_by_side_and_end_independently(
    run: Run, before: dict[str, list[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = started(run)
    (tmp_path / "file").write_text("still here\n")
    monkeypatch.setenv(locking.SLOTS_VARIABLE, "2")
    second = local.start(run_id="child", lifeline_pid=os.getpid(), mounts={"engine": tmp_path}, journal=SILENT)
    assert len({record.block for record in local.running()}) == 2
    assert local.stop(str(first.state_dir), SILENT) == []
    kubectl = [second.kubectl, "--kubeconfig", second.kubeconfig, f"--cache-dir={tmp_path}"]
    assert "Ready" in subprocess.run([*kubectl, "get", "nodes"], capture_output=True, text=True, check=True).stdout
    inside = f"/proc/{_first_process(second)}/root/mnt/vllm-stage/engine/file"
    assert Path(inside).read_text() == "still here\n"
    assert local.stop(str(second.state_dir), SILENT) == []
    await_nothing_left(before)


def _first_process(cluster: ClusterFacts) -> int:
    (line,) = [
        line for line in listing.processes() if f"local.inner {cluster.state_dir}" in line and "unshare" not in line
    ]
    return int(line.split()[0])


def test_a_second_run_waits_for_the_first_to_end(run: Run, before: dict[str, list[str]]) -> None:
    until("the first starts", lambda: local.running() != [])
    with subprocess.Popen([sys.executable, "-c", RUN], stdout=subprocess.PIPE, text=True) as second:
        folders = []
        for process in (run, second):
            folders.append(started(process).state_dir)
            process.kill()
            process.wait()
    assert len(set(folders)) == 2
    until("the second is gone", lambda: listing.processes() == [])
    await_nothing_left(before)

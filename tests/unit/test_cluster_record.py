"""Records, slots, identities and listings: what a run knows about a cluster that it did not create."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.local import cgroups, listing, locking, packages
from pytest_vllm_stage.cluster.local import record as records
from pytest_vllm_stage.cluster.local.locking import Slot, this_process
from pytest_vllm_stage.cluster.local.process import ProcessRef, start_time
from pytest_vllm_stage.cluster.local.record import Record
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal

NOBODY = ProcessRef(2**22 + 1, 1)


@pytest.fixture(autouse=True)
def private_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locking, "LOCK_DIR", tmp_path / "locks")
    monkeypatch.delenv(locking.SLOTS_VARIABLE, raising=False)


def make_record(state_dir: Path, **fields: object) -> Record:
    state_dir.mkdir(parents=True, exist_ok=True)
    record = Record(
        id=state_dir.name,
        run_id="run-1",
        command="pytest suites/",
        since="2026-01-02T03:04:05+00:00",
        state_dir=str(state_dir),
        block="10.219.0.0/20",
        starter=this_process(),
        lifeline=this_process(),
        supervisor=this_process(),
    )
    return record.changed(**fields)


def test_a_record_is_read_as_written_by_its_owner_only(tmp_path: Path) -> None:
    record = make_record(tmp_path / "0a1b2c", made_dirs=("/mnt/vllm-stage",), phase="up", kept=True)
    assert records.load(tmp_path / "0a1b2c") == record
    assert (tmp_path / "0a1b2c" / records.FILE).stat().st_mode & 0o777 == 0o600
    assert [path.name for path in (tmp_path / "0a1b2c").iterdir()] == [records.FILE]


@pytest.mark.parametrize("text", ["", "{", "[]", '{"id": "0a1b2c"}'])
def test_corrupt_record_is_none(tmp_path: Path, text: str) -> None:
    (tmp_path / records.FILE).write_text(text)
    assert records.load(tmp_path) is None


def test_there_is_no_record_without_a_file(tmp_path: Path) -> None:
    assert records.load(tmp_path / "absent") is None


def test_record_describes_the_cluster_and_its_owner(tmp_path: Path) -> None:
    text = make_record(tmp_path / "0a1b2c", kept=True).describe()
    for part in ("0a1b2c", "kept by run run-1", f"pid {os.getpid()}", "2026-01-02", "10.219.0.0/20", "pytest suites/"):
        assert part in text


@pytest.mark.parametrize(
    ("route", "expected"),
    [
        ("10.219.4.0/22 via 10.219.0.2 dev vstage0a1b2c proto 219", True),
        ("unreachable 10.219.0.0/20 proto 219 metric 4278198272", True),
        ("unreachable 10.219.16.0/20 proto 219 metric 4278198272", False),
    ],
)
def test_a_clusters_routes_are_known_by_its_block(tmp_path: Path, route: str, expected: bool) -> None:
    assert make_record(tmp_path / "0a1b2c").owns_route(route) is expected


def test_names_fit_what_the_kernel_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(tmp_path))
    record = make_record(tmp_path / records.new_id())
    assert len(record.link) < 16
    assert record.cgroup == f"/vllm-stage-{record.id}"


def test_the_command_holds_no_option(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/x/bin/pytest", "suites/", "--api-key=secret"])
    assert records.command_line() == "pytest suites/"


def test_a_tree_with_a_mount_below_is_not_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "cluster" / "held"
    kept.mkdir(parents=True)
    info = f"1 2 0:1 / {kept} rw - ext4 /dev/x rw\n"
    real = Path.read_text
    monkeypatch.setattr(Path, "read_text", lambda path, **kw: info if path.name == "mountinfo" else real(path, **kw))
    with pytest.raises(OSError, match="there are mounts below it"):
        records.remove_tree(tmp_path / "cluster")
    assert kept.exists()
    records.remove_tree(tmp_path / "clus")
    assert kept.exists()


def test_a_process_is_known_by_its_start_time() -> None:
    with subprocess.Popen(["sleep", "60"]) as child:
        process = ProcessRef.of(child.pid)
        assert process
        assert process.alive()
        assert not ProcessRef(child.pid, process.started + 1).alive()
        ProcessRef(child.pid, process.started + 1).signal(signal.SIGKILL)
        assert not process.wait(0.05)
        process.signal(signal.SIGKILL)
        assert process.wait(60)
        assert start_time(child.pid) is None, "a zombie has ended"
    assert ProcessRef.of(child.pid) is None
    process.signal(signal.SIGKILL)


def test_there_is_one_slot_and_it_is_free_after_its_last_holder(tmp_path: Path) -> None:
    slot = locking.try_acquire()
    assert slot
    assert locking.try_acquire() is None
    with subprocess.Popen(["sleep", "60"], pass_fds=[slot.descriptor]) as child:
        slot.close()
        assert locking.try_acquire() is None
        child.kill()
    again = locking.try_acquire()
    assert again
    again.close()


def test_number_of_slots_is_configurable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(locking.SLOTS_VARIABLE, "2")
    taken = [locking.try_acquire(), locking.try_acquire()]
    assert locking.try_acquire() is None
    assert len({slot.path for slot in taken if slot}) == 2
    for slot in taken:
        assert slot
        slot.close()


@pytest.mark.parametrize("text", ["0", "-1", "two", ""])
def test_a_wrong_number_of_slots_is_refused(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(locking.SLOTS_VARIABLE, text)
    with pytest.raises(ConfigError, match=locking.SLOTS_VARIABLE):
        locking.slots()


@pytest.fixture
def held() -> Slot:
    slot = locking.try_acquire()
    assert slot
    return slot


def test_cluster_is_running_while_its_slot_is_held(tmp_path: Path, held: Slot) -> None:
    record = make_record(tmp_path / "0a1b2c", phase="up")
    held.note(record.path)
    assert locking.living() == [record]
    (note,) = locking.notes()
    assert note.held
    held.close()
    assert locking.living() == []
    (note,) = locking.notes()
    assert (note.held, note.state_dir) == (False, record.path)


def test_a_slot_in_use_is_refused_with_its_holder(tmp_path: Path, held: Slot) -> None:
    held.note(make_record(tmp_path / "0a1b2c", phase="up").path)
    with pytest.raises(
        EnvironmentUnusable, match="a local cluster on this machine: another cluster is in use"
    ) as caught:
        locking.acquire(Journal())
    assert "run-1" in str(caught.value)
    assert "cluster.local stop" in caught.value.hint
    held.close()


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, False),
        ({"phase": "ending"}, True),
        ({"lifeline": NOBODY}, True),
        ({"lifeline": NOBODY, "kept": True}, False),
        ({"supervisor": NOBODY}, True),
        ({"supervisor": None}, False),
        ({"supervisor": None, "starter": NOBODY}, True),
    ],
)
def test_a_cluster_ends_by_itself(tmp_path: Path, fields: dict[str, object], expected: bool) -> None:
    assert locking.is_ending(make_record(tmp_path / "0a1b2c", **fields)) is expected


def test_hierarchies_of_both_kinds_are_found() -> None:
    text = (
        "25 20 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n"
        "26 25 0:22 / /sys/fs/cgroup/memory rw,nosuid - cgroup cgroup rw,memory\n"
        "27 25 0:23 / /sys/fs/cgroup/unified rw shared:5 - cgroup2 cgroup2 rw\n"
        "28 25 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"
    )
    assert cgroups.hierarchies(text) == [Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup/unified")]


def test_difference_names_added_and_removed_objects() -> None:
    before = {"links": ["eth0", "lo"], "mounts": ["/"]}
    after = {"links": ["lo", "vstage0a1b2c"], "mounts": ["/"], "cgroups": ["/sys/x"]}
    assert listing.difference(before, after) == ["+ cgroups: /sys/x", "+ links: vstage0a1b2c", "- links: eth0"]
    assert listing.difference(after, after) == []


def test_a_snapshot_sees_the_machine() -> None:
    seen = listing.snapshot()
    assert any(line.startswith("/ ") for line in seen["mounts"])
    assert "lo:" in seen["links"]
    assert os.readlink("/proc/self/ns/net") in seen["namespaces"]
    assert seen["processes"] == sorted(seen["processes"])


def test_a_component_outside_a_cluster_is_not_a_clusters_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "cache_dir", lambda: tmp_path)
    program = tmp_path / "components" / "sleep"
    program.parent.mkdir()
    shutil.copy(shutil.which("sleep") or "sleep", program)
    with subprocess.Popen([program, "60"]) as process:
        seen = listing.processes()
        process.kill()
    assert not [line for line in seen if line.startswith(f"{process.pid} ")]


def test_missing_programs_are_named_with_their_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, **_: None if name == "runc" else f"/usr/bin/{name}")
    monkeypatch.setattr(packages, "cni_dir", lambda: None)
    missing = packages.missing()
    assert missing.pop("runc") == "runc"
    assert list(missing.values()) == ["containernetworking-plugins"]
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(EnvironmentUnusable, match=r"missing for a local cluster: .*runc") as caught:
        packages.ensure(Journal())
    assert "containernetworking-plugins runc" in caught.value.hint


def test_nothing_is_installed_when_nothing_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packages, "missing", dict)
    monkeypatch.setattr(packages, "_apt", lambda *_: pytest.fail("apt was run"))
    packages.ensure(Journal())

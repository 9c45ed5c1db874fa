"""Removes leftovers of clusters from the machine. A running cluster is one whose slot is held.

Everything is found by its name or mark instead of by a record: a record is only needed for folders of the host that
served as mount points, and for the cluster's own folder.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from pytest_vllm_stage.cluster.local import cgroups, locking, network
from pytest_vllm_stage.cluster.local import record as records
from pytest_vllm_stage.cluster.local.locking import Slot
from pytest_vllm_stage.cluster.local.process import ProcessRef
from pytest_vllm_stage.cluster.local.record import Record
from pytest_vllm_stage.core.errors import StageError

#: In the environment of every process of a cluster; its value is the cluster's id.
MARK = "VLLM_STAGE_CLUSTER"
#: The longest wait for a killed process; one in an uninterruptible call takes a moment.
DEATH_S = 20.0
#: How many ended clusters' logs are kept.
KEPT_LOGS = 5


@dataclass
class Removal:
    """What was done.

    Attributes:
        removed: One line per removed object.
        left: One line per object that could not be removed, with the reason.
    """

    removed: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    def attempt(self, what: str, act: Callable[[], object], is_there: Callable[[], bool]) -> None:
        """Remove one object; a failure becomes a line and does not stop the rest.

        The kernel removes some objects when their process ends, perhaps just now: that does not count as a failure.
        """
        try:
            act()
        except (OSError, StageError) as error:
            if is_there():
                self.left.append(f"{what}: {error}")
        else:
            self.removed.append(what)


def logs_dir() -> Path:
    """The folder of ended clusters' logs, with one folder per cluster."""
    return records.clusters_dir().parent / "cluster-logs"


def remove_dead(own: Slot | None = None) -> Removal:
    """Remove every trace of clusters on this machine, except of those whose slot another process holds.

    Args:
        own: The caller's slot; its last cluster is removed.
    """
    removal = Removal()
    with locking.mutex():
        notes = locking.notes()
        spared = {note.state_dir for note in notes if note.held and (own is None or note.slot != own.path)}
        noted = {note.state_dir for note in notes}
        _remove_all_but({folder.name for folder in spared}, noted - spared, removal)
    return removal


def _remove_all_but(spared: set[str], noted: set[Path], removal: Removal) -> None:
    living = [record for record in locking.living() if record.id in spared]
    _kill(spared, removal)
    for link in network.links():
        if link.removeprefix(network.LINK_PREFIX) not in spared:
            removal.attempt(f"link {link}", partial(network.remove_link, link), partial(network.has_link, link))
    for route in network.routes():
        if not any(record.owns_route(route) for record in living):
            removal.attempt(f"route {route}", partial(network.remove_route, route), partial(network.has_route, route))
    for folder in cgroups.existing():
        if folder.name.removeprefix(f"{records.PREFIX}-") not in spared:
            removal.attempt(f"cgroup {folder}", partial(cgroups.remove, folder), folder.exists)
    in_use = {folder for record in living for folder in record.made_dirs}
    own_cache = set(records.clusters_dir().glob("*"))
    for state_dir in sorted(folder for folder in own_cache | noted if folder.exists() and folder.name not in spared):
        _remove_folders(removal, state_dir, in_use)


def _kill(spared: set[str], removal: Removal) -> None:
    found = [(pid, process) for pid, owner in marked() if owner not in spared and (process := ProcessRef.of(pid))]
    for _, process in found:
        process.signal(signal.SIGKILL)
    for pid, process in found:
        gone = process.wait(DEATH_S)
        (removal.removed if gone else removal.left).append(f"process {pid}")


def marked() -> list[tuple[int, str]]:
    """The processes that carry a cluster's mark: process id and cluster's id."""
    mark = f"{MARK}=".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with contextlib.suppress(OSError):
                variables = (entry / "environ").read_bytes().split(b"\0")
                found += [(int(entry.name), part[len(mark) :].decode()) for part in variables if part.startswith(mark)]
    return sorted(found)


def _remove_folders(removal: Removal, state_dir: Path, in_use: set[str]) -> None:
    record = records.load(state_dir)
    for made in reversed(record.made_dirs if record else ()):
        # Removing a mount point would unmount what is mounted there in other clusters' namespaces.
        if made not in in_use:
            with contextlib.suppress(OSError):
                Path(made).rmdir()
                removal.removed.append(f"folder {made}")
    with contextlib.suppress(OSError):
        keep_logs(state_dir)
    removal.attempt(f"folder {state_dir}", lambda: records.remove_tree(state_dir), state_dir.exists)


def log_of(state_dir: Path, name: str) -> Path:
    """Where a program's log is now: in the cluster's folder while it runs, next to it afterwards."""
    living = state_dir / "logs" / f"{name}.log"
    return living if living.exists() else logs_dir() / state_dir.name / living.name


def keep_logs(state_dir: Path) -> None:
    """Move a cluster's logs out of its folder, and remove the oldest of those kept."""
    if not (state_dir / "logs").exists():
        return
    logs_dir().mkdir(parents=True, exist_ok=True)
    target = logs_dir() / state_dir.name
    shutil.rmtree(target, ignore_errors=True)
    (state_dir / "logs").rename(target)
    remove_old_logs()


def remove_old_logs() -> None:
    """Remove the logs of the clusters that ended first, except those of the last few."""
    oldest_first = sorted(logs_dir().iterdir(), key=lambda path: path.stat().st_mtime)
    for path in oldest_first[:-KEPT_LOGS]:
        shutil.rmtree(path, ignore_errors=True)


def remaining_of(record: Record) -> list[str]:
    """What of one cluster is left on this machine, one line per object; another cluster may run next to it."""
    return [
        *(f"process {pid}" for pid, owner in marked() if owner == record.id),
        *(f"link {link}" for link in network.links() if link == record.link),
        *(f"route {route}" for route in network.routes() if record.owns_route(route)),
        *(f"cgroup {folder}" for folder in cgroups.existing() if folder.name == record.cgroup.strip("/")),
        *(f"folder {folder}" for folder in (record.path,) if folder.exists()),
    ]

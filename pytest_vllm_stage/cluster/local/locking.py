"""How many local clusters may run on this machine: a slot is a lock that a cluster's supervisor holds, with a note.

There is one slot, since two stages on one machine would distort each other's measurements;
``VLLM_STAGE_LOCAL_CLUSTERS`` sets another number. A short mutex serialises the search for leftovers of dead clusters
with the creation of new ones.
"""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_stage.cluster.local import record as records
from pytest_vllm_stage.cluster.local.process import ProcessRef
from pytest_vllm_stage.cluster.local.record import Record
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.json_text import parse_json
from pytest_vllm_stage.core.waiting import Observation, wait_until

#: The same for every cache of the machine.
LOCK_DIR = Path("/run/lock/pytest-vllm-stage")
#: The slots' files are called ``seat-N``: a kept cluster of an earlier version must be found.
SLOTS_VARIABLE = "VLLM_STAGE_LOCAL_CLUSTERS"
#: The longest wait for a cluster that is ending.
ENDING_S = 60.0


@dataclass(frozen=True)
class Slot:
    """A held slot; it passes on with its descriptor, and is free when every process with that descriptor has ended.

    Attributes:
        descriptor: An open file descriptor with the lock on it.
        path: The slot's file.
    """

    descriptor: int
    path: Path

    @classmethod
    def inherited(cls, descriptor: int) -> Slot:
        """The slot that a parent process passed on."""
        return cls(descriptor, Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    def note(self, state_dir: Path) -> None:
        """Note in the slot's file which cluster it is for."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps({"state_dir": str(state_dir)}).encode(), 0)

    def close(self) -> None:
        """Release this process's share of it."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class Note:
    """The content of a slot's file.

    Attributes:
        slot: The slot's file.
        held: A process holds the slot; otherwise the cluster is dead, and may not have been removed.
        state_dir: The folder of the slot's last cluster.
    """

    slot: Path
    held: bool
    state_dir: Path


def slots() -> int:
    """How many local clusters may run on this machine at once."""
    text = os.environ.get(SLOTS_VARIABLE, "1")
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{SLOTS_VARIABLE}={text}: expected a number of clusters, 1 or more")
    return int(text)


@contextmanager
def mutex() -> Iterator[None]:
    """Held while a cluster is recorded, or while leftovers of dead clusters are searched and removed."""
    descriptor = _open(LOCK_DIR / "mutex")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    LOCK_DIR.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(path: Path) -> Slot | None:
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Slot(descriptor, path)


def try_acquire() -> Slot | None:
    """A free slot, or None where all are taken."""
    with mutex():
        for number in range(slots()):
            if (slot := _try(LOCK_DIR / f"seat-{number}")) is not None:
                return slot
    return None


def notes() -> list[Note]:
    """The notes of all slots; a slot that was never used, or whose file is empty, is skipped."""
    found = []
    for path in sorted(LOCK_DIR.glob("seat-*")):
        slot = _try(path)
        if slot is not None:
            slot.close()
        try:
            state_dir = Path(parse_json(path.read_text(encoding="utf-8"))["state_dir"])
        except (OSError, ValueError, KeyError, TypeError):
            continue
        found.append(Note(path, slot is None, state_dir))
    return found


def living() -> list[Record]:
    """The clusters of the slots that are held."""
    loaded = [records.load(note.state_dir) for note in notes() if note.held]
    return [record for record in loaded if record is not None]


def acquire(journal: Journal, *, wait_s: float = 0.0) -> Slot:
    """Take a slot; wait for one whose cluster is ending.

    Args:
        journal: Records the wait.
        wait_s: Seconds to wait while every cluster is in use.

    Raises:
        EnvironmentUnusable: every slot is in use; the message names the runs.
    """
    if (slot := try_acquire()) is not None:
        return slot
    taken: list[Slot] = []
    patient_until = time.monotonic() + wait_s

    def look() -> Observation:
        if (slot := try_acquire()) is not None:
            taken.append(slot)
            return Observation(True, "free")
        found = living()
        state = (
            "; ".join(record.describe() for record in found) or "held by a process that is starting or ending a cluster"
        )
        # A kept cluster ends on request only: waiting for it would hide that.
        patient = time.monotonic() < patient_until and not all(record.kept for record in found)
        busy = len(found) >= slots() and not any(map(is_ending, found)) and not patient
        return Observation(
            False, state, "another cluster is in use, and only one can run on a machine" if busy else None
        )

    wait_until(
        "a local cluster on this machine",
        look,
        timeout_s=max(ENDING_S, wait_s + 5),
        journal=journal,
        interval_s=0.2,
        error=EnvironmentUnusable,
        hint="wait for it, or end it: python -m pytest_vllm_stage.cluster.local stop",
    )
    return taken[0]


def is_ending(record: Record) -> bool:
    """Whether the cluster ends by itself: it is being removed, or the process that it serves has ended."""
    owner = record.supervisor or record.starter
    return record.phase == "ending" or not owner.alive() or not (record.kept or record.lifeline.alive())


def this_process() -> ProcessRef:
    """This process."""
    found = ProcessRef.of(os.getpid())
    assert found is not None  # noqa: S101 this process is running
    return found

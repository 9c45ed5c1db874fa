"""Who may have a local cluster on this machine: a seat is a lock that the cluster's supervisor holds, with a note.

There is one seat, since two stages on one machine would spoil each other's measurements; ``VLLM_STAGE_LOCAL_CLUSTERS``
sets another number. A short mutex orders those who look for what dead clusters left and those who make something.
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
from pytest_vllm_stage.core.waiting import Observation, wait_until

#: The same for every cache of the machine.
LOCK_DIR = Path("/run/lock/pytest-vllm-stage")
SEATS_VARIABLE = "VLLM_STAGE_LOCAL_CLUSTERS"
#: A cluster that ends is waited for so long.
ENDING_S = 60.0


@dataclass(frozen=True)
class Seat:
    """A held seat; it passes on with its descriptor, and is free when every process that has that has ended.

    Attributes:
        descriptor: An open file descriptor with the lock on it.
        path: The seat's file.
    """

    descriptor: int
    path: Path

    @classmethod
    def inherited(cls, descriptor: int) -> Seat:
        """The seat that a parent process passed on."""
        return cls(descriptor, Path(os.readlink(f"/proc/self/fd/{descriptor}")))

    def note(self, state_dir: Path) -> None:
        """Say in the seat's file which cluster it is for."""
        os.ftruncate(self.descriptor, 0)
        os.pwrite(self.descriptor, json.dumps({"state_dir": str(state_dir)}).encode(), 0)

    def close(self) -> None:
        """Let go of this process's part in it."""
        os.close(self.descriptor)


@dataclass(frozen=True)
class Note:
    """What a seat's file says.

    Attributes:
        seat: The seat's file.
        held: Some process has the seat; else the cluster is dead, and may not have been removed.
        state_dir: The folder of the seat's last cluster.
    """

    seat: Path
    held: bool
    state_dir: Path


def seats() -> int:
    """How many local clusters may live on this machine at once."""
    text = os.environ.get(SEATS_VARIABLE, "1")
    if not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{SEATS_VARIABLE}={text}: expected a number of clusters, 1 or more")
    return int(text)


@contextmanager
def mutex() -> Iterator[None]:
    """Held while something of a cluster is made known, or while what dead clusters left is looked for and removed."""
    descriptor = _open(LOCK_DIR / "mutex")
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _open(path: Path) -> int:
    LOCK_DIR.mkdir(parents=True, exist_ok=True)
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def _try(path: Path) -> Seat | None:
    descriptor = _open(path)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return Seat(descriptor, path)


def try_acquire() -> Seat | None:
    """A free seat, or None where all are taken."""
    with mutex():
        for number in range(seats()):
            if (seat := _try(LOCK_DIR / f"seat-{number}")) is not None:
                return seat
    return None


def notes() -> list[Note]:
    """What the files of all seats say; a seat that was never used, or whose file says nothing, is left out."""
    found = []
    for path in sorted(LOCK_DIR.glob("seat-*")):
        seat = _try(path)
        if seat is not None:
            seat.close()
        try:
            state_dir = Path(json.loads(path.read_text(encoding="utf-8"))["state_dir"])
        except (OSError, ValueError, KeyError):
            continue
        found.append(Note(path, seat is None, state_dir))
    return found


def living() -> list[Record]:
    """The clusters of the seats that are held."""
    loaded = [records.load(note.state_dir) for note in notes() if note.held]
    return [record for record in loaded if record is not None]


def acquire(journal: Journal, *, wait_s: float = 0.0) -> Seat:
    """Take a seat; wait for one whose cluster is ending.

    Args:
        journal: Takes the wait.
        wait_s: Seconds to wait while every cluster is in use.

    Raises:
        EnvironmentUnusable: every seat is in use; the message says by whom.
    """
    if (seat := try_acquire()) is not None:
        return seat
    taken: list[Seat] = []
    patient_until = time.monotonic() + wait_s

    def look() -> Observation:
        if (seat := try_acquire()) is not None:
            taken.append(seat)
            return Observation(True, "free")
        found = living()
        state = "; ".join(record.describe() for record in found) or "held by a process that starts or ends a cluster"
        # A kept cluster ends when a person says so: waiting for it would only hide that.
        patient = time.monotonic() < patient_until and not all(record.kept for record in found)
        busy = len(found) >= seats() and not any(map(is_ending, found)) and not patient
        return Observation(False, state, "another one is in use, and a machine has one at a time" if busy else None)

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
    """The cluster goes without anyone asking: it is being removed, or the process that it serves is gone."""
    owner = record.supervisor or record.starter
    return record.phase == "ending" or not owner.alive() or not (record.kept or record.lifeline.alive())


def this_process() -> ProcessRef:
    """This process."""
    found = ProcessRef.of(os.getpid())
    assert found is not None  # noqa: S101 it runs this line
    return found

"""Processes by identity: a pid with its start time, so that a reused pid is never mistaken for the earlier process."""

from __future__ import annotations

import contextlib
import os
import select
import signal
from dataclasses import dataclass
from pathlib import Path


def start_time(pid: int) -> int | None:
    """The process's start in clock ticks since boot; None where there is no such process, or only its zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The command's name stands in parentheses and may hold anything, parentheses included.
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else int(fields[19])


@dataclass(frozen=True)
class ProcessRef:
    """One process, identified even after its pid was reused.

    Attributes:
        pid: Its process id.
        started: Its start time in clock ticks since boot.
    """

    pid: int
    started: int

    @classmethod
    def of(cls, pid: int) -> ProcessRef | None:
        """The process that has this pid now; None where there is none."""
        started = start_time(pid)
        return None if started is None else cls(pid, started)

    def alive(self) -> bool:
        """It still runs (a zombie does not)."""
        return start_time(self.pid) == self.started

    def open(self) -> int | None:
        """A pidfd, which becomes readable when the process ends; None where it has ended. The caller closes it."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return None
        if self.alive():
            return descriptor
        os.close(descriptor)
        return None

    def signal(self, number: int) -> None:
        """Send a signal to exactly this process; does nothing where it has ended."""
        descriptor = self.open()
        if descriptor is None:
            return
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(descriptor, number)
        finally:
            os.close(descriptor)

    def wait(self, timeout_s: float) -> bool:
        """Wait until it has ended; False where it still runs after ``timeout_s`` seconds."""
        descriptor = self.open()
        if descriptor is None:
            return True
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(timeout_s * 1000))
        finally:
            os.close(descriptor)

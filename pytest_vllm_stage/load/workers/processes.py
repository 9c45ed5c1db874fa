"""Load workers as processes of this machine, with the same shares, agreement and merging as pods of a cluster."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, cast

from pytest_vllm_stage.load.workers import messages
from pytest_vllm_stage.load.workers.__main__ import ASSIGNMENT, INDEX_VARIABLE
from pytest_vllm_stage.load.workers.assignment import Assignment

_START = "start"
_END_TIMEOUT_S = 10.0
_STATUS_TIMEOUT_S = 5.0
_SHOWN_CHARACTERS = 500


class LocalWorkers:
    """Worker processes that read a folder; see `local_workers`."""

    def __init__(self, folder: Path, processes: list[subprocess.Popen[str]]) -> None:
        self._folder = folder
        self.processes = processes
        self.start_at: float | None = None

    @property
    def count(self) -> int:
        return len(self.processes)

    def lines(self, worker: int) -> Iterator[str]:
        """A worker's output as it comes."""
        yield from cast(IO[str], self.processes[worker].stdout)

    def rehearse(self, worker: int) -> None:
        """All read one file: one worker's rehearsal is that of all."""
        self._write_start(messages.REHEARSAL)

    def announce(self, lead_s: float) -> float:
        """Write the common start."""
        start_at = time.time() + lead_s
        self._write_start(f"{start_at:.6f}")
        self.start_at = start_at
        return start_at

    def _write_start(self, text: str) -> None:
        draft = self._folder / "start.draft"
        draft.write_text(f"{text}\n", encoding="utf-8")
        draft.replace(self._folder / _START)

    def name(self, worker: int) -> str:
        return f"process {self.processes[worker].pid}"

    def describe_end(self, worker: int) -> str:
        """Its exit status, and what it wrote to stderr."""
        status: int | None = None
        with suppress(subprocess.TimeoutExpired):  # its output ends a little before the process does
            status = self.processes[worker].wait(_STATUS_TIMEOUT_S)
        wrote = (self._folder / f"stderr-{worker}").read_text(encoding="utf-8", errors="replace").strip()
        ended = "is still running" if status is None else f"exit status {status}"
        return f"{ended}; it wrote: {wrote[-_SHOWN_CHARACTERS:]}" if wrote else ended


@contextmanager
def local_workers(assignment: Assignment, folder: Path) -> Iterator[LocalWorkers]:
    """Start the workers of a step; they end with the block."""
    (folder / ASSIGNMENT).write_text(assignment.to_text(), encoding="utf-8")
    processes: list[subprocess.Popen[str]] = []
    try:
        for worker in range(assignment.workers):
            with (folder / f"stderr-{worker}").open("w") as errors:
                processes.append(
                    subprocess.Popen(
                        [
                            *(sys.executable, "-m", "pytest_vllm_stage.load.workers"),
                            *(f"--folder={folder}", f"--secrets={folder / 'secrets'}", f"--start={folder / _START}"),
                        ],
                        stdout=subprocess.PIPE,
                        stderr=errors,
                        text=True,
                        env={**os.environ, INDEX_VARIABLE: str(worker)},
                    )
                )
        yield LocalWorkers(folder, processes)
    finally:
        for process in processes:
            if process.poll() is None:
                process.kill()
            process.wait(_END_TIMEOUT_S)
            cast(IO[str], process.stdout).close()

"""Folders that are built once and shared by every run: one builder at a time, and complete or not there at all.

A folder counts as built when its marker file exists, which is written last; the next build
removes the leftovers of a killed one. Renaming a finished folder into place would be simpler, but Python environments
remember their own path.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until

MARKER = "built.json"

Facts = dict[str, Any]


class Build:
    """A build in progress: runs its commands, whose output goes to one log next to the folder.

    Attributes:
        folder: What is being built; exists and is empty at the start.
        log: Output of all commands.
    """

    def __init__(self, folder: Path, lock: int, journal: Journal) -> None:
        self.folder = folder
        self.log = folder.with_name(f"{folder.name}.log")
        self.log.write_bytes(b"")
        self._lock = lock
        self._journal = journal

    def run(
        self, what: str, command: list[str], *, timeout_s: float, advise: Callable[[str], str], env: Mapping[str, str]
    ) -> None:
        """Run a command to its end, reporting its last line of output as progress.

        The command inherits the lock: if this process is killed, no other process builds until the command has ended.

        Args:
            what: The step in a few words, for progress and errors.
            command: Program and arguments.
            timeout_s: Seconds until the command is ended.
            advise: Derives the error's hint from the end of the output.
            env: The command's whole environment.

        Raises:
            EnvironmentUnusable: It failed or took too long; carries the end of its output.
        """
        with self.log.open("ab") as log:
            streams: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log}
            process = subprocess.Popen(command, cwd=self.folder, env=env, pass_fds=[self._lock], **streams)
        try:
            look = _watch(process, self.log)
            hint = f"see {self.log}"
            wait_until(what, look, timeout_s=timeout_s, journal=self._journal, error=EnvironmentUnusable, hint=hint)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if process.returncode:
            tail = _tail(self.log, 2000)
            raise EnvironmentUnusable(f"{what} failed with exit code {process.returncode}:\n{tail}", hint=advise(tail))


def ensure(folder: Path, what: str, build: Callable[[Build], Facts], journal: Journal) -> Facts:
    """Build ``folder`` unless it is built; return its builder's facts, from now or from when it was built.

    Args:
        folder: Its path; the name should be a fingerprint of everything that the build depends on.
        what: What is built, for progress.
        build: Fills the folder and returns facts that JSON can hold.
        journal: Records the phase.
    """
    if (facts := _read(folder)) is not None:
        return facts
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock_file = folder.with_name(f"{folder.name}.lock")
    with journal.phase(what, folder=str(folder)), _locked(lock_file, what, journal) as lock:
        if (facts := _read(folder)) is not None:
            return facts
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir()
        facts = build(Build(folder, lock, journal))
        _write(folder, facts)
        return facts


def end_with_this_process() -> list[str]:
    """A command prefix: the command and everything that it starts is killed when this process ends."""
    command = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []
    if command and os.geteuid() == 0:
        command += ["unshare", "--pid", "--fork", "--kill-child"]
    return command


def _read(folder: Path) -> Facts | None:
    try:
        facts: Facts = json.loads((folder / MARKER).read_text())
    except FileNotFoundError:
        return None
    return facts


def _write(folder: Path, facts: Facts) -> None:
    unfinished = folder / f"{MARKER}.unfinished"
    unfinished.write_text(json.dumps(facts, indent=1) + "\n")
    unfinished.rename(folder / MARKER)


@contextmanager
def _locked(path: Path, what: str, journal: Journal) -> Iterator[int]:
    """Hold an exclusive lock; yields its descriptor, so that children can hold it too."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        wait_until(
            f"lock of {what}",
            lambda: _try_lock(lock, path),
            timeout_s=3600,
            journal=journal,
            error=EnvironmentUnusable,
            hint=f"find the building process: fuser -v {path}",
        )
        yield lock
    finally:
        os.close(lock)


def _try_lock(lock: int, path: Path) -> Observation:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return Observation(False, f"another process builds it and holds {path}")
    return Observation(True, "held")


def _watch(process: subprocess.Popen[bytes], log: Path) -> Callable[[], Observation]:
    def look() -> Observation:
        done = process.poll() is not None
        return Observation(done, re.split(r"[\r\n]", _tail(log, 200))[-1] or "started")

    return look


def _tail(log: Path, size: int) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - size))
        return file.read().decode(errors="replace").strip()

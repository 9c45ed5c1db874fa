"""Carries the progress lines of xdist's workers to the controller, which alone knows where the terminal's line ends.

A worker's lines on the shared terminal would start in the middle of pytest's own.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

_POLL_S = 0.1


class RelayedProgress:
    """Prints what the workers have appended to a file, until it is closed.

    Args:
        path: The file; a run's processes know it, and it need not exist yet.
        say: Prints one line.
    """

    def __init__(self, path: Path, say: Callable[[str], None]) -> None:
        self._path = path
        self._say = say
        self._offset = 0
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._print_until_closed, name="vllm-stage-relay", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Print what is left, and remove the file."""
        self._closed.set()
        self._thread.join()
        with contextlib.suppress(OSError):
            self._path.unlink(missing_ok=True)

    def _print_until_closed(self) -> None:
        while not self._closed.wait(_POLL_S):
            self._print_new()
        self._print_new()

    def _print_new(self) -> None:
        try:
            with self._path.open("rb") as file:
                file.seek(self._offset)
                new = file.read()
        except OSError:  # no worker has said anything
            return
        whole = new[: new.rfind(b"\n") + 1]
        self._offset += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            self._say(line)


def send_line(path: Path, line: str) -> None:
    """Append a line for the controller, whole, between other workers' lines.

    Raises:
        OSError: the run directory cannot be written to.
    """
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, f"{line}\n".encode(errors="replace"))
    finally:
        os.close(descriptor)

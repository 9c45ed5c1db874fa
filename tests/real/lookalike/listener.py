"""Waits until a process of the look-alike accepts connections."""

from __future__ import annotations

import socket
import subprocess
from pathlib import Path

from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until

START_S = 30


def await_listener(name: str, process: subprocess.Popen[bytes], place: tuple[str, int], log: Path) -> None:
    """Return when the process listens on an address and port.

    Raises:
        EnvironmentUnusable: it has ended, with the end of its log; or it does not listen in time.
    """

    def observe() -> Observation:
        if process.poll() is not None:
            raise EnvironmentUnusable(f"{name} ended with {process.returncode}: {log.read_text()[-1000:]}")
        try:
            socket.create_connection(place, 1).close()
        except OSError as error:
            return Observation(False, str(error))
        return Observation(True, "listening")

    wait_until(f"{name} listens", observe, timeout_s=START_S, journal=Journal(), error=EnvironmentUnusable)

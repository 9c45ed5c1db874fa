"""The states of the cluster's programs, written by the process that runs them, read by those that wait for them."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.files import PRIVATE, write_atomically
from pytest_vllm_stage.core.json_text import parse_json


@dataclass
class ProgramState:
    """The state of one program.

    Attributes:
        running: Its process exists.
        starts: How often it was started.
        started_at: When it was last started, seconds since the epoch.
        ready_at: Since when it is ready, seconds since the epoch.
        last_exit: The exit code of its last end; negative for a signal.
        failed: It ended too often and is not started again.
    """

    running: bool = False
    starts: int = 0
    started_at: float | None = None
    ready_at: float | None = None
    last_exit: int | None = None
    failed: bool = False

    def describe(self) -> str:
        """The state in a few words."""
        if self.ready_at is not None:
            return "ready"
        ended = "" if self.last_exit is None else f", exited with {self.last_exit}"
        if self.failed:
            return f"ended {self.starts} times{ended}"
        return f"running{ended}" if self.running else f"not started{ended}"


def to_json(states: dict[str, ProgramState]) -> str:
    """One JSON object, program name to state."""
    return json.dumps({name: asdict(state) for name, state in states.items()})


def write(path: Path, text: str) -> None:
    """Replace the file of states."""
    write_atomically(path, text, mode=PRIVATE)


def read(path: Path) -> dict[str, ProgramState]:
    """The states last reported; empty before the first report."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
        return {name: ProgramState(**state) for name, state in data.items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise EnvironmentUnusable(f"{path} does not hold the states of the cluster's programs: {error}") from None

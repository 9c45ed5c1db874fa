"""What a run did and how long each part took: one JSON line per event, and one progress line per phase.

Every process of a run (controller, xdist workers, the local cluster's supervisor) appends to the same file; a line is
written by one ``write`` on an ``O_APPEND`` descriptor, so lines never mix. ``run.json`` is derived from this file and
from nothing else.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.activity import PROGRESS_INTERVAL_S, Activity, Live, NoLiveLine
from pytest_vllm_stage.core.json_text import parse_json

_SHORT_S = 1.0
Say = Callable[[str], None]
#: Called with a phase's name; the phase runs inside what it returns.
StepContext = Callable[[str], AbstractContextManager[object]]


def silent(_line: str) -> None:
    """Drop a progress line (``-q``, and tests that do not look at progress)."""


class Journal:
    """Appends events to ``path`` and reports progress lines.

    Args:
        path: The JSON-lines file; None records nothing (for tools without a run directory).
        say: Where progress lines go; one plain line each, without a newline.
        step: Shows each phase elsewhere too, for example as a step of a test report.
        live: Shows long work as a live line where there is a terminal.
    """

    def __init__(
        self,
        path: Path | None = None,
        say: Say = silent,
        step: StepContext = nullcontext,
        live: Live | None = None,
    ) -> None:
        self.path = path
        self.say = say
        self.step = step
        self._live = live or NoLiveLine()

    def event(self, kind: str, name: str, **data: Any) -> None:
        """Record one event with the time in seconds since the epoch (``at``) and the process id."""
        if self.path is None:
            return
        line = json.dumps({"at": round(time.time(), 3), "pid": os.getpid(), "kind": kind, "name": name, **data})
        descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        try:
            os.write(descriptor, line.encode() + b"\n")
        finally:
            os.close(descriptor)

    @contextmanager
    def phase(self, name: str, **data: Any) -> Iterator[dict[str, Any]]:
        """Time a phase; add facts to the yielded dict to record them.

        Phases nest; each is recorded on its own with ``duration_s`` and ``outcome`` (``done`` or what failed).
        """
        facts: dict[str, Any] = dict(data)
        started = time.monotonic()
        outcome = "done"
        activity = self.activity(name)
        try:
            with activity, self.step(name):
                if not activity.show():
                    self.say(f"{name} ...")
                yield facts
        except BaseException as error:
            outcome = getattr(error, "kind", type(error).__name__)
            raise
        finally:
            duration_s = time.monotonic() - started
            self.event("phase", name, duration_s=round(duration_s, 3), outcome=outcome, **facts)
            # On a terminal, a phase that was too short to be seen is left out.
            if not activity.shown_live or outcome != "done" or duration_s >= _SHORT_S:
                self.say(f"{name}: {outcome} in {duration_s:.1f} s")

    def activity(
        self, what: str, *, total_s: float | None = None, limit: bool = False, interval_s: float = PROGRESS_INTERVAL_S
    ) -> Activity:
        """Show long work while it goes on; see `Activity`."""
        return Activity(what, say=self.say, live=self._live, total_s=total_s, limit=limit, interval_s=interval_s)


def read_events(path: Path) -> list[dict[str, Any]]:
    """The events of a journal file in the order written; lines that are not events are skipped.

    The last line of a killed process may be cut.
    """
    if not path.exists():
        return []
    events = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            event = parse_json(line)
        except ValueError:
            continue
        if isinstance(event, dict):
            events.append(event)
    return events

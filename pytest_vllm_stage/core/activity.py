"""Long work in progress: a live line where a terminal can show one, otherwise plain lines from time to time."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Protocol

#: Without a live line, the state is printed again at this interval.
PROGRESS_INTERVAL_S = 15.0


class Activity:
    """Work in progress, from the start of a ``with`` block to its end.

    Args:
        what: The work in a few words.
        say: Prints a plain line.
        live: Shows a live line.
        total_s: How long the work takes, or may take; None where that is not known.
        limit: ``total_s`` is a timeout, not the expected duration.
        interval_s: Seconds between two plain lines.
    """

    def __init__(
        self,
        what: str,
        *,
        say: Callable[[str], None],
        live: Live,
        total_s: float | None = None,
        limit: bool = False,
        interval_s: float = PROGRESS_INTERVAL_S,
    ) -> None:
        self.what = what
        self.state = ""
        self.total_s = total_s
        self.limit = limit
        self.started_s = time.monotonic()
        self.shown_live = False
        self._say = say
        self._live = live
        self._interval_s = interval_s
        self._announced = ""
        self._said_s = self.started_s

    def __enter__(self) -> Activity:
        """Start the work; nothing is shown before the first `show` or `update`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the work and remove its live line, also after Ctrl-C."""
        if self.shown_live:
            self._live.end(self)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the work began."""
        return time.monotonic() - self.started_s

    def show(self) -> bool:
        """Show the live line from now on; False where no terminal can show one."""
        self.shown_live = self.shown_live or self._live.begin(self)
        return self.shown_live

    def update(self, state: str, *, announce: bool = False, elapsed_s: float | None = None) -> None:
        """Show the state.

        Args:
            state: The state in a few words.
            announce: Print a new state as a plain line at once, without waiting for the interval.
            elapsed_s: How long the work has taken, where it did not begin with the block.
        """
        self.state = state
        if elapsed_s is not None:
            self.started_s = time.monotonic() - elapsed_s
        if self.show():
            return
        now_s = time.monotonic()
        if (announce and state != self._announced) or now_s - self._said_s >= self._interval_s:
            self._announced, self._said_s = state, now_s
            self._say(f"{self.what}: {state} ({self._describe_time()})")

    def _describe_time(self) -> str:
        return f"{self.elapsed_s:.0f} s" + (f" of {self.total_s:g} s" if self.total_s is not None else "")


class Live(Protocol):
    """Shows a live line for the innermost activity."""

    def begin(self, activity: Activity, /) -> bool:
        """Show the activity from now on; False where no terminal can."""

    def end(self, activity: Activity, /) -> None:
        """Remove the activity's line."""


class NoLiveLine:
    """Stands for an output that is not a terminal."""

    def begin(self, _activity: Activity, /) -> bool:
        """Report that there is no live line."""
        return False

    def end(self, _activity: Activity, /) -> None:
        """Do nothing: no line was shown."""

"""One line at the bottom of a terminal: a bar, elapsed and remaining time, and the state of the work in progress.

It writes to the terminal's own descriptor. pytest's terminal writer and libraries for progress bars write to
``sys.stdout`` or ``sys.stderr``, which pytest captures while a fixture works.
"""

from __future__ import annotations

import contextlib
import os
import re
import threading

from pytest_vllm_stage.core.activity import Activity

_REDRAW_INTERVAL_S = 0.5
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
#: From this width on, a bar of so many characters.
_BARS = ((80, 20), (50, 10))


def is_supported(descriptor: int) -> bool:
    """Whether the descriptor is a terminal that can erase a line."""
    return os.isatty(descriptor) and os.environ.get("TERM", "dumb") not in ("", "dumb")


def render(activity: Activity, width: int) -> str:
    """The line, at most ``width`` characters."""
    elapsed_s, total_s = activity.elapsed_s, activity.total_s
    head = _clock(elapsed_s)
    if total_s:
        most = "at most " if activity.limit else ""
        head = f"{_bar(elapsed_s / total_s, width)}{head}, {most}{_clock(max(0, int(total_s) - int(elapsed_s)))} left"
    text = f"{activity.what}: {activity.state}" if activity.state else activity.what
    line = f"{head}  {_ESCAPES.sub('', text)}"
    line = "".join(character if character.isprintable() else " " for character in line)
    return line if len(line) <= width else f"{line[: max(0, width - 3)]}..."[:width]


def _bar(share: float, width: int) -> str:
    size = next((size for least, size in _BARS if width >= least), 0)
    filled = round(min(1.0, share) * size)
    return f"[{'#' * filled}{'-' * (size - filled)}] " if size else ""


def _clock(elapsed_s: float) -> str:
    minutes, rest_s = divmod(int(elapsed_s), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest_s:02}" if hours else f"{minutes}:{rest_s:02}"


class LiveLine:
    """The line of the innermost activity, redrawn twice a second by a thread, so that it moves while work blocks.

    Args:
        descriptor: The terminal.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lock = threading.Lock()
        self._activities: list[Activity] = []
        self._drawn = 0

    @property
    def idle(self) -> bool:
        """Whether no activity is shown."""
        return not self._activities

    def begin(self, activity: Activity) -> None:
        """Show the activity from the next redraw on."""
        with self._lock:
            self._activities.append(activity)
            first = len(self._activities) == 1
        if first:
            threading.Thread(target=self._redraw_until_idle, name="vllm-stage-live-line", daemon=True).start()

    def end(self, activity: Activity) -> None:
        """Remove the activity, and its line at once."""
        with self._lock:
            self._activities.remove(activity)
            self._write(self._erase())

    def print(self, text: bytes) -> None:
        """Print above the line, which comes back with the next redraw."""
        with self._lock:
            self._write(self._erase() + text)

    def _redraw_until_idle(self) -> None:
        ended = threading.Event()
        while not ended.wait(_REDRAW_INTERVAL_S):
            with self._lock:
                if not self._activities:
                    return
                line = render(self._activities[-1], self._width() - 1)
                self._write(self._erase() + line.encode(errors="replace"))
                self._drawn = len(line)

    def _erase(self) -> bytes:
        """Erase the line; a terminal that became narrower has wrapped it to several rows."""
        if not self._drawn:
            return b""
        rows = (self._drawn - 1) // self._width()
        self._drawn = 0
        return b"\r" + (b"\x1b[%dA" % rows if rows else b"") + b"\x1b[J"

    def _width(self) -> int:
        try:
            return max(2, os.get_terminal_size(self._descriptor).columns)
        except OSError:
            return 80

    def _write(self, text: bytes) -> None:
        with contextlib.suppress(OSError):  # the terminal is gone
            os.write(self._descriptor, text)

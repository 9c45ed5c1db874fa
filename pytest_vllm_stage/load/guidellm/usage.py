"""CPU time of a process group over an interval that is known only afterwards."""

from __future__ import annotations

import bisect
import os
import time
from itertools import pairwise
from pathlib import Path

_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
#: Places in ``/proc/PID/stat`` after the command's name: the group, and the four counters of CPU time.
_GROUP, _TIMES = 2, slice(11, 15)


class GroupUsage:
    """Records a group's CPU time repeatedly, and returns the usage between two times of the wall clock.

    Args:
        group: The process group.
    """

    def __init__(self, group: int) -> None:
        self._group = group
        self._taken: list[tuple[float, float]] = []

    def look(self) -> None:
        """Take it now."""
        self._taken.append((time.time(), group_cpu_s(self._group)))

    def between(self, start: float, end: float) -> float:
        """Seconds of CPU time from ``start`` to ``end``, interpolated between two records."""
        return self._at(end) - self._at(start)

    def _at(self, when: float) -> float:
        times = [at for at, _ in self._taken]
        after = bisect.bisect_left(times, when)
        if not 0 < after < len(times):
            return self._taken[0 if after == 0 else -1][1] if times else 0.0
        ((at0, cpu0), (at1, cpu1)), *_ = pairwise(self._taken[after - 1 : after + 1])
        return cpu0 + (cpu1 - cpu0) * (when - at0) / (at1 - at0)


def group_cpu_s(group: int) -> float:
    """CPU time of all processes of a group so far, those that have ended and were waited for included."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(") ")[2].split()
        except OSError:
            continue  # it has just ended; its parent's counters have it
        if int(fields[_GROUP]) == group:
            ticks += sum(map(int, fields[_TIMES]))
    return ticks * _TICK_S

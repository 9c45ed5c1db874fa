"""A timer for an asyncio loop that is as exact as the kernel's.

The loop's own timers are rounded up to whole milliseconds, by epoll as by libuv. A Linux timer descriptor wakes the
loop within some ten microseconds instead.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import time
from collections.abc import Callable

_CLOCK_MONOTONIC = 1
_ABSOLUTE = 1
_CLOSE_ON_EXEC_NONBLOCKING = os.O_CLOEXEC | os.O_NONBLOCK


class _TimeSpec(ctypes.Structure):
    _fields_ = (("seconds", ctypes.c_long), ("nanoseconds", ctypes.c_long))


class _TimerSpec(ctypes.Structure):
    _fields_ = (("interval", _TimeSpec), ("value", _TimeSpec))


class Timer:
    """Calls ``callback`` in the loop when the monotonic clock reaches a time; only one time can be armed.

    Args:
        loop: The running loop.
        callback: Called without arguments, never before the time.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, callback: Callable[[], None]) -> None:
        self._loop = loop
        self._callback = callback
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._descriptor = self._libc.timerfd_create(_CLOCK_MONOTONIC, _CLOSE_ON_EXEC_NONBLOCKING)
        if self._descriptor < 0:
            raise OSError(ctypes.get_errno(), "timerfd_create")
        loop.add_reader(self._descriptor, self._fired)

    def arm(self, at_s: float) -> None:
        """Wake at this time of ``time.monotonic()``, at once if it has passed."""
        nanoseconds = max(1, int(at_s * 1e9))
        spec = _TimerSpec(_TimeSpec(0, 0), _TimeSpec(*divmod(nanoseconds, 1_000_000_000)))
        if self._libc.timerfd_settime(self._descriptor, _ABSOLUTE, ctypes.byref(spec), None) != 0:
            raise OSError(ctypes.get_errno(), "timerfd_settime")

    def close(self) -> None:
        """Never fire again."""
        if self._descriptor >= 0:
            self._loop.remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _fired(self) -> None:
        try:
            os.read(self._descriptor, 8)
        except BlockingIOError:
            return
        self._callback()


def same_clock() -> bool:
    """``perf_counter`` and ``monotonic`` are the same clock, as on Linux; times of the two may then be mixed."""
    return abs(time.perf_counter() - time.monotonic()) < 0.001

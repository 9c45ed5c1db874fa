"""Ask the kernel to prioritise this process: a driver that waits for a core would measure its own waiting."""

from __future__ import annotations

import os

_NICE = -15


def raise_priority() -> str:
    """Set the highest allowed priority, and return it: ``realtime``, ``nice -15`` or ``normal``.

    A real-time driver cannot take a machine over: it sleeps between events, and the kernel caps such processes.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(1))
    except (OSError, AttributeError):
        pass
    else:
        return "realtime"
    try:
        os.setpriority(os.PRIO_PROCESS, 0, _NICE)
    except OSError:
        return "normal"
    return f"nice {_NICE}"

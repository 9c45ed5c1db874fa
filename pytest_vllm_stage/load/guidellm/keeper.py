"""Runs a command with raised priority, and ends it with all its processes when this process's stdin closes.

    python keeper.py PROGRAM ARGUMENT...

A killed parent cannot end its children, but its end of the pipe closes. GuideLLM's worker processes would otherwise
wait forever. Runs as a plain script, so that it needs nothing of this package.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
import sys

#: As our own driver's: a driver that waits for a core measures the waiting.
NICE = -15


def main() -> int:
    """The command's exit status, 128 and its number for a signal."""
    with contextlib.suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, 0, NICE)
    command = subprocess.Popen(sys.argv[1:], stdin=subprocess.DEVNULL)
    ended = os.pidfd_open(command.pid)
    ready, _, _ = select.select([ended, sys.stdin], [], [])
    if ended not in ready:
        os.killpg(0, signal.SIGKILL)  # the parent made a process group of this process, which ends with it
    status = command.wait()
    return status if status >= 0 else 128 - status


if __name__ == "__main__":
    sys.exit(main())

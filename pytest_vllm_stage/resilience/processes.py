"""The processes of a container, where this process may signal them: on the node of a local cluster."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from pytest_vllm_stage.stage.drift import SERVING_CONTAINER
from pytest_vllm_stage.stage.objects import Object

_PROC = Path("/proc")


def container_id(pod: Object, container: str = SERVING_CONTAINER) -> str:
    """The id by which the runtime knows a pod's container; empty before it was created."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    found: Object = next((one for one in statuses if one.get("name") == container), {})
    return str(found.get("containerID") or "").rpartition("/")[2]


def find_processes(container: str, proc: Path = _PROC) -> list[int]:
    """The processes of a container on this machine, by the control groups that name its id."""
    return sorted(
        int(path.parent.name)
        for path in proc.glob("[0-9]*/cgroup")
        if container and container in _read(path) and path.parent.name.isdigit()
    )


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""  # it has ended meanwhile


def signal_container(container: str, number: signal.Signals) -> list[int]:
    """Send a signal to every process of a container; return those that received it."""
    reached = []
    for pid in find_processes(container):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue  # it has ended meanwhile
        reached.append(pid)
    return reached

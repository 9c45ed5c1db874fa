"""The cgroups of clusters, in every hierarchy that is mounted: one folder each, below which the kubelet works."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from pytest_vllm_stage.cluster.local.record import PREFIX

#: A killed process leaves its cgroup a moment later: the longest wait for that.
SETTLE_S = 10.0


def hierarchies(mountinfo: str | None = None) -> list[Path]:
    """Mount points of cgroup hierarchies, v1 and v2.

    Args:
        mountinfo: The text of ``/proc/self/mountinfo``; read where not given.
    """
    text = Path("/proc/self/mountinfo").read_text(encoding="utf-8") if mountinfo is None else mountinfo
    points = []
    for line in text.splitlines():
        fields, _, tail = line.partition(" - ")
        if tail.split()[0] in ("cgroup", "cgroup2"):
            points.append(Path(fields.split()[4]))
    return list(dict.fromkeys(points))


def create(name: str) -> None:
    """Create the cgroup in every hierarchy; ``cpuset`` gets the parent's processors and memory nodes."""
    for root in hierarchies():
        folder = root / name.strip("/")
        if (root / "cgroup.controllers").exists():
            _delegate(root)
        folder.mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):
            if (folder / "cgroup.clone_children").exists() and (folder / setting).exists():
                (folder / setting).write_text((root / setting).read_text(encoding="utf-8"), encoding="utf-8")


def _delegate(root: Path) -> None:
    """On v2, let the children of the root have its controllers; a refused one stays unchanged."""
    wanted = (root / "cgroup.controllers").read_text(encoding="utf-8").split()
    have = (root / "cgroup.subtree_control").read_text(encoding="utf-8").split()
    for controller in set(wanted) - set(have):
        with contextlib.suppress(OSError):
            (root / "cgroup.subtree_control").write_text(f"+{controller}", encoding="utf-8")


def existing() -> list[Path]:
    """The folders of clusters' cgroups in all hierarchies."""
    return [folder for root in hierarchies() for folder in sorted(root.glob(f"{PREFIX}-*")) if folder.is_dir()]


def members(folder: Path) -> list[int]:
    """Process ids in a cgroup and below it."""
    pids: set[int] = set()
    for listing in folder.rglob("cgroup.procs"):
        with contextlib.suppress(OSError):
            pids.update(map(int, listing.read_text(encoding="utf-8").split()))
    return sorted(pids)


def remove(folder: Path, sleep: Callable[[float], None] = time.sleep) -> None:
    """Remove a cgroup with those below it.

    Raises:
        OSError: it is still busy after `SETTLE_S`.
    """
    deadline = time.monotonic() + SETTLE_S
    while folder.exists():
        try:
            for path, _, _ in os.walk(folder, topdown=False):
                Path(path).rmdir()
        except FileNotFoundError:
            continue
        except OSError:
            if time.monotonic() > deadline:
                raise
            sleep(0.05)

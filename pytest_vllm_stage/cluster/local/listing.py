"""Lists the kinds of objects that clusters consist of on this machine, to compare before with after.

``python -m pytest_vllm_stage.cluster.local.listing`` prints it.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
from pathlib import Path

from pytest_vllm_stage.cluster.local import cgroups, removal
from pytest_vllm_stage.cluster.local.packages import SYSTEM_PATH
from pytest_vllm_stage.cluster.local.process import start_time
from pytest_vllm_stage.core.paths import cache_dir

#: A cluster's processes are in a network and a mount namespace too; pid namespaces alone belong to builds.
_NAMESPACES = ("net", "mnt", "ipc", "uts", "cgroup")
#: Where containers' programs leave folders when they are not contained.
_FOLDERS = ("/mnt", "/var/lib/cni", "/var/lib/kubelet", "/var/lib/containerd", "/run/containerd", "/run/netns")
_MORE_FOLDERS = (
    "/etc/cni",
    "/opt/containerd",
    "/opt/cni",
    "/var/log/pods",
    "/var/log/containers",
    "/usr/libexec/kubernetes",
)
#: The kubelet and kube-proxy would set these for the whole machine.
_SETTINGS = ("net/ipv4/ip_forward", "vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops")
_MORE_SETTINGS = ("kernel/keys/root_maxkeys", "net/netfilter/nf_conntrack_max")


def snapshot() -> dict[str, list[str]]:
    """Map each kind of object to one sorted line per object.

    Processes are those of clusters and of this package's supervisors; all other kinds are listed whole.
    """
    return {
        "processes": processes(),
        "mounts": mounts(),
        "namespaces": namespaces(),
        "links": _command("ip", "-o", "link", "show", columns=(1,)),
        "routes": [*_command("ip", "-4", "route", "show", "table", "all"), *_command("ip", "-6", "route", "show")],
        "cgroups": sorted(str(path) for root in cgroups.hierarchies() for path in root.rglob("*") if path.is_dir()),
        "iptables": [*_rules("iptables-save"), *_rules("ip6tables-save")],
        "folders": folders(),
        "settings": settings(),
    }


def difference(before: dict[str, list[str]], after: dict[str, list[str]]) -> list[str]:
    """One line per object that is in only one of two snapshots: ``+`` for added, ``-`` for removed."""
    lines = []
    for kind in sorted({*before, *after}):
        old, new = set(before.get(kind, [])), set(after.get(kind, []))
        lines += [f"+ {kind}: {line}" for line in sorted(new - old)]
        lines += [f"- {kind}: {line}" for line in sorted(old - new)]
    return lines


def processes() -> list[str]:
    """Processes of clusters and their supervisors, with their command lines.

    A component that runs in this process's network namespace, as kubectl does, is not part of a cluster.
    """
    marked = {pid for pid, _ in removal.marked()}
    components = str(cache_dir() / "components")
    network = os.readlink("/proc/self/ns/net")
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with contextlib.suppress(OSError):
            command = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            contained = command.startswith(components) and os.readlink(entry / "ns" / "net") != network
            ours = "cluster.local.supervisor" in command or contained
            if ours or int(entry.name) in marked or "/vllm-stage-" in (entry / "cgroup").read_text():
                found.append(f"{entry.name} {command}")
    return sorted(found)


def mounts() -> list[str]:
    """Mount points of this mount namespace, with type and source."""
    lines = []
    for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines():
        left, _, right = line.partition(" - ")
        lines.append(f"{left.split()[4]} {' '.join(right.split()[:2])}")
    return sorted(lines)


def namespaces() -> list[str]:
    """Namespaces that processes of this machine are in."""
    found = set()
    for entry in Path("/proc").iterdir():
        # A zombie is still in its namespaces, but has ended.
        if entry.name.isdigit() and start_time(int(entry.name)) is not None:
            for kind in _NAMESPACES:
                with contextlib.suppress(OSError):
                    found.add(os.readlink(entry / "ns" / kind))
    return sorted(found)


def folders() -> list[str]:
    """What is in the folders that container programs use, one level deep."""
    found = []
    for name in (*_FOLDERS, *_MORE_FOLDERS):
        folder = Path(name)
        if folder.is_dir():
            found += [name, *(str(path) for path in folder.iterdir())]
    return sorted(found)


def settings() -> list[str]:
    """Kernel settings of the machine that container programs like to change."""
    lines = []
    for name in (*_SETTINGS, *_MORE_SETTINGS):
        with contextlib.suppress(OSError):
            lines.append(f"{name} = {Path('/proc/sys', name).read_text(encoding='utf-8').strip()}")
    return lines


def _rules(program: str) -> list[str]:
    """Rules and chains; counters and dates, which always change, are left out."""
    lines = _command(program)
    return [line.partition(" [")[0] for line in lines if not line.startswith("#")]


def _command(*command: str, columns: tuple[int, ...] = ()) -> list[str]:
    environment = {"PATH": SYSTEM_PATH}
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    except FileNotFoundError:
        return []
    lines = [line.split() for line in result.stdout.splitlines() if line.strip()]
    return sorted(" ".join(line[column] for column in columns) if columns else " ".join(line) for line in lines)


if __name__ == "__main__":
    for kind, things in snapshot().items():
        for thing in things:
            print(f"{kind}: {thing}")  # noqa: T201 the command's output

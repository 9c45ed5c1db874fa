"""The record of a cluster on this machine, written before anything of it is created."""

from __future__ import annotations

import dataclasses
import json
import secrets
import shutil
import sys
from dataclasses import dataclass
from ipaddress import IPv4Network
from pathlib import Path
from typing import Any, Literal

from pytest_vllm_stage.cluster.local.process import ProcessRef
from pytest_vllm_stage.core.files import PRIVATE, write_atomically
from pytest_vllm_stage.core.json_text import parse_json
from pytest_vllm_stage.core.paths import cache_dir

#: Prefix of every name of a cluster on the machine: cgroups carry it with the cluster's id.
PREFIX = "vllm-stage"
FILE = "record.json"
#: A file that asks the cluster's owner to keep it.
KEEP_FILE = "keep"

Phase = Literal["starting", "up", "ending"]


@dataclass(frozen=True)
class Record:
    """A cluster's intent and state.

    Attributes:
        id: Six hexadecimal digits; part of every name on the machine.
        run_id: The run that created it.
        command: The command line of that run's process.
        since: When it was requested, RFC 3339.
        state_dir: Its folder.
        block: Its address range.
        starter: The process that requested it.
        lifeline: The process with which it ends.
        supervisor: The process that owns it; None until that process exists.
        phase: Its phase.
        kept: It outlives its lifeline.
        made_dirs: Folders of the host that are created as mount points and removed with it, outermost first.
        reason: Why it ended, as far as known.
    """

    id: str
    run_id: str
    command: str
    since: str
    state_dir: str
    block: str
    starter: ProcessRef
    lifeline: ProcessRef
    supervisor: ProcessRef | None = None
    phase: Phase = "starting"
    kept: bool = False
    made_dirs: tuple[str, ...] = ()
    reason: str = ""

    @property
    def link(self) -> str:
        """The host's end of the veth pair."""
        return f"vstage{self.id}"

    @property
    def cgroup(self) -> str:
        """The cgroup below which all pods run, as the kubelet's ``cgroupRoot`` wants it."""
        return f"/{PREFIX}-{self.id}"

    def owns_route(self, route: str) -> bool:
        """A route as ``ip route`` prints it is in this cluster's block."""
        words = (word for word in route.split() if word[0].isdigit())
        return any(IPv4Network(word, strict=False).subnet_of(IPv4Network(self.block)) for word in words if "/" in word)

    @property
    def path(self) -> Path:
        """The folder `state_dir`."""
        return Path(self.state_dir)

    def changed(self, **fields: Any) -> Record:
        """Write and return the record with other values in some fields."""
        record = dataclasses.replace(self, **fields)
        record.save()
        return record

    def save(self) -> None:
        """Write it to its folder, whole or not at all."""
        write_atomically(self.path / FILE, json.dumps(dataclasses.asdict(self), indent=1) + "\n", mode=PRIVATE)

    def describe(self) -> str:
        """The cluster and its owner in one line."""
        how = "kept by" if self.kept else "of"
        owner = self.supervisor or self.starter
        return (
            f"local cluster {self.id} {how} run {self.run_id} ({self.phase}, pid {owner.pid}, since {self.since}, "
            f"addresses {self.block}, state {self.state_dir}, started by: {self.command})"
        )


def clusters_dir() -> Path:
    """The folder that holds one folder for each cluster made from this cache."""
    return cache_dir() / "clusters"


def new_id() -> str:
    """An id that no cluster of this cache has."""
    while True:
        candidate = secrets.token_hex(3)
        if not (clusters_dir() / candidate).exists():
            return candidate


def command_line() -> str:
    """This process's command, as far as it names the program; arguments may hold secrets."""
    return " ".join([Path(sys.argv[0]).name, *[part for part in sys.argv[1:3] if not part.startswith("-")]])


def load(state_dir: Path) -> Record | None:
    """The record in a cluster's folder; None where it is missing or corrupt."""
    try:
        data = parse_json((state_dir / FILE).read_text(encoding="utf-8"))
        for field in ("starter", "lifeline", "supervisor"):
            data[field] = ProcessRef(**data[field]) if data[field] else None
        data["made_dirs"] = tuple(data["made_dirs"])
        return Record(**data)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def remove_tree(path: Path) -> None:
    """Remove a cluster's folder; never through a mount, whose content is not ours."""
    below = f"{path}/"
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text(encoding="utf-8").splitlines()]
    if held := [point for point in mounts if point.startswith(below)]:
        raise OSError(f"not removed, there are mounts below it: {', '.join(held)}")
    if path.exists():
        shutil.rmtree(path)

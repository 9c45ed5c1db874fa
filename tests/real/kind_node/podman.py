"""Podman for a test, as `docker` has Docker: from the distribution's packages, in namespaces of its own.

Podman has no daemon: its containers belong to the namespaces of the command that starts them, so every command enters
those of one process that only waits. What is left of them ends with it.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_stage.cluster.local import cgroups
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from tests.real.kind_node import debian, image
from tests.real.kind_node.docker import make_environment, write_runtime

PACKAGES = (
    "podman", "conmon", "netavark", "aardvark-dns", "golang-github-containers-common",
    "golang-github-containers-image", "libgpgme11", "libassuan0", "libsubid4", "libdevmapper1.02.1",
)  # fmt: skip
#: Podman's own cgroup, whose name cannot be chosen.
_CGROUP = "libpod_parent"
_IMPORT_S = 300.0
_READY = "ready"
_SCRIPT = "mount -t tmpfs tmpfs /run; mount -t tmpfs tmpfs /dev/shm; ip link set lo up; touch {ready}; exec sleep inf"
_CONTAINERS = """[network]
network_backend = "netavark"
network_config_dir = "{folder}/networks"
[engine]
cgroup_manager = "cgroupfs"
conmon_path = ["{root}/usr/bin/conmon"]
events_logger = "file"
helper_binaries_dir = ["{root}/usr/lib/podman"]
runtime = "test"
static_dir = "{folder}/libpod"
tmp_dir = "/run/libpod"
volume_path = "{folder}/volumes"
[engine.runtimes]
test = ["{runtime}"]
"""
_STORAGE = """[storage]
driver = "overlay"
graphroot = "{folder}/storage"
runroot = "/run/storage"
"""


@dataclass(frozen=True)
class Podman:
    """Podman with a storage of its own.

    Attributes:
        folder: Everything of it.
        root: The unpacked packages.
        pid: The first process of its namespaces.
    """

    folder: Path
    root: Path
    pid: int

    name = "podman"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which ``podman`` and kind find everything."""
        return make_environment(self.root) | {
            "CONTAINERS_CONF": str(self.folder / "containers.conf"),
            "CONTAINERS_STORAGE_CONF": str(self.folder / "storage.conf"),
            "HOME": str(self.folder),
            "KIND_EXPERIMENTAL_PROVIDER": self.name,
            "LD_LIBRARY_PATH": str(self.root / "usr/lib/x86_64-linux-gnu"),
        }

    def command(self, *arguments: str) -> list[str]:
        """A command in Podman's namespaces."""
        return [
            "nsenter",
            f"--target={self.pid}",
            "--net",
            "--mount",
            "--pid",
            "env",
            f"--chdir={Path.cwd()}",
            *arguments,
        ]

    def run(self, *arguments: str, timeout_s: float = 60) -> str:
        """Run podman; return its output."""
        done = subprocess.run(
            self.command("podman", *arguments),
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"podman {arguments[0]}: {done.stderr}"
        return done.stdout


@contextmanager
def running_podman(journal: Journal) -> Iterator[Podman]:
    """Podman with kind's node image as `image.NAME`; nothing of it is left at the end."""
    archive = image.ensure(journal)
    root = debian.unpack(PACKAGES, journal)
    before = {path for path in _find_cgroups() if path.exists()}
    folder = Path(tempfile.mkdtemp(prefix="kind-podman-"))
    runtime = write_runtime(folder)
    (folder / "containers.conf").write_text(_CONTAINERS.format(folder=folder, root=root, runtime=runtime))
    (folder / "storage.conf").write_text(_STORAGE.format(folder=folder))
    policy = folder / ".config/containers/policy.json"
    policy.parent.mkdir(parents=True)
    policy.write_text(json.dumps({"default": [{"type": "insecureAcceptAnything"}]}))
    namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *namespaces, "sh", "-ec", _SCRIPT.format(ready=folder / _READY)],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        wait_until(
            "Podman's namespaces",
            lambda: Observation((folder / _READY).exists(), "not yet"),
            timeout_s=120,
            journal=journal,
            interval_s=0.1,
            error=EnvironmentUnusable,
        )
        (first,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        podman = Podman(folder, root, int(first))
        changes = [part for change in image.CHANGES for part in ("--change", change)]
        podman.run("import", *changes, str(archive), image.NAME, timeout_s=_IMPORT_S)
        yield podman
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for path in _find_cgroups():
            if path not in before:
                cgroups.remove(path)
        shutil.rmtree(folder)


def _find_cgroups() -> list[Path]:
    return [hierarchy / _CGROUP for hierarchy in cgroups.hierarchies()]

"""A Docker daemon for a test: in namespaces of its own, so that nothing of the machine's network or mounts is touched.

Its bridge, packet filter rules and mounts end with its first process, which ends with the test. A run that uses it has
to be in its network: see `Docker.command`.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_stage.cluster.local import cgroups
from pytest_vllm_stage.cluster.local.files import may_lower_oom
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from tests.real.kind_node import debian, image, oci_runtime

#: The daemon, its client, and the library of it that a minimal system lacks.
PACKAGES = ("docker.io", "libdevmapper1.02.1", "tini")
_RUNTIME = "test"
_START_S = 60.0
_IMPORT_S = 300.0
#: The first process of the namespaces; /run is its own, so that no other containerd is found there.
_SCRIPT = "mount -t tmpfs tmpfs /run; ip link set lo up; exec tini -- dockerd --config-file {config} >{log} 2>&1"


@dataclass(frozen=True)
class Docker:
    """A running daemon.

    Attributes:
        folder: Everything of it.
        root: The unpacked packages.
        pid: The process that holds its network.
    """

    folder: Path
    root: Path
    pid: int

    name = "docker"

    @property
    def environment(self) -> dict[str, str]:
        """Variables with which ``docker`` and kind find it."""
        return make_environment(self.root) | {
            "DOCKER_HOST": f"unix://{self.folder}/docker.sock",
            "KIND_EXPERIMENTAL_PROVIDER": self.name,
        }

    def command(self, *arguments: str) -> list[str]:
        """A command in the daemon's network, where the ports are that it publishes."""
        return ["nsenter", f"--net=/proc/{self.pid}/ns/net", "--", *arguments]

    def run(self, *arguments: str, timeout_s: float = 60) -> str:
        """Run docker; return its output."""
        done = subprocess.run(
            ["docker", *arguments],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0, f"docker {arguments[0]}: {done.stderr}"
        return done.stdout


@contextmanager
def running_docker(journal: Journal) -> Iterator[Docker]:
    """A daemon with kind's node image as `image.NAME`; nothing of it is left at the end."""
    archive = image.ensure(journal)
    root = debian.unpack(PACKAGES, journal)
    folder, group = Path(tempfile.mkdtemp(prefix="kind-docker-")), f"kind-docker-{secrets.token_hex(3)}"
    (folder / "daemon.json").write_text(json.dumps(_settings(folder, group)))
    script = _SCRIPT.format(config=folder / "daemon.json", log=folder / "log")
    namespaces = ["unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
    process = subprocess.Popen(
        ["setpriv", "--pdeathsig", "KILL", *namespaces, "sh", "-ec", script],
        env=make_environment(root) | {"LD_LIBRARY_PATH": str(root / "lib/x86_64-linux-gnu")},
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    docker = Docker(folder, root, process.pid)
    try:
        wait_until(
            "docker version",
            lambda: _answers(docker, process),
            timeout_s=_START_S,
            journal=journal,
            error=EnvironmentUnusable,
            hint=f"{folder}/log",
        )
        changes = [part for change in image.CHANGES for part in ("--change", change)]
        docker.run("import", *changes, str(archive), image.NAME, timeout_s=_IMPORT_S)
        yield docker
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        for hierarchy in cgroups.hierarchies():
            cgroups.remove(hierarchy / group)
        shutil.rmtree(folder)


def make_environment(root: Path) -> dict[str, str]:
    """This environment with the unpacked programs first, without what is meant for another pytest or Docker."""
    programs = os.pathsep.join(str(root / name) for name in ("usr/bin", "usr/sbin"))
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("PYTEST_", "DOCKER_"))}
    return environment | {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}"}


def write_runtime(folder: Path) -> Path:
    """The OCI runtime for this machine: a program that runs runc, without what this machine cannot do."""
    runc = str(shutil.which("runc"))
    command = [runc] if may_lower_oom() else [sys.executable, "-I", "-S", oci_runtime.__file__, runc]
    runtime = folder / "runtime"
    runtime.write_text(f'#!/bin/sh\nexec {shlex.join(command)} "$@"\n')
    runtime.chmod(0o755)
    return runtime


def _settings(folder: Path, group: str) -> dict[str, object]:
    return {
        "data-root": str(folder / "data"),
        "exec-root": "/run/docker",
        "pidfile": "/run/docker.pid",
        "hosts": [f"unix://{folder}/docker.sock"],
        "storage-driver": "overlay2",
        "cgroup-parent": f"/{group}",
        "ip6tables": False,
        "runtimes": {_RUNTIME: {"path": str(write_runtime(folder))}},
        "default-runtime": _RUNTIME,
    }


def _answers(docker: Docker, process: subprocess.Popen[bytes]) -> Observation:
    if process.poll() is not None:
        log = (docker.folder / "log").read_text() if (docker.folder / "log").exists() else ""
        raise EnvironmentUnusable(f"dockerd ended with {process.returncode}: {log[-1000:]}")
    done = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"],
        env=docker.environment,
        capture_output=True,
        text=True,
        check=False,
    )
    return Observation(done.returncode == 0, (done.stdout or done.stderr).strip()[-200:])

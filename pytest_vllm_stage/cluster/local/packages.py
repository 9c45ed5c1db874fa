"""The programs that a distribution ships: found by name, installed by ``apt-get`` where they are missing."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal

#: Program to the Debian package that ships it.
PROGRAMS = {
    "containerd": "containerd",
    "ctr": "containerd",
    "runc": "runc",
    "iptables": "iptables",
    "ip": "iproute2",
    "openssl": "openssl",
    "mount": "mount",
    "nsenter": "util-linux",
    "setpriv": "util-linux",
    "unshare": "util-linux",
}
_CNI_PLUGINS = ("ptp", "host-local", "loopback")
_CNI_PACKAGE = "containernetworking-plugins"
_CNI_DIRS = (Path("/usr/lib/cni"), Path("/opt/cni/bin"), Path("/usr/libexec/cni"))
#: Where programs of root are; a plain user's PATH may lack them.
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def cni_dir() -> Path | None:
    """The folder with the CNI plugins; None where no folder has them all."""
    for folder in _CNI_DIRS:
        if all((folder / plugin).exists() for plugin in _CNI_PLUGINS):
            return folder
    return None


def missing() -> dict[str, str]:
    """Missing programs (or plugins), mapped to their packages."""
    absent = {program: package for program, package in PROGRAMS.items() if not shutil.which(program, path=SYSTEM_PATH)}
    if cni_dir() is None:
        absent[f"CNI plugins {', '.join(_CNI_PLUGINS)}"] = _CNI_PACKAGE
    return absent


def ensure(journal: Journal) -> None:
    """Install what is missing.

    Raises:
        EnvironmentUnusable: something is missing and cannot be installed; names everything that is missing.
    """
    absent = missing()
    if not absent:
        return
    names = sorted(set(absent.values()))
    command = f"apt-get install --no-install-recommends {' '.join(names)}"
    if os.geteuid() != 0 or not shutil.which("apt-get"):
        raise EnvironmentUnusable(
            f"missing for a local cluster: {', '.join(sorted(absent))}", hint=f"as root: {command} (or your system's)"
        )
    with journal.phase(f"install {' '.join(names)}"):
        _apt("update")
        _apt("install", "--yes", "--no-install-recommends", *names)
    if absent := missing():
        raise EnvironmentUnusable(f"still missing after {command}: {', '.join(sorted(absent))}")


def _apt(*arguments: str) -> None:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    result = subprocess.run(["apt-get", *arguments], capture_output=True, text=True, check=False, env=environment)
    if result.returncode:
        tail = (result.stdout + result.stderr).strip()[-1000:]
        raise EnvironmentUnusable(f"apt-get {' '.join(arguments)} exited with {result.returncode}\n  {tail}")

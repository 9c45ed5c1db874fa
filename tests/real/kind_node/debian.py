"""Programs from the distribution's packages, unpacked into the cache: nothing is installed, and no daemon starts."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path

from pytest_vllm_stage.core import build_once
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import cache_dir

_DOWNLOAD_S = 300.0
_HINT = "as root: apt-get update"


def unpack(names: tuple[str, ...], journal: Journal) -> Path:
    """Unpack packages, without those that they depend on; return the folder that takes the place of ``/``.

    Raises:
        EnvironmentUnusable: there is no apt, or it does not know a package.
    """
    if not shutil.which("apt-get"):
        raise EnvironmentUnusable(f"no apt-get, which would fetch {', '.join(names)}")
    fingerprint = hashlib.sha256(json.dumps([names, find_versions(names)]).encode()).hexdigest()[:12]
    folder = cache_dir() / "tests" / f"{names[0]}-{fingerprint}"

    def make(build: build_once.Build) -> build_once.Facts:
        environment = dict(os.environ)
        command = ["apt-get", "download", *names]
        build.run(f"apt-get download {names[0]}", command, timeout_s=_DOWNLOAD_S, advise=_advise, env=environment)
        for archive in sorted(build.folder.glob("*.deb")):
            command = ["dpkg", "--extract", str(archive), str(build.folder / "root")]
            build.run(f"unpack {archive.name}", command, timeout_s=60, advise=_advise, env=environment)
            archive.unlink()
        return {"packages": names}

    build_once.ensure(folder, f"packages {' '.join(names)}", make, journal)
    return folder / "root"


def find_versions(names: tuple[str, ...]) -> list[str]:
    """The versions that apt would fetch, one for each package.

    Raises:
        EnvironmentUnusable: apt does not know one of them.
    """
    done = subprocess.run(
        ["apt-cache", "show", "--no-all-versions", *names], capture_output=True, text=True, check=False
    )
    versions = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("Version: ")]
    if len(versions) != len(names):
        raise EnvironmentUnusable(f"apt knows {len(versions)} of the packages {', '.join(names)}", hint=_HINT)
    return versions


def _advise(_output: str) -> str:
    return _HINT

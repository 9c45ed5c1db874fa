"""Resolve ``pins/requirements.in`` into ``pins/requirements.txt``: every version, and the hash of each wheel that fits.

    python -m pytest_vllm_stage.engine.pins

Run it after a change of ``requirements.in`` or ``overrides.txt``, and commit what it writes. Only wheels for CPython
3.11 on x86_64 Linux are pinned, so that the file says exactly what an environment can be made of.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

import uv
from packaging import tags, utils

FOLDER = Path(__file__).resolve().parent / "pins"
REQUIREMENTS = FOLDER / "requirements.txt"

#: The interpreter that the pins are for.
PYTHON = (3, 11)
#: The oldest C library that they run on: llguidance asks for 2.31.
PLATFORM = "x86_64-manylinux_2_31"

_HEADER = """\
# Made by `python -m pytest_vllm_stage.engine.pins` from requirements.in and overrides.txt; do not edit.
# CPython {python}, {platform}; {count} packages, {gigabytes:.1f} GB to download.
"""


def versions(requirements: Path = REQUIREMENTS) -> dict[str, str]:
    """Package name to pinned version."""
    lines = requirements.read_text().splitlines()
    return dict(line.removesuffix(" \\").split("==") for line in lines if "==" in line and not line.startswith("#"))


def resolve() -> list[dict[str, Any]]:
    """The packages of a fresh resolution, as in pylock.toml."""
    with tempfile.TemporaryDirectory() as folder:
        lock = Path(folder) / "pylock.toml"
        command = [uv.find_uv_bin(), "pip", "compile", "--quiet", "--format", "pylock.toml", "--output-file", str(lock)]
        command += ["--python-version", "{}.{}".format(*PYTHON), "--python-platform", PLATFORM]
        command += ["--only-binary", ":all:", "--overrides", "overrides.txt", "requirements.in"]
        subprocess.run(command, cwd=FOLDER, check=True)
        packages: list[dict[str, Any]] = tomllib.loads(lock.read_text())["packages"]
        return packages


def render(packages: list[dict[str, Any]]) -> str:
    """The requirements file of these packages."""
    blocks, size_bytes = [], 0
    for package in packages:
        wheels = [wheel for wheel in package["wheels"] if _fits(wheel)]
        hashes = sorted(f"--hash=sha256:{wheel['hashes']['sha256']}" for wheel in wheels)
        blocks.append(" \\\n    ".join([f"{package['name']}=={package['version']}", *hashes]))
        size_bytes += min(wheel["size"] for wheel in wheels)
    python = "{}.{}".format(*PYTHON)
    header = _HEADER.format(python=python, platform=PLATFORM, count=len(blocks), gigabytes=size_bytes / 1e9)
    return header + "\n".join(blocks) + "\n"


def _fits(wheel: dict[str, Any]) -> bool:
    """The wheel is for this Python; its platform was sorted out by the resolver."""
    _name, _version, _build, wheel_tags = utils.parse_wheel_filename(wheel["url"].rsplit("/", 1)[-1])
    platforms = sorted({tag.platform for tag in wheel_tags})
    fitting = {*tags.cpython_tags(PYTHON, platforms=platforms), *tags.compatible_tags(PYTHON, "cp311", platforms)}
    return not fitting.isdisjoint(wheel_tags)


if __name__ == "__main__":
    REQUIREMENTS.write_text(render(resolve()))
    sys.stderr.write(f"wrote {REQUIREMENTS}\n")

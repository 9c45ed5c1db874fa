"""Environments of their own for what tests run against, made once a machine: their packages are not the project's."""

from __future__ import annotations

import hashlib
import json
import sys
from pathlib import Path

import uv

from pytest_vllm_stage.core import build_once
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import cache_dir
from pytest_vllm_stage.engine.environment import clean_environ


def ensure(name: str, pins: Path, journal: Journal, *more: str) -> Path:
    """Make an environment unless it is there.

    Args:
        name: What it is for.
        pins: Requirements file with every package at one version.
        journal: Takes the phase.
        more: Requirements besides those of the file.

    Returns:
        The folder of its programs.
    """
    fingerprint = hashlib.sha256(pins.read_bytes() + json.dumps([sys.version, sys.base_prefix, *more]).encode())
    folder = cache_dir() / "tests" / f"{name}-{fingerprint.hexdigest()[:12]}"

    def make(build: build_once.Build) -> build_once.Facts:
        program, python = uv.find_uv_bin(), str(build.folder / "bin" / "python")
        venv = [program, "venv", "--allow-existing", "--python", sys.executable, str(build.folder)]
        build.run(f"environment of {name}", venv, timeout_s=60, advise=_advise, env=clean_environ())
        install = [program, "pip", "install", "--python", python, "--no-deps", "--requirements", str(pins), *more]
        build.run(f"packages of {name}", install, timeout_s=300, advise=_advise, env=clean_environ())
        return {"requirements": [*pins.read_text().split(), *more]}

    build_once.ensure(folder, f"environment of {name}", make, journal)
    return folder / "bin"


def _advise(_output: str) -> str:
    return "the output says what uv missed; the package index must be reachable"

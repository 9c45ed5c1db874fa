"""Building a component for real: a build that is killed leaves neither processes nor a broken cache."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.cluster.local.component import MODULES
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until

pytestmark = pytest.mark.real

BUILD = """
from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.core.journal import Journal
components.ensure(Journal(None, lambda line: print(line, flush=True)), names=["etcd"])
"""


def find_builders(cache: Path) -> list[int]:
    """Processes that build a component for this cache; other tests may build for another at the same time."""
    setting = f"VLLM_STAGE_CACHE_DIR={cache}".encode()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            in_source = Path(os.readlink(entry / "cwd")) == MODULES / "cluster"
            if in_source and setting in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
    return found


def await_builders(cache: Path, are_there: bool) -> None:
    wait_until(
        f"builders there: {are_there}",
        lambda: Observation(bool(find_builders(cache)) is are_there, f"{find_builders(cache)}"),
        timeout_s=180,
        journal=Journal(),
        interval_s=0.02,
        error=EnvironmentUnusable,
    )


def test_a_killed_build_leaves_no_process_and_the_next_one_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", BUILD]) as build:
        await_builders(tmp_path, True)
        os.kill(build.pid, signal.SIGKILL)
    await_builders(tmp_path, False)
    assert [path.name for path in (tmp_path / "components").glob("etcd-*")] == []
    etcd = components.ensure(Journal(), names=["etcd"])["etcd"]
    shown = subprocess.run([etcd, "--version"], capture_output=True, text=True, check=True).stdout
    assert components.versions()["etcd"].removeprefix("v") in shown
    assert list((tmp_path / "components").glob(".building-*")) == []

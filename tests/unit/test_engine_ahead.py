"""The engine is created in another process while the cluster's programs are built."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.core import build_once
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.engine import ahead

#: Stands for the creation of the engine: it states that it began, and does not end.
ENDLESS = "import pathlib, sys, time; pathlib.Path(sys.argv[1]).write_text('begun'); time.sleep(600)"


def await_text(path: Path) -> None:
    wait_until(
        "the other process works",
        lambda: Observation(path.exists() and path.read_text() != "", "not yet"),
        timeout_s=60,
        journal=Journal(),
        interval_s=0.05,
        error=EnvironmentUnusable,
    )


def processes_with(text: str) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if text in command:
            found.append(command)
    return found


def test_the_process_works_during_the_block_and_ends_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun = tmp_path / "begun"
    prefix = [*build_once.end_with_this_process(), sys.executable, "-c", ENDLESS, str(begun)]
    monkeypatch.setattr(build_once, "end_with_this_process", lambda: prefix)
    with ahead.creating_engine():
        await_text(begun)
        assert processes_with(str(begun))
    wait_until(
        "it has ended",
        lambda: Observation(not processes_with(str(begun)), "still there"),
        timeout_s=60,
        journal=Journal(),
        interval_s=0.05,
        error=EnvironmentUnusable,
    )


def test_components_are_built_when_each_folder_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(tmp_path))
    assert not components.are_built()
    for component in components.COMPONENTS:
        component.folder.mkdir(parents=True)
    assert components.are_built()

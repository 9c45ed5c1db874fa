"""The simulated engine's environment and made-up weights: whole, made once, and independent of this environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pytest_vllm_stage.core.journal import Journal, read_events
from pytest_vllm_stage.engine import simulated, weights
from pytest_vllm_stage.engine.environment import EngineEnvironment


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[EngineEnvironment, Path]:
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(tmp_path / "cache"))
    return simulated.ensure(Journal())


def test_the_simulator_runs_from_it_with_the_standard_library_alone(made: tuple[EngineEnvironment, Path]) -> None:
    environment, _ = made
    program = (
        "import sys, pytest_vllm_stage; from pytest_vllm_stage.standins.engine import __main__, faults\n"
        "print(pytest_vllm_stage.__file__, len(faults.registry()), __main__.parser().prog)"
    )
    command = [str(environment.python), "-S", "-P", "-B", "-c", program]
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": str(environment.site_packages)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    where, faults, _ = done.stdout.split(maxsplit=2)
    assert where.startswith(str(environment.site_packages))
    assert int(faults) > 30


def test_bytecode_lies_next_to_the_modules_wherever_this_process_keeps_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("PYTHONPYCACHEPREFIX", str(tmp_path / "elsewhere"))
    monkeypatch.setattr(sys, "pycache_prefix", str(tmp_path / "elsewhere"))
    package = simulated.ensure(Journal())[0].site_packages / "pytest_vllm_stage"
    modules = sorted(package.rglob("*.py"))
    assert modules
    missing = [path for path in modules if not list((path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"))]
    assert missing == []


def test_existing_engine_is_not_rebuilt(made: tuple[EngineEnvironment, Path], tmp_path: Path) -> None:
    journal = Journal(tmp_path / "events.jsonl")
    assert simulated.ensure(journal) == made
    assert not (tmp_path / "events.jsonl").exists() or read_events(tmp_path / "events.jsonl") == []


def test_changed_simulator_is_rebuilt(
    made: tuple[EngineEnvironment, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    environment, _ = made
    package = environment.site_packages / "pytest_vllm_stage"
    with (package / "standins" / "engine" / "engine.py").open("a") as file:
        file.write("# changed\n")
    monkeypatch.setattr("pytest_vllm_stage.core.paths.PACKAGE", package)
    assert simulated.ensure(Journal())[0].prefix != environment.prefix


def test_weights_verify_and_state_that_they_are_not_a_model(made: tuple[EngineEnvironment, Path]) -> None:
    _, folder = made
    assert sorted(path.name for path in folder.iterdir()) == sorted(weights.VARIANTS)
    for model in weights.VARIANTS:
        assert weights.verify(folder / model) == []
        manifest = json.loads((folder / model / weights.MANIFEST).read_text())
        assert (manifest["model"], manifest["precision"]) == (model, "simulated")
        assert {file["path"] for file in manifest["files"]} == {"config.json", "model.safetensors"}
        assert json.loads((folder / model / "config.json").read_text())["simulated"] is True
        data = (folder / model / "model.safetensors").read_bytes()
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        assert len(data) - 8 - len(json.dumps(header).encode()) == header["noise"]["data_offsets"][1]


def test_its_versions_name_the_simulator_and_no_vllm(made: tuple[EngineEnvironment, Path]) -> None:
    assert set(made[0].versions) == {"simulated-engine", "python"}
    assert made[0].base_prefix == Path(sys.base_prefix)

"""The wheel alone, in an environment of its own and an empty folder: it carries the suites and what they send."""

from __future__ import annotations

import json
import os
import re
import subprocess
import zipfile
from pathlib import Path

import pytest
import uv

from tests.unit.sim_engine import running_sim

ROOT = Path(__file__).parents[2]
COMMAND = r"^pytest (--rootdir=\. --pyargs pytest_vllm_stage\.suites) "


def call(*command: str | Path, folder: Path) -> str:
    environment = {
        key: value for key, value in os.environ.items() if key not in ("PYTEST_ADDOPTS", "VIRTUAL_ENV", "CI")
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    call(uv.find_uv_bin(), "build", "--quiet", "--wheel", "--out-dir", folder, folder=ROOT)
    (built,) = folder.glob("*.whl")
    return built


def test_the_wheel_has_the_suites_and_leaves_out_what_only_tests_need(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "pytest_vllm_stage/suites/inference/test_streaming.py" in names
    assert "pytest_vllm_stage/_fixtures/profiles/local.toml" in names
    assert "pytest_vllm_stage/py.typed" in names
    assert [name for name in names if "modules/tekton" in name or name.startswith("tests/")] == []


def test_the_documented_command_runs_from_an_empty_folder(wheel: Path, tmp_path: Path) -> None:
    documented = re.search(COMMAND, (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert documented, "README does not say how to run the suites of an installed wheel"
    environment, folder = tmp_path / "environment", tmp_path / "empty"
    folder.mkdir()
    call(uv.find_uv_bin(), "venv", "--quiet", "--python", "3.11", environment, folder=tmp_path)
    options: list[str | Path] = ["--quiet", "--python", environment, "--constraint", ROOT / ".ci" / "constraints.txt"]
    call(uv.find_uv_bin(), "pip", "install", *options, wheel, folder=tmp_path)
    with running_sim("--ttft-ms", "2", "--itl-ms", "1", "--max-model-len", "2048") as sim:
        output = call(
            environment / "bin" / "pytest", *documented.group(1).split(), f"--stage-endpoint={sim.url}",
            "--stage-run-dir=run", "-m", "smoke", folder=folder,
        )  # fmt: skip
    assert "rootdir: " + str(folder) in output
    record = json.loads((folder / "run" / "run.json").read_text())
    outcomes = [test["outcome"] for test in record["tests"] if "inference/" in test["name"]]
    assert outcomes.count("passed") >= 5, output

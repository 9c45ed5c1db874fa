"""The manifest of a model folder: what it lists, and what it catches."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.engine import weights
from pytest_vllm_stage.engine.environment import EngineEnvironment


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / weights.QUANTIZED
    (folder / "sub").mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "model.safetensors").chmod(0o600)
    (folder / "config.json").write_text("{}")
    (folder / "sub" / "a.txt").write_text("a")
    weights.write_manifest(folder, "w4a16", "a.gguf of somewhere 1.0")
    return folder


def test_the_manifest_lists_each_file_with_size_and_hash(folder: Path) -> None:
    manifest = json.loads((folder / weights.MANIFEST).read_text())
    assert manifest["model"] == "smollm2-135m-quantized"
    assert manifest["precision"].startswith("w4a16")
    assert manifest["source"] == "a.gguf of somewhere 1.0"
    assert [file["path"] for file in manifest["files"]] == ["config.json", "model.safetensors", "sub/a.txt"]
    assert manifest["files"][2] == {
        "path": "sub/a.txt",
        "size_bytes": 1,
        "sha256": "ca978112ca1bbdcafac231b39a23dc4da786eff8147c4e72b9807785afee48bb",
    }


def test_a_pod_of_any_user_can_read_the_files(folder: Path) -> None:
    assert (folder / "model.safetensors").stat().st_mode & 0o777 == 0o644


def test_an_unaltered_folder_verifies(folder: Path) -> None:
    assert weights.verify(folder) == []


def test_an_altered_file_is_found_though_its_size_is_the_same(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weighty")
    (problem,) = weights.verify(folder)
    assert problem.startswith("model.safetensors has 7 bytes with SHA-256")


def test_a_missing_file_is_found(folder: Path) -> None:
    (folder / "sub" / "a.txt").unlink()
    assert weights.verify(folder) == ["sub/a.txt is missing"]


def test_an_environment_without_the_model_is_named(tmp_path: Path) -> None:
    environment = EngineEnvironment(tmp_path / "bin" / "python", tmp_path, tmp_path, {})
    with pytest.raises(EnvironmentUnusable, match="expected 1 GGUF file, got 0") as caught:
        weights._source(environment)
    assert str(tmp_path) in caught.value.hint

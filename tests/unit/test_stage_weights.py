"""The verification of weights: the Job, its report, and the loader script that runs in it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.checks.stage import weights
from pytest_vllm_stage.checks.stage.weights import Report
from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.stage.observe import runbook
from tests.unit.made_objects import job

LOADER = fixtures_dir() / "model-loader" / "loader.py"
GOOD = {"a": (3, "aaa"), "b": (4, "bbb")}


def test_the_job_reads_the_volume_and_holds_no_token() -> None:
    download = job()
    made = weights.verification_job(download, "node-1")
    spec = made["spec"]["template"]["spec"]
    container = spec["containers"][0]
    assert made["metadata"]["name"] == "verify-m"
    assert spec["volumes"][0]["persistentVolumeClaim"] == {"claimName": "model-m", "readOnly": True}
    assert all(mount["readOnly"] for mount in container["volumeMounts"])
    assert container["args"] == ["verify"]
    assert [entry["name"] for entry in container["env"]] == ["MODEL_SOURCE"]
    assert spec["nodeSelector"] == {"kubernetes.io/hostname": "node-1"}
    assert download == job(), "the declared Job was changed"


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        (Report(GOOD, GOOD, GOOD), []),
        (Report(GOOD, GOOD, None), []),
        (Report(GOOD, None, None), ["weights unverified: the volume has no manifest, or an empty one"]),
        (Report(GOOD, {}, None), ["weights unverified: the volume has no manifest, or an empty one"]),
        (Report({"a": (3, "aaa")}, GOOD, None), ["weights incomplete: file b is missing"]),
        (Report(GOOD | {"b": (4, "x")}, GOOD, None), ["weights altered: file b has sha256 x, manifest says bbb"]),
        (Report(GOOD | {"b": (5, "bbb")}, GOOD, None), ["weights altered: file b has 5 bytes, manifest says 4"]),
        (Report(GOOD | {"c": (1, "c")}, GOOD, None), ["weights altered: file c is not in the manifest"]),
        (
            Report(GOOD, GOOD, {"a": (3, "zzz")}),
            ["weights not the source's: file a has sha256 aaa in the manifest, zzz at the source"],
        ),
    ],
)
def test_each_disagreement_is_reported(report: Report, expected: list[str]) -> None:
    found = weights.problems(report)
    assert len(found) == len(expected)
    assert all(line.startswith(start) for line, start in zip(found, expected, strict=True))


def test_a_job_without_a_report_is_a_failure() -> None:
    with pytest.raises(StageFailure, match="job/v completed without a report"):
        weights.parse(["hello"], "v")


def source_in(folder: Path) -> Path:
    source = folder / "source"
    (source / "sub").mkdir(parents=True)
    (source / "model.safetensors").write_bytes(b"weights" * 1000)
    (source / "sub" / "tokenizer.json").write_text("{}")
    entries = [
        {"path": "model.safetensors", "size_bytes": 7000, "sha256": sha256(source / "model.safetensors")},
        {"path": "sub/tokenizer.json", "size_bytes": 2, "sha256": sha256(source / "sub" / "tokenizer.json")},
    ]
    (source / "MANIFEST.json").write_text(json.dumps({"model": "m", "source": "s", "files": entries}))
    return source


def sha256(path: Path) -> str:
    done = subprocess.run(["sha256sum", str(path)], capture_output=True, text=True, check=True)
    return done.stdout.split()[0]


def run_loader(mode: str, source: str, volume: Path, **env: str) -> subprocess.CompletedProcess[str]:
    volume.mkdir(exist_ok=True)
    wanted = {"MODEL_SOURCE": source, "MODEL_FOLDER": str(volume), "MODEL_NAME": "m", "PATH": os.environ["PATH"]}
    command = [sys.executable, str(LOADER), mode]
    return subprocess.run(command, env=wanted | env, capture_output=True, text=True, check=False, timeout=60)


def report_of(source: Path, volume: Path) -> Report:
    done = run_loader("verify", f"file://{source}", volume)
    assert done.returncode == 0, done.stderr
    return weights.parse(done.stdout.splitlines(), "v")


def test_a_download_is_complete_and_verifies(tmp_path: Path) -> None:
    source, volume = source_in(tmp_path), tmp_path / "volume"
    done = run_loader("download", f"file://{source}", volume)
    assert done.returncode == 0, done.stderr
    assert "complete: 2 files, 7002 bytes" in done.stdout
    report = report_of(source, volume)
    assert weights.problems(report) == []
    assert report.files["model.safetensors"] == (7000, sha256(source / "model.safetensors"))
    assert report.source == report.manifest
    again = run_loader("download", f"file://{source}", volume)
    assert "already there: 2 files" in again.stdout


def test_a_byte_changed_on_the_volume_is_found(tmp_path: Path) -> None:
    source, volume = source_in(tmp_path), tmp_path / "volume"
    run_loader("download", f"file://{source}", volume)
    with (volume / "model.safetensors").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"!")
    (line,) = weights.problems(report_of(source, volume))
    assert line.startswith("weights altered: file model.safetensors has sha256 ")


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        ("alter", "weights altered: file model.safetensors has sha256 "),
        ("remove", "weights incomplete: file model.safetensors is missing in "),
        ("forget", "model source {source} has no MANIFEST.json"),
    ],
)
def test_a_damaged_source_fails_the_download_in_one_line(tmp_path: Path, damage: str, expected: str) -> None:
    source, volume = source_in(tmp_path), tmp_path / "volume"
    if damage == "alter":
        (source / "model.safetensors").write_bytes(b"weightS" * 1000)
    else:
        (source / {"remove": "model.safetensors", "forget": "MANIFEST.json"}[damage]).unlink()
    done = run_loader("download", f"file://{source}", volume)
    assert done.returncode == 1
    assert (runbook.cause_of(done.stderr.splitlines()) or "").startswith(expected.format(source=source))
    assert not (volume / "MANIFEST.json").exists(), "a manifest says that the download is done"


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("file:///nowhere", "model source /nowhere does not exist"),
        ("ftp://x", "model source 'ftp://x' is none of file:// and hf://"),
    ],
)
def test_missing_source_is_reported(tmp_path: Path, source: str, expected: str) -> None:
    done = run_loader("download", source, tmp_path / "volume")
    assert done.stderr.strip() == f"error: {expected}"


#: Stands in for huggingface_hub in the loader's process; behaves as the environment variable HUB says.
HUB = """
import os, pathlib, types

class GatedRepoError(Exception): pass
class RepositoryNotFoundError(Exception): pass
class HfHubHTTPError(Exception):
    response = types.SimpleNamespace(status_code=403)

class HfApi:
    def model_info(self, name, revision, files_metadata):
        mode = os.environ["HUB"]
        if mode == "gated": raise GatedRepoError()
        if mode == "absent": raise RepositoryNotFoundError()
        if mode == "forbidden": raise HfHubHTTPError()
        lfs = types.SimpleNamespace(sha256=os.environ["SHA"])
        files = [types.SimpleNamespace(rfilename="model.safetensors", size=1, lfs=lfs),
                 types.SimpleNamespace(rfilename="README.md", size=1, lfs=None)]
        return types.SimpleNamespace(sha="c0ffee", siblings=files)

def snapshot_download(name, revision, local_dir):
    assert revision == "c0ffee", revision
    folder = pathlib.Path(local_dir)
    (folder / ".cache").mkdir()
    (folder / ".cache" / "note").write_text("not the model")
    (folder / "model.safetensors").write_bytes(b"w")
"""
W = "50e721e49c013f00c62cf59f2163542a9d8df02464efeb615d31051b0fddc326"


def hub(folder: Path, mode: str, **env: str) -> tuple[subprocess.CompletedProcess[str], Path]:
    package = folder / "packages" / "huggingface_hub"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text(HUB)
    (package / "errors.py").write_text("from huggingface_hub import *\n")
    volume = folder / "volume"
    wanted: dict[str, Any] = {"PYTHONPATH": str(package.parent), "HUB": mode, "SHA": W, "HF_TOKEN": "hf_x"} | env
    return run_loader("download", "hf://owner/name@main", volume, **wanted), volume


def test_hugging_face_files_are_held_against_the_hubs_hashes(tmp_path: Path) -> None:
    done, volume = hub(tmp_path, "fine")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((volume / "MANIFEST.json").read_text())
    assert [entry["path"] for entry in manifest["files"]] == ["model.safetensors"]
    (tmp_path / "other").mkdir()
    altered, _ = hub(tmp_path / "other", "fine", SHA="0" * 64)
    assert altered.stderr.startswith("error: weights altered: file model.safetensors")


@pytest.mark.parametrize(
    ("mode", "env", "expected"),
    [
        ("gated", {}, "token refused: the account of HF_TOKEN has no access to owner/name"),
        ("absent", {}, "model owner/name was not found, or the token was refused"),
        ("forbidden", {}, "token refused: HTTP 403 for owner/name"),
        ("fine", {"HF_TOKEN": ""}, "secret huggingface-token: HF_TOKEN is empty"),
    ],
)
def test_refusal_of_hugging_face_is_reported(tmp_path: Path, mode: str, env: dict[str, str], expected: str) -> None:
    done, _ = hub(tmp_path, mode, **env)
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {expected}")
    assert "hf_x" not in done.stderr + done.stdout

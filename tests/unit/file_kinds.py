"""The kinds of files that the product reads: a sound one of each, and its reader."""

from __future__ import annotations

import gzip
import json
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from pytest_vllm_stage.benchmark.artifacts import read_artifact
from pytest_vllm_stage.benchmark.job_summary import parse_summary
from pytest_vllm_stage.checks.inference.reference import Reference
from pytest_vllm_stage.cluster import kubeconfig_files
from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.load.guidellm.reading import read_report
from pytest_vllm_stage.measurement.samples_file import read_measurement
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from pytest_vllm_stage.publication import document
from pytest_vllm_stage.publication.bucket.manifest import describe_file, make_manifest, parse_manifest
from pytest_vllm_stage.report.run_data import load_run
from pytest_vllm_stage.settings.profile import load_profile
from pytest_vllm_stage.slo.baselines import KEY_FIELDS, Baseline, append_baseline, read_baselines
from pytest_vllm_stage.stage.deploy import secrets
from tests.unit import made_api, made_results, made_run
from tests.unit.mutations import write_toml

DATA = Path(__file__).parents[1] / "data"
NAME = "mutated"
OVERLAY = fixtures_dir() / "overlays" / "local"
STEP = LoadStep("s", "sim", CONSTANT, 3, 64, 16, request_rate=20.0)


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: A sound document, made in a folder.
        write: The document as the file's text.
        read: Reads the file.
        pack: Turns the text's bytes into those of the file.
        name: The file's name, which a refusal names.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], object]
    write: Callable[[Any], str] = json.dumps
    pack: Callable[[bytes], bytes] = bytes
    name: str = f"{NAME}.json"


def kubeconfig(_folder: Path) -> Any:
    return made_api.kubeconfig("https://127.0.0.1:6443", token="sesame")


def profile(_folder: Path) -> Any:
    return tomllib.loads((fixtures_dir() / "profiles" / "local.toml").read_text(encoding="utf-8"))


def reference(_folder: Path) -> Any:
    path = next(iter(sorted((fixtures_dir() / "prompts" / "references").glob("*.json"))))
    made = json.loads(path.read_text(encoding="utf-8"))
    made["scores"]["texts"] = dict(list(made["scores"]["texts"].items())[:1])
    return made


def baseline(folder: Path) -> Any:
    path = folder / "sound.jsonl"
    path.unlink(missing_ok=True)
    key = dict.fromkeys(KEY_FIELDS, "x")
    append_baseline(path, Baseline("r", 1.0, key, {"ttft_p50_ms": 100.0}, "steady", True))
    return json.loads(path.read_text(encoding="utf-8"))


def artifact(folder: Path) -> Any:
    made = made_results.write_folder(folder / "benchmarks", [made_results.measured(made_results.rate_step(1.0))])
    return json.loads(next(iter(made.glob("*.json"))).read_text(encoding="utf-8"))


def results(_folder: Path) -> Any:
    return json.loads(made_results.made(1.0).to_bytes())


def manifest(folder: Path) -> Any:
    file = folder / "file.json"
    file.write_text("{}")
    return json.loads(make_manifest("m", "v", "r", [describe_file(file)]).to_bytes())


def record(folder: Path) -> Any:
    run = made_run.make_run(folder / "run", made_run.check("a.py::test_a"))
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def journal(folder: Path) -> Any:
    run = made_run.make_run(folder / "run", made_run.check("a.py::test_a"))
    return [json.loads(line) for line in (run / "journal.jsonl").read_text(encoding="utf-8").splitlines()]


def env_file(_folder: Path) -> Any:
    return {"MINIO_ACCESS_KEY": "made-access", "MINIO_SECRET_KEY": "made-secret"}


def samples(_folder: Path) -> Any:
    text = gzip.decompress((DATA / "idle-server.samples.jsonl.gz").read_bytes()).decode()
    header, *rows, end = map(json.loads, text.splitlines())
    few = [row for row in rows if row["kind"] == "sample"][:3]
    return [header, *few, end | {"samples": len(few), "server": 0}]


def report(_folder: Path) -> Any:
    return json.loads((DATA / "guidellm-0.8.1-constant.json").read_text(encoding="utf-8"))


def summary(_folder: Path) -> Any:
    step = {"request_rate": 5.0, "object": "rate-5.json", "sha256": "0" * 64, "samples": 40, "planned": 40, "failed": 1}
    facts = {"duration_s": 8, "prompt_tokens": 64, "output_tokens": 16, "warmup_requests": 20, "request_timeout_s": 60}
    return {"model": "m", "lead_in": 1, "steps": [step], **facts}


def read_record(path: Path) -> object:
    return load_run(path.parent)


def read_journal(path: Path) -> object:
    assert not (path.parent / "run.json").exists()
    return load_run(path.parent)


def write_lines(document: Any) -> str:
    rows = document if isinstance(document, list) else [document]
    return "".join(json.dumps(row) + "\n" for row in rows)


def write_env(document: Any) -> str:
    return "".join(f"{key}={value}\n" for key, value in document.items())


KINDS = {
    "profile": Kind(profile, lambda path: load_profile(path.name, path.parent), write_toml, name=f"{NAME}.toml"),
    "kubeconfig": Kind(kubeconfig, lambda path: kubeconfig_files.read(str(path)), yaml.safe_dump),
    "reference": Kind(reference, Reference.read),
    "baselines": Kind(baseline, read_baselines),
    "artifact": Kind(artifact, read_artifact),
    "results document": Kind(results, lambda path: document.parse(path.read_bytes(), path.name)),
    "bucket manifest": Kind(manifest, lambda path: parse_manifest(path.read_bytes(), path.name)),
    "run record": Kind(record, read_record, name="run.json"),
    "journal": Kind(journal, read_journal, write_lines, name="journal.jsonl"),
    "env file": Kind(env_file, lambda path: secrets.load(OVERLAY, path), write_env, name=f"{NAME}.env"),
    "samples": Kind(samples, read_measurement, write_lines, gzip.compress, f"{NAME}.samples"),
    "GuideLLM report": Kind(report, lambda path: read_report(path, STEP)),
    "job summary": Kind(summary, lambda path: parse_summary(path.read_bytes(), path.name)),
}


def refusal_of(read: Callable[[Path], object], path: Path) -> str:
    """Why a file is refused; empty where it is read. Any other exception is a defect."""
    try:
        read(path)
    except StageError as error:
        return error.message
    return ""

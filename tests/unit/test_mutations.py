"""Files with one changed, missing, renamed or added value are read or refused by name: no traceback, no silent default.

`STAGE_MUTATIONS=10000 pytest tests/unit/test_mutations.py` is the long version.
"""

from __future__ import annotations

import json
import os
import random
import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.benchmark.artifacts import read_artifact
from pytest_vllm_stage.checks.inference.reference import Reference
from pytest_vllm_stage.cluster import kubeconfig_files
from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.publication import document
from pytest_vllm_stage.publication.bucket.manifest import describe_file, make_manifest, parse_manifest
from pytest_vllm_stage.report.run_data import load_run
from pytest_vllm_stage.settings.profile import load_profile
from pytest_vllm_stage.slo.baselines import KEY_FIELDS, Baseline, append_baseline, read_baselines
from pytest_vllm_stage.stage.deploy import render
from tests.unit import made_api, made_results, made_run
from tests.unit.mutations import mutate, write_toml
from tests.unit.recorded_stage import RecordedStage

MUTATIONS = int(os.environ.get("STAGE_MUTATIONS", "150"))
NAME = "mutated"


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    Attributes:
        make: A sound document, made in a folder.
        write: The document as the file's text.
        read: Reads the file.
        name: The file's name, which a refusal names.
    """

    make: Callable[[Path], Any]
    read: Callable[[Path], object]
    write: Callable[[Any], str] = json.dumps
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


def manifests(_folder: Path) -> Any:
    return RecordedStage.load().declared


def read_record(path: Path) -> object:
    return load_run(path.parent)


KINDS = {
    "profile": Kind(profile, lambda path: load_profile(path.name, path.parent), write_toml, f"{NAME}.toml"),
    "kubeconfig": Kind(kubeconfig, lambda path: kubeconfig_files.read(str(path)), yaml.safe_dump),
    "reference": Kind(reference, Reference.read),
    "baselines": Kind(baseline, read_baselines),
    "artifact": Kind(artifact, read_artifact),
    "results document": Kind(results, lambda path: document.parse(path.read_bytes(), path.name)),
    "bucket manifest": Kind(manifest, lambda path: parse_manifest(path.read_bytes(), path.name)),
    "run record": Kind(record, read_record, name="run.json"),
}


@pytest.fixture(scope="module", params=KINDS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Any, Path]:
    kind = KINDS[request.param]
    folder = tmp_path_factory.mktemp("mutations")
    return kind, kind.make(folder), folder


def refusal_of(read: Callable[[Path], object], path: Path) -> str:
    """Why a file is refused; empty where it is read. Any other exception is a defect."""
    try:
        read(path)
    except StageError as error:
        return error.message
    return ""


def test_the_sound_file_is_read(sound: tuple[Kind, Any, Path]) -> None:
    kind, made, folder = sound
    path = folder / kind.name
    path.write_text(kind.write(made), encoding="utf-8")
    kind.read(path)


@settings(derandomize=True, deadline=None, max_examples=MUTATIONS)
@given(seed=st.integers(0, 2**32))
def test_a_mutated_file_is_read_or_refused_by_its_name(sound: tuple[Kind, Any, Path], seed: int) -> None:
    kind, made, folder = sound
    changed, change = mutate(made, random.Random(seed))
    path = folder / kind.name
    path.write_text(kind.write(changed), encoding="utf-8")
    message = refusal_of(kind.read, path)
    assert not message or path.name in message, (change, message)


@settings(derandomize=True, deadline=None, max_examples=MUTATIONS)
@given(seed=st.integers(0, 2**32), cut=st.floats(0, 1), byte=st.integers(0, 255))
def test_a_truncated_or_altered_file_is_read_or_refused_by_its_name(
    sound: tuple[Kind, Any, Path], seed: int, cut: float, byte: int
) -> None:
    kind, made, folder = sound
    data = bytearray(kind.write(made).encode())
    if seed % 2:
        del data[int(len(data) * cut) :]
    else:
        data[min(int(len(data) * cut), len(data) - 1)] = byte
    path = folder / kind.name
    path.write_bytes(bytes(data))
    message = refusal_of(kind.read, path)
    assert not message or path.name in message


def test_a_renamed_key_of_a_profile_is_refused(tmp_path: Path) -> None:
    """A key that is not read would leave its default in place without a word."""
    made = profile(tmp_path)
    accepted = []
    for path in key_paths(made):
        changed = json.loads(json.dumps(made))
        parent = changed
        for step in path[:-1]:
            parent = parent[step]
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
        file = tmp_path / "renamed.toml"
        file.write_text(write_toml(changed), encoding="utf-8")
        if not refusal_of(lambda path: load_profile(path.name, path.parent), file):
            accepted.append(".".join(path))
    # The names of models are the profile's choice; those of load steps are compared with the planned ones.
    chosen = re.compile(r"models\.\w+|(?:models\.\w+\.)?slo\.(?:rate|concurrency)-\d+")
    assert [name for name in accepted if not chosen.fullmatch(name)] == []


def key_paths(value: Any, path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    found = []
    for key, item in value.items() if isinstance(value, dict) else ():
        found += [(*path, key), *key_paths(item, (*path, key))]
    return found


@settings(derandomize=True, deadline=None, max_examples=MUTATIONS)
@given(seed=st.integers(0, 2**32))
def test_mutated_manifests_are_ordered_or_refused(seed: int) -> None:
    changed, change = mutate(manifests(Path()), random.Random(seed))
    message = refusal_of(lambda overlay: order_manifests(changed, overlay), Path(NAME))
    assert not message or NAME in message, (change, message)


def order_manifests(documents: Any, overlay: Path) -> None:
    for one in documents:
        render.check_manifest(one, overlay, "kubectl kustomize")
    assert sum(map(len, render.waves(documents))) == len(documents)

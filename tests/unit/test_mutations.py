"""Files with one changed, missing, renamed or added value are read or refused by name: no traceback, no silent default.

`STAGE_MUTATIONS=10000 pytest tests/unit/test_mutations.py` is the long version.
"""

from __future__ import annotations

import json
import os
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.cluster import kubeconfig_files
from pytest_vllm_stage.report.html.page import render_page
from pytest_vllm_stage.report.markdown import render_markdown
from pytest_vllm_stage.report.openmetrics import render_metrics
from pytest_vllm_stage.report.run_data import load_run
from pytest_vllm_stage.settings.profile import load_profile
from pytest_vllm_stage.stage.deploy import render
from tests.unit.file_kinds import KINDS, NAME, Kind, refusal_of
from tests.unit.mutations import STRANGE, mutate, write_toml
from tests.unit.recorded_stage import RecordedStage

MUTATIONS = int(os.environ.get("STAGE_MUTATIONS", "150"))


@pytest.fixture(scope="module", params=KINDS)
def sound(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Kind, Any, Path]:
    kind = KINDS[request.param]
    folder = tmp_path_factory.mktemp("mutations")
    return kind, kind.make(folder), folder


def test_the_sound_file_is_read(sound: tuple[Kind, Any, Path]) -> None:
    kind, made, folder = sound
    path = folder / kind.name
    path.write_bytes(kind.pack(kind.write(made).encode()))
    kind.read(path)


@settings(derandomize=True, deadline=None, max_examples=MUTATIONS)
@given(seed=st.integers(0, 2**32))
def test_a_mutated_file_is_read_or_refused_by_its_name(sound: tuple[Kind, Any, Path], seed: int) -> None:
    kind, made, folder = sound
    changed, change = mutate(made, random.Random(seed))
    path = folder / kind.name
    path.write_bytes(kind.pack(kind.write(changed).encode()))
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
    path.write_bytes(kind.pack(bytes(data)))
    message = refusal_of(kind.read, path)
    assert not message or path.name in message


def test_a_renamed_key_of_a_profile_is_refused(tmp_path: Path) -> None:
    """A key that is not read would leave its default in place without a word."""
    made = KINDS["profile"].make(tmp_path)
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


@pytest.mark.parametrize("what", ["run record", "journal"])
@settings(derandomize=True, deadline=None, max_examples=MUTATIONS // 4)
@given(seed=st.integers(0, 2**32))
def test_a_mutated_run_is_reported_or_refused(what: str, seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    """What `load_run` accepts can be rendered: a wrong type is refused when it is read and not in a template."""
    kind, folder = KINDS[what], tmp_path_factory.mktemp("run")
    changed, _ = mutate(kind.make(folder), random.Random(seed))
    path = folder / kind.name
    path.write_text(kind.write(changed), encoding="utf-8")
    if not refusal_of(kind.read, path):
        data = load_run(folder)
        assert all(write(data) for write in (render_page, render_markdown, render_metrics))


@settings(derandomize=True, deadline=None, max_examples=MUTATIONS)
@given(seed=st.integers(0, 2**32))
def test_a_mutated_kubeconfig_gives_its_token_or_is_refused(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """The client's loader accepts what kubectl refuses: it would send a number, or a mapping, as the token."""
    from kubernetes.client import Configuration

    kind, folder = KINDS["kubeconfig"], tmp_path_factory.getbasetemp()
    made = kind.make(folder)
    changed, change = mutate(made, random.Random(seed))
    path, configuration = folder / "mutated-kubeconfig.yaml", Configuration()
    path.write_text(kind.write(changed), encoding="utf-8")
    context = made["contexts"][0]["name"]
    message = refusal_of(lambda path: kubeconfig_files.load(str(path), context, configuration, str(folder)), path)
    assert not message or path.name in message, change
    assert "sesame" not in message
    sent = set(configuration.api_key.values())
    assert sent <= {"Bearer sesame"} or sent <= {f"Bearer {value}" for value in STRANGE if isinstance(value, str)}


@settings(derandomize=True, deadline=None, max_examples=MUTATIONS)
@given(seed=st.integers(0, 2**32))
def test_mutated_manifests_are_ordered_or_refused(seed: int) -> None:
    changed, change = mutate(RecordedStage.load().declared, random.Random(seed))
    message = refusal_of(lambda overlay: order_manifests(changed, overlay), Path(NAME))
    assert not message or NAME in message, (change, message)


def order_manifests(documents: Any, overlay: Path) -> None:
    for one in documents:
        render.check_manifest(one, overlay, "kubectl kustomize")
    assert sum(map(len, render.waves(documents))) == len(documents)

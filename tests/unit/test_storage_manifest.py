"""Keys and URIs, and the manifest."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.core.errors import ConfigError, StageFailure
from pytest_vllm_stage.publication.bucket import manifest, names

NAME = st.text(min_size=1, max_size=12).filter(lambda text: text.isprintable())


@given(model=NAME, version=NAME, run=NAME, other=NAME)
def test_every_name_gives_three_levels_and_round_trips(model: str, version: str, run: str, other: str) -> None:
    prefix = names.build_prefix(model, version, run)
    parts = prefix.split("/")
    assert len(parts) == 4
    assert not {"", ".", ".."} & set(parts[:3])
    assert names.parse_uri(names.build_uri("results", prefix)) == ("results", prefix)
    assert names.parse_run(prefix + "a.json", names.build_prefix(model, version)) == run
    if other != run:
        assert names.build_prefix(model, version, other) != prefix


def test_a_key_outside_the_runs_belongs_to_none() -> None:
    assert names.parse_run("m/v/README", "m/v/") == ""


@pytest.mark.parametrize("uri", ["", "s3://", "s3://b", "s3://b/", "s3://b/m/v/r", "https://b/m/v/r/", "s3:///m/v/"])
def test_other_uris_are_refused(uri: str) -> None:
    with pytest.raises(ConfigError, match="must be s3://<bucket>/"):
        names.parse_uri(uri)


@pytest.fixture
def made(tmp_path: Path) -> manifest.Manifest:
    found = []
    for name in ("b.json", "a.samples.jsonl.gz"):
        (tmp_path / name).write_bytes(name.encode())
        found.append(manifest.describe_file(tmp_path / name))
    return manifest.make_manifest("m", "v", "r", found)


def test_a_manifest_round_trips(made: manifest.Manifest) -> None:
    assert manifest.parse_manifest(made.to_bytes(), "here") == made
    assert [file.name for file in made.files] == ["a.samples.jsonl.gz", "b.json"]
    assert made.files[1].sha256 == hashlib.sha256(b"b.json").hexdigest()
    assert [file.content_type for file in made.files] == ["application/gzip", "application/json"]


def test_differences_name_the_files(made: manifest.Manifest) -> None:
    other = manifest.make_manifest("m", "v", "r", made.files[:1])
    (line,) = made.differences(other)
    assert line.startswith("b.json: 6 bytes, sha256 ")
    assert line.endswith("here, absent there")
    assert made.differences(made) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "here: schema: expected vllm-stage/manifest"),
        ({"schema_version": 9}, "here: schema_version: expected 1, got 9"),
        ({"run": 5}, "here: model, version and run must be strings"),
        ({"files": {}}, "here: files: must be a list"),
        ({"files": [{"name": "a"}]}, r"here: files\[0\]: size_bytes: expected int, got NoneType"),
    ],
)
def test_a_wrong_manifest_is_refused_by_its_field(
    made: manifest.Manifest, change: dict[str, Any], message: str
) -> None:
    content = json.dumps(json.loads(made.to_bytes()) | change).encode()
    with pytest.raises(StageFailure, match=message):
        manifest.parse_manifest(content, "here")


def test_a_corrupt_manifest_is_named(made: manifest.Manifest) -> None:
    with pytest.raises(StageFailure, match="here: the manifest is corrupt"):
        manifest.parse_manifest(made.to_bytes()[:-20], "here")

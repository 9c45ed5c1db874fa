"""Models in a bucket of the stage: what they lack is named, and whole ones, and other stores', are left alone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage.s3 import ObjectStore
from pytest_vllm_stage.stage.stored_models import find_missing_files, find_models_in
from tests.unit.made_objects import service
from tests.unit.web_server import s3_objects, web_server

FILES = {"model-00001-of-00002.safetensors": b"1", "model-00002-of-00002.safetensors": b"2"}
INDEX = json.dumps({"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}})
WHOLE = {"config.json": b"{}", "model.safetensors.index.json": INDEX.encode(), **FILES}


def lines_for(files: dict[str, bytes]) -> list[str]:
    with web_server(s3_objects({f"models/m/{name}": content for name, content in files.items()})) as server:
        store = ObjectStore(server.url, Secret("someone"), Secret("correct-horse"))
        return list(find_missing_files(store, store.client(), "m", "models", "m"))


#: The index of one format, and the weights in another one.
CONSOLIDATED = {"model.safetensors.index.json": INDEX.encode(), "consolidated.safetensors": b"1"}


@pytest.mark.parametrize(
    "files", [WHOLE, {"config.json": b"{}", "model.safetensors": b"1"}, {"m.gguf": b"1"}, CONSOLIDATED]
)
def test_a_whole_model_lacks_nothing(files: dict[str, bytes]) -> None:
    assert lines_for(files) == []


def test_a_model_that_was_deleted_or_uploaded_in_part_is_named() -> None:
    assert lines_for({}) == ["s3://models/m is empty: inferenceservice/m loads its model from there when a pod starts"]
    (line,) = lines_for({name: content for name, content in WHOLE.items() if not name.startswith("model-00002")})
    assert line.startswith(
        "s3://models/m lacks 1 of the 2 files that model.safetensors.index.json names, model-00002-of"
    )
    assert lines_for({"model.safetensors.index.json": b"[]"}) == [], "not an index"


def secret(endpoint: str) -> dict[str, Any]:
    return {"kind": "Secret", "metadata": {"name": "s3", "annotations": {"serving.kserve.io/s3-endpoint": endpoint}}}


@pytest.mark.parametrize(
    ("endpoint", "uri", "found"),
    [
        ("minio:9000", "s3://models/a/b/", {"m": ("models", "a/b")}),
        ("http://minio.vllm-stage.svc:9000", "s3://models/a", {"m": ("models", "a")}),
        ("s3.eu-central-1.amazonaws.com", "s3://models/a", {}),
        ("https://minio.example.org", "s3://models/a", {}),
        ("minio:9000", "s3://elsewhere/a", {}),
        ("minio:9000", "pvc://models/a", {}),
    ],
)
def test_models_in_the_stages_own_buckets_are_found(endpoint: str, uri: str, found: dict[str, Any]) -> None:
    assert find_models_in([secret(endpoint), service(storageUri=uri)], ["models", "test-results"]) == found

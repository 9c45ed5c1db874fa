"""The stand-in's description of itself: whole, consistent, and true of what is served."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest

from pytest_vllm_stage.standins.registry.kinds import ARTIFACTS, KINDS
from pytest_vllm_stage.standins.registry.openapi import description
from pytest_vllm_stage.standins.registry.routes import ROUTES
from tests.unit.standin_registry import Standin

DOCUMENT = json.loads(description())
SCHEMAS = DOCUMENT["components"]["schemas"]


def references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from [value["$ref"]] if "$ref" in value else []
        for item in value.values():
            yield from references(item)
    elif isinstance(value, list):
        for item in value:
            yield from references(item)


def test_every_route_is_described_and_nothing_else() -> None:
    described = {
        path.removeprefix("/"): {method.upper() for method in item} for path, item in DOCUMENT["paths"].items()
    }
    assert described == {path: set(methods) for path, methods in ROUTES.items()}
    operations = [operation for item in DOCUMENT["paths"].values() for operation in item.values()]
    ids = [operation["operationId"] for operation in operations]
    assert len(set(ids)) == len(ids) == 40


def test_every_reference_leads_somewhere_and_every_schema_is_used() -> None:
    used = {text.removeprefix("#/components/schemas/") for text in references(DOCUMENT)}
    assert used <= set(SCHEMAS)
    unused = set(SCHEMAS) - used
    # A data set, metric or parameter is only given and listed as an artifact, and a serve is never patched.
    assert unused == {f"{name}{purpose}" for name in ("DocArtifact", "DataSet", "Metric", "Parameter")
                      for purpose in ("Create", "Update", "List")} | {"ServeModelUpdate"}  # fmt: skip


def test_every_path_with_an_id_says_so() -> None:
    for path, item in DOCUMENT["paths"].items():
        for operation in item.values():
            in_path = [parameter["name"] for parameter in operation["parameters"] if parameter["in"] == "path"]
            assert in_path == re.findall(r"\{(\w+)\}", path)


def test_the_description_calls_itself_a_stand_in() -> None:
    assert "stand-in" in DOCUMENT["info"]["title"]
    assert "stands in for the real server" in DOCUMENT["info"]["description"]


@pytest.mark.parametrize(
    ("path", "schema"),
    [
        ("registered_models/1", "RegisteredModel"),
        ("model_versions/2", "ModelVersion"),
        ("serving_environments/3", "ServingEnvironment"),
        ("inference_services/4", "InferenceService"),
        ("artifacts/1", "ModelArtifact"),
        ("artifacts/2", "DocArtifact"),
        ("artifacts/3", "DataSet"),
        ("artifacts/4", "Metric"),
        ("artifacts/5", "Parameter"),
    ],
)
def test_answers_have_the_described_fields(path: str, schema: str) -> None:
    standin = Standin()
    standin.model(owner="o", description="d", language=["en"])
    standin.version("1", author="a")
    standin.service()
    for artifact_type in ARTIFACTS:
        standin.artifact("2", "x", artifact_type, description="d")
    shown = standin.get(path).json
    assert set(SCHEMAS[schema]["required"]) <= set(shown) <= set(SCHEMAS[schema]["properties"])


def test_every_kind_is_described_with_all_its_fields() -> None:
    described = [set(schema.get("properties", ())) for schema in SCHEMAS.values()]
    for kind in KINDS.values():
        names = {field.name for field in kind.fields}
        assert any(names <= properties for properties in described), kind.name

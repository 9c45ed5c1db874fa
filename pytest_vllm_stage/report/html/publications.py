"""What the run published of each model, as the registry and the bucket gave it back."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.core.json_text import parse_json
from pytest_vllm_stage.publication.document import DOCUMENT
from pytest_vllm_stage.report.run_data import RunData

_HIDDEN = ("at", "pid", "name", "others")


@dataclass(frozen=True)
class PublishedModel:
    """One model's publication.

    Attributes:
        name: The model's role.
        rows: Field and value.
        properties: The published properties, name and value.
    """

    name: str
    rows: list[tuple[str, str]]
    properties: list[tuple[str, str]]


def describe_publications(data: RunData) -> list[PublishedModel]:
    """The publications of a run."""
    return [_describe(data, one) for one in data.record["publications"]]


def _describe(data: RunData, one: dict[str, Any]) -> PublishedModel:
    rows = [(key, _text(value)) for key, value in one.items() if key not in _HIDDEN and value not in (None, "")]
    return PublishedModel(str(one.get("name")), rows, _properties(data, str(one.get("uri", ""))))


def _properties(data: RunData, uri: str) -> list[tuple[str, str]]:
    """Of the document that lies at a publication's address; none where the run kept no copy of it."""
    for path in sorted((data.directory / "publication").rglob(DOCUMENT)):
        try:
            found = parse_json(path.read_text(encoding="utf-8"))
            if found.get("uri") == uri:
                return [(str(entry["name"]), str(entry["value"])) for entry in found["properties"]]
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            continue
    return []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)

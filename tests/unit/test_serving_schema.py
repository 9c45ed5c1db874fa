"""Values are checked against their schemas, and the first violation is named."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vllm_stage.checks.inference.schema import schema_violation

PERSON: dict[str, Any] = {
    "type": "object",
    "properties": {"age": {"type": "integer", "minimum": 0}, "tags": {"type": "array", "items": {"type": "string"}}},
    "required": ["age"],
    "additionalProperties": False,
}


@pytest.mark.parametrize(
    ("value", "schema", "says"),
    [
        ({"age": 3}, PERSON, ""),
        ({"age": 3, "tags": ["a"]}, PERSON, ""),
        ({"age": "3"}, PERSON, "the value.age is '3', not of type integer"),
        ({"age": True}, PERSON, "the value.age is True, not of type integer"),
        ({"age": -1}, PERSON, "the value.age is -1, against minimum 0"),
        ({"tags": []}, PERSON, "against required ['age']"),
        ({"age": 1, "tags": ["a", 2]}, PERSON, "the value.tags[1] is 2, not of type string"),
        ({"age": 1, "other": 1}, PERSON, "the value has 'other', which the schema does not know"),
        ([1], {"type": "array", "minItems": 2}, "against minItems 2"),
        ("abc", {"type": "string", "pattern": "^[0-9]+$"}, "against pattern"),
        ("abcd", {"type": "string", "maxLength": 3}, "against maxLength 3"),
        (1, {"const": True}, "against const True"),
        ("c", {"enum": ["a", "b"]}, "against enum"),
        (1.5, {"anyOf": [{"type": "null"}, {"type": "integer"}]}, "fits none of 2 schemas"),
        (None, {"anyOf": [{"type": "null"}, {"type": "integer"}]}, ""),
    ],
)
def test_schema_violation_is_named(value: Any, schema: dict[str, Any], says: str) -> None:
    found = schema_violation(value, schema)
    assert says in found
    assert bool(says) == bool(found)


def test_a_keyword_that_is_not_known_is_never_passed_over() -> None:
    with pytest.raises(ValueError, match="uniqueItems"):
        schema_violation([], {"type": "array", "uniqueItems": True})

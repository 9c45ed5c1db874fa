"""The JSON Schema of profiles, and the tables of docs/profiles.md: both derived from the profile's types.

``python -m pytest_vllm_stage.settings.profile_schema`` writes them after the types have changed.
"""

from __future__ import annotations

import ast
import inspect
import json
import re
from collections.abc import Iterator, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.settings.profile import Profile
from pytest_vllm_stage.settings.tables import Table

_TABLE = re.compile(r"(<!-- keys of ([^ ]+) -->\n).*?(<!-- end of keys -->)", re.DOTALL)
_HEADER = "| key | type | default | meaning |\n|---|---|---|---|\n"


def schema_path() -> Path:
    """Where the published schema lies: the profiles' first line names it."""
    return fixtures_dir() / "profiles" / "profile.schema.json"


def profile_schema() -> dict[str, Any]:
    """The JSON Schema, without titles that repeat keys, nulls (TOML has none) and the defaults of whole tables."""
    schema = Profile.model_json_schema()
    for table in _subclasses(Table):
        properties = (schema if table is Profile else schema["$defs"].get(table.__name__, {})).get("properties", {})
        docstrings = read_docstrings(table)
        for key in properties:
            described = {**properties[key], "description": docstrings[key]} if key in docstrings else properties[key]
            properties[key] = dict(sorted(described.items()))
    schema = _simplified(schema)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "vLLM stage profile", **schema}


def _subclasses(table: type[Table]) -> Iterator[type[Table]]:
    for inner in table.__subclasses__():
        yield inner
        yield from _subclasses(inner)


def read_docstrings(table: type[Table]) -> dict[str, str]:
    """What each key of a table means: the docstring below it.

    pydantic's own option reads the sources in every process that reads a profile; only the schema needs them.
    """
    texts: dict[str, str] = {}
    for base in reversed([base for base in table.__mro__ if issubclass(base, Table)]):
        definition = ast.parse(inspect.getsource(base)).body[0]
        for key, text in pairwise(getattr(definition, "body", [])):
            match key, text:
                case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str() as words)):
                    texts[name] = inspect.cleandoc(words)
    return texts


def _simplified(schema: Any) -> Any:
    if isinstance(schema, list):
        return [_simplified(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    kept = {key: _simplified(value) for key, value in schema.items() if not _is_noise(key, value)}
    choices = [choice for choice in kept.get("anyOf", []) if choice != {"type": "null"}]
    if len(choices) == 1:
        return {key: value for key, value in kept.items() if key != "anyOf"} | choices[0]
    return kept


def _is_noise(key: str, value: Any) -> bool:
    if key == "default":
        return value is None or isinstance(value, dict)
    return key == "title" and isinstance(value, str)


def fill_tables(markdown: str) -> str:
    """A document with the rows of the table of keys between each pair of its marks."""
    schema = profile_schema()

    def fill(match: re.Match[str]) -> str:
        table = _find_table(schema, match[2])
        required = table.get("required", ())
        rows = [_row(key, value, key in required, schema) for key, value in table["properties"].items()]
        return f"{match[1]}{_HEADER}{''.join(rows)}{match[3]}"

    return _TABLE.sub(fill, markdown)


def marked_tables(markdown: str) -> list[str]:
    """The tables whose keys a document lists, by their path."""
    return [match[2] for match in _TABLE.finditer(markdown)]


def all_tables() -> Iterator[str]:
    """The path of every table that has keys of its own; one of a model, a role or a step once."""
    yield "profile"
    yield from _tables_below(profile_schema(), "", profile_schema())


def _tables_below(table: Mapping[str, Any], path: str, schema: Mapping[str, Any]) -> Iterator[str]:
    named = {"*": table["additionalProperties"]} if isinstance(table.get("additionalProperties"), dict) else {}
    for key, value in {**table.get("properties", {}), **named}.items():
        inner, inner_path = _resolved(value, schema), f"{path}.{key}".removeprefix(".")
        if inner.get("properties"):
            yield inner_path
        yield from _tables_below(inner, inner_path, schema)


def _find_table(schema: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    table = schema
    for key in path.split(".") if path != "profile" else ():
        table = _resolved(table["additionalProperties"] if key == "*" else table["properties"][key], schema)
    return table


def _resolved(value: Mapping[str, Any], schema: Mapping[str, Any]) -> Mapping[str, Any]:
    if "$ref" not in value:
        return value
    found: Mapping[str, Any] = schema["$defs"][value["$ref"].rsplit("/", 1)[1]]
    return found


def _row(key: str, value: Mapping[str, Any], required: bool, schema: Mapping[str, Any]) -> str:
    meaning = value.get("description") or _resolved(value, schema).get("description", "")
    default = "required" if required else f"`{json.dumps(value['default'])}`" if "default" in value else ""
    cells = (f"`{key}`", _describe_type(_resolved(value, schema)), default, meaning.replace("``", "`"))
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |\n"


def _describe_type(value: Mapping[str, Any]) -> str:
    if "anyOf" in value:
        return " or ".join(_describe_type(choice) for choice in value["anyOf"])
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return ", ".join(f"`{choice}`" for choice in value["enum"])
    if value["type"] == "array":
        items = value["items"]
        return "list of metrics" if "enum" in items else f"list of {_describe_type(items).replace('number', 'numbers')}"
    kind = {"object": "table", "integer": "whole number"}.get(value["type"], value["type"])
    bounds = {"minimum": "from", "exclusiveMinimum": "above", "exclusiveMaximum": "below"}
    return " ".join([kind, *(f"{word} {value[name]:g}" for name, word in bounds.items() if name in value)])


def main() -> None:
    """Write the schema and, in a checkout, the tables of the documentation."""
    schema_path().write_text(json.dumps(profile_schema(), indent=2) + "\n", encoding="utf-8")
    docs = fixtures_dir().parent / "docs" / "profiles.md"
    if docs.is_file():
        docs.write_text(fill_tables(docs.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()

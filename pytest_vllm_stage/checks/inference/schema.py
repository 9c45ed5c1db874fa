"""Whether a value fits a JSON schema, for the keywords that the checks' schemas use; any other keyword is an error."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

_TYPES: Mapping[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "integer": (int,),
    "number": (int, float),
    "boolean": (bool,),
    "null": (type(None),),
}
#: Keyword to whether a value that it applies to keeps it.
_BOUNDS: Mapping[str, Callable[[Any, Any], bool]] = {
    "const": lambda value, of: bool(value == of and type(value) is type(of)),
    "enum": lambda value, of: value in of,
    "minimum": lambda value, of: bool(value >= of),
    "maximum": lambda value, of: bool(value <= of),
    "minLength": lambda value, of: len(value) >= of,
    "maxLength": lambda value, of: len(value) <= of,
    "minItems": lambda value, of: len(value) >= of,
    "maxItems": lambda value, of: len(value) <= of,
    "pattern": lambda value, of: re.search(of, value) is not None,
    "required": lambda value, of: set(of) <= set(value),
}
_STRUCTURE = ("type", "properties", "items", "additionalProperties", "anyOf")


def schema_violation(value: Any, schema: Mapping[str, Any], where: str = "the value") -> str:
    """The first thing about ``value`` that does not fit, in words; empty where all of it fits.

    Raises:
        ValueError: the schema has a keyword that is not known here.
    """
    unknown = set(schema) - set(_BOUNDS) - set(_STRUCTURE)
    if unknown:
        raise ValueError(f"schema keywords that are not known here: {sorted(unknown)}")
    kind = schema.get("type")
    if kind is not None and (
        not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind in ("integer", "number"))
    ):
        return f"{where} is {value!r}, not of type {kind}"
    for keyword, keeps in _BOUNDS.items():
        if keyword in schema and not keeps(value, schema[keyword]):
            return f"{where} is {value!r}, against {keyword} {schema[keyword]!r}"
    if "anyOf" in schema and all(schema_violation(value, one, where) for one in schema["anyOf"]):
        return f"{where} is {value!r}, which fits none of {len(schema['anyOf'])} schemas"
    return next(filter(None, _inside(value, schema, where)), "")


def _inside(value: Any, schema: Mapping[str, Any], where: str) -> list[str]:
    """What does not fit in the parts of an object or an array."""
    if isinstance(value, list) and "items" in schema:
        return [schema_violation(one, schema["items"], f"{where}[{place}]") for place, one in enumerate(value)]
    if not isinstance(value, dict):
        return []
    known: Mapping[str, Any] = schema.get("properties", {})
    problems = [schema_violation(value[name], of, f"{where}.{name}") for name, of in known.items() if name in value]
    if schema.get("additionalProperties") is False:
        problems += [f"{where} has {name!r}, which the schema does not know" for name in value if name not in known]
    return problems

"""Typed custom properties: a text is a ``MetadataStringValue``, a number a ``MetadataDoubleValue``."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Mapping
from typing import Any

Value = str | float
#: One property as the server gives it.
Raw = Mapping[str, Any]

STRING, DOUBLE, INT = "MetadataStringValue", "MetadataDoubleValue", "MetadataIntValue"
_STRUCT = "MetadataStructValue"
#: A string with this prefix makes the server answer 400 to every list that contains it.
_POISON = "mlmd-struct::"


def encode(value: Value) -> dict[str, Any]:
    """A property for the server; numbers are always doubles, since its whole numbers end at 2147483647.

    Raises:
        ValueError: a number that is not finite, or a text that the server chokes on.
    """
    if isinstance(value, str):
        if value.startswith(_POISON) or "\0" in value:
            raise ValueError(f"{value[:40]!r} cannot be a property")
        return {"metadataType": STRING, "string_value": value}
    if not math.isfinite(value):
        raise ValueError(f"{value} cannot be a property: a missing number is left out")
    return {"metadataType": DOUBLE, "double_value": float(value)}


def difference(raw: Raw | None, wanted: Value) -> str:
    """How a property differs from a value, in a few words; empty where type and value are equal."""
    kind = STRING if isinstance(wanted, str) else DOUBLE
    if raw is None:
        return f"is missing: expected {show(wanted)}"
    if raw.get("metadataType") != kind:
        return f"is a {raw.get('metadataType')} ({show_raw(raw)}): expected {kind}"
    found = raw.get("string_value" if kind == STRING else "double_value")
    if isinstance(found, bool) or not isinstance(found, str if kind == STRING else int | float):
        return f"is {found!r}: expected {show(wanted)}"
    return "" if found == wanted else f"is {show(found)}: expected {show(wanted)}"


def text_of(properties: Mapping[str, Raw], name: str) -> str:
    """A property that is a text; empty where it is missing or of another type."""
    raw = properties.get(name) or {}
    found = raw.get("string_value") if raw.get("metadataType") == STRING else None
    return found if isinstance(found, str) else ""


def show(value: Value) -> str:
    """A value for people."""
    return repr(value) if isinstance(value, str) else f"{value:.6g}"


def show_raw(raw: Raw) -> str:
    """A property's value for people, whatever its type."""
    return ", ".join(str(value)[:60] for key, value in raw.items() if key != "metadataType") or "no value"


def to_send(raw: Raw) -> dict[str, Any]:
    """A property that was read, as it must be sent to stay what it is: structs are read as JSON and sent as base64."""
    if raw.get("metadataType") != _STRUCT:
        return dict(raw)
    return {**raw, "struct_value": base64.b64encode(str(raw.get("struct_value", "")).encode()).decode()}


def same(one: Raw | None, other: Raw | None) -> bool:
    """Two properties as read are equal; a struct's JSON may be written in another order."""
    if one is None or other is None or one.get("metadataType") != _STRUCT or other.get("metadataType") != _STRUCT:
        return one == other
    return bool(_parsed(one) == _parsed(other))


def _parsed(raw: Raw) -> Any:
    text = str(raw.get("struct_value", ""))
    try:
        return json.loads(text)
    except ValueError:
        return text

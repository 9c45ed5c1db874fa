"""Values of requests and answers: JSON as Go reads and writes it, ids, and typed custom properties."""

from __future__ import annotations

import json
import math
from typing import Any

from pytest_vllm_stage.standins.registry.refusal import RegistryRefusal, bad_request

INT32_MIN, INT32_MAX = -(2**31), 2**31 - 1
INT64_MIN, INT64_MAX = -(2**63), 2**63 - 1

#: A string property that starts with it is read back as an encoded struct.
STRUCT_MARK = "mlmd-struct::"

#: Keys that the server uses itself and hides.
RESERVED_KEYS = ("experiment_id", "experiment_run_id")

#: metadataType to the key of its value and the column that stores it.
VALUE_KEYS = {
    "MetadataStringValue": "string_value",
    "MetadataIntValue": "int_value",
    "MetadataDoubleValue": "double_value",
    "MetadataBoolValue": "bool_value",
}

#: A stored property: its column in the store (a key of `VALUE_KEYS`' values) and its value.
Stored = tuple[str, Any]


def integer(text: str, low: int = INT32_MIN, high: int = INT32_MAX) -> int | None:
    """A decimal number with an optional sign, within bounds; None where the text is not one."""
    digits = text[1:] if text[:1] in ("+", "-") else text
    if not digits.isascii() or not digits.isdigit() or len(digits) > 4000:
        return None
    number = int(text)
    return number if low <= number <= high else None


def parse_id(text: str, what: str) -> int:
    """An id as a number.

    Raises:
        RegistryRefusal: It is not a decimal number of 32 bits.
    """
    number = integer(text)
    if number is None:
        raise bad_request(f"invalid {what} ID {text!r}: not an int32")
    return number


def parse_object(body: bytes) -> dict[str, Any]:
    """A request's JSON object; bytes and surrogates that are not text become U+FFFD, as in Go.

    Raises:
        RegistryRefusal: The body is empty, not a JSON object, or holds NUL.
    """
    try:
        value = json.loads(body.decode("utf-8", "replace"), parse_constant=_refuse_constant, parse_float=_finite)
        value = _cleaned(value)
    except RegistryRefusal:
        raise
    except (ValueError, RecursionError) as error:
        raise bad_request(f"the body is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise bad_request("the body is not a JSON object")
    return value


def _refuse_constant(name: str) -> Any:
    raise bad_request(f"the body is not JSON: invalid value {name}")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise bad_request(f"number {text[:40]} is out of a double's range")
    return number


def _cleaned(value: Any) -> Any:
    if isinstance(value, str):
        if "\0" in value:
            raise bad_request("the body holds a NUL character")
        return value if value.isascii() else value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_cleaned(key): _cleaned(item) for key, item in value.items()}
    return [_cleaned(item) for item in value] if isinstance(value, list) else value


def parse_number(value: Any, where: str) -> float:
    """A JSON number as a double.

    Raises:
        RegistryRefusal: It is something else, or too large.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise bad_request(f"{where} must be a JSON number")
    try:
        return float(value)
    except OverflowError:
        raise bad_request(f"{where} is out of a double's range") from None


def format_number(value: float) -> float | int:
    """A double as Go writes it: without a fraction where it has none."""
    return int(value) if value.is_integer() and abs(value) < 1e21 else value


def parse_property(key: str, value: Any) -> Stored:
    """A custom property of a request as it is stored.

    Raises:
        RegistryRefusal: Its type is unknown, or its value is not of its type.
    """
    where = f"customProperties[{key!r}]"
    kind = value.get("metadataType") if isinstance(value, dict) else None
    column = VALUE_KEYS.get(kind) if isinstance(kind, str) else None
    if column is None:
        raise bad_request(f"{where}: metadataType must be one of {', '.join(VALUE_KEYS)}")
    given = value.get(column)
    where = f"{where}.{column}"
    if column == "double_value":
        return column, 0.0 if given is None else parse_number(given, where)
    if column == "bool_value":
        if given is not None and not isinstance(given, bool):
            raise bad_request(f"{where} must be a JSON bool")
        return column, bool(given)
    if given is not None and not isinstance(given, str):
        raise bad_request(f"{where} must be a JSON string")
    if column == "int_value":
        number = integer(given or "")
        if number is None:
            raise bad_request(f"{where} must be an int32 as a string")
        return column, number
    return column, given or ""


def format_property(stored: Stored) -> dict[str, Any]:
    """A custom property as an answer shows it."""
    column, value = stored
    kind = next(kind for kind, key in VALUE_KEYS.items() if key == column)
    if column == "int_value":
        value = str(value)
    elif column == "double_value":
        value = format_number(value)
    elif column == "bool_value":
        value = bool(value)
    return {column: value, "metadataType": kind}


def is_poison(stored: Stored) -> bool:
    """The property cannot be read back: a string that looks like an encoded struct and is none.

    The real server reads one whose rest is a well-formed encoding; the stand-in only the empty one.
    """
    column, value = stored
    return column == "string_value" and value.startswith(STRUCT_MARK) and value != STRUCT_MARK


def encode(value: Any) -> bytes:
    """An answer's JSON."""
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False, sort_keys=True).encode() + b"\n"

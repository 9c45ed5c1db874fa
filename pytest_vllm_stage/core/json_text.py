"""JSON from files that another program, an earlier version or a person wrote."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """The value of a JSON text, with every defect of the text raised as one kind of error.

    ``json.loads`` raises RecursionError for a text that is nested too deeply, and keeps the last of two equal keys
    without a warning.

    Args:
        text: The text; bytes in UTF-8, UTF-16 or UTF-32.
        finite: Refuse NaN and Infinity, which JSON does not have.

    Raises:
        ValueError: it is not JSON; the message says why.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique_keys, parse_constant=_refuse_constant if finite else None)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"key {next(name for name in names if names.count(name) > 1)!r} is set twice in one object")
    return found


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a JSON number")

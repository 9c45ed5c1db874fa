"""Messages about unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def describe_unknown(name: str, valid: Iterable[str], noun: str) -> str:
    """Describe an unknown name: the closest valid one, and all valid ones."""
    known = list(valid)
    return f"unknown {noun}{suggest_name(name, known)}; valid: {', '.join(known) or 'none'}"


def suggest_name(name: str, valid: Iterable[str]) -> str:
    """The closest valid name, to be appended to a sentence; empty where none is close."""
    near = difflib.get_close_matches(name, list(valid), n=1)
    return f" (did you mean {near[0]}?)" if near else ""

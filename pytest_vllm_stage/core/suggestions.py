"""Messages about unknown names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def describe_unknown(name: str, valid: Iterable[str], noun: str) -> str:
    """Describe an unknown name: the closest valid one, and all valid ones."""
    known = list(valid)
    near = difflib.get_close_matches(name, known, n=1)
    meant = f" (did you mean {near[0]}?)" if near else ""
    return f"unknown {noun}{meant}; valid: {', '.join(known) or 'none'}"

"""Kubernetes quantities as numbers."""

from __future__ import annotations

import re
from typing import Any

_FACTORS = {"": 1.0, "n": 1e-9, "u": 1e-6, "m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_FACTORS |= {"Ki": 2.0**10, "Mi": 2.0**20, "Gi": 2.0**30, "Ti": 2.0**40, "Pi": 2.0**50, "Ei": 2.0**60}


def parse_quantity(text: Any) -> float:
    """A Kubernetes quantity as a number: ``500Mi``, ``1.5``, ``200m``."""
    match = re.fullmatch(r"([0-9.]+(?:[eE][0-9]+)?)([A-Za-z]*)", str(text))
    if match is None or match[2] not in _FACTORS:
        raise ValueError(f"{text!r} is not a quantity")
    return float(match[1]) * _FACTORS[match[2]]

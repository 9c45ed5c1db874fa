"""Numbers for people: three significant digits, with units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

INFINITE = "∞"
NONE = "\u2013"  # an en dash


def format_number(value: float | None) -> str:
    """Three significant digits; an infinite latency (too many failed requests) as ``∞``."""
    if value is None:
        return NONE
    if math.isinf(value):
        return INFINITE
    if value == 0:
        return "0"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if abs(value) >= 0.001 else f"{value:.1e}"


def format_percentile(found: Mapping[str, Any] | None, value: float | None) -> str:
    """A percentile's value; after ``>`` where requests were abandoned and it is only known to be at least so large."""
    if found and found.get("at_least") and isinstance(found.get("value"), int | float):
        return f"> {format_number(found['value'])}"
    return format_number(value)


def format_sizes(*percentiles: Mapping[str, Any]) -> str:
    """The requests behind percentiles of one latency, and their least effective sample size where that is smaller."""
    n = percentiles[0].get("n")
    least = min((size for one in percentiles if (size := one.get("effective_n")) is not None), default=n)
    return f"{n}, effective {least}" if n is not None and least < n else str(n or "")


def format_interval(interval: tuple[float, float] | None) -> str:
    """``1.2 to 3.4``; empty where there is none."""
    return f"{format_number(interval[0])} to {format_number(interval[1])}" if interval else ""


def format_duration(seconds: float) -> str:
    """``12.3 s``, ``4 min 05 s`` or ``1 h 02 min``."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02} min" if hours else f"{minutes} min {rest:02} s"


def format_bytes(size: float | None) -> str:
    """With a binary unit."""
    if size is None:
        return NONE
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < 1024 or unit == "GiB":
            return f"{size:.3g} {unit}"
        size /= 1024
    raise AssertionError("unreachable")


def unit_of(name: str) -> str:
    """The unit that a metric's name ends with, for axes and cells; empty for counts and shares."""
    name = name.removesuffix("_min")
    units = {"_tokens_per_s": "tokens/s", "_requests_per_s": "requests/s", "requests_per_s": "requests/s"}
    units |= {"_ms": "ms", "_s": "s"}
    return next((unit for ending, unit in units.items() if name.endswith(ending)), "")

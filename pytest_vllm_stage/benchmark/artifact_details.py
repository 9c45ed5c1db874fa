"""The nested parts of a step's artifact that reports draw: percentiles and the gates of its verdict."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

_SIZES = ("n", "effective_n", "needs")
_GATE_NUMBERS = ("n", "effective_n", "needs", "misses", "p_broken")


def find_malformed_detail(data: Mapping[str, Any]) -> str | None:
    """The first nested field of another type than this version writes, in words; None where there is none."""
    return next(_find_malformed(data), None)


def _find_malformed(data: Mapping[str, Any]) -> Iterator[str]:
    percentiles = data["metrics"].get("percentiles", {})
    if not isinstance(percentiles, dict):
        yield f"metrics.percentiles: expected an object, got {_show(percentiles)}"
        return
    for name, entry in percentiles.items():
        where = f"metrics.percentiles.{name}"
        if not isinstance(entry, dict):
            yield f"{where}: expected an object, got {_show(entry)}"
            continue
        yield from _find_other_than_numbers(entry, _SIZES, where)
        ends = entry.get("ci95")
        if ends is not None and not (isinstance(ends, list) and len(ends) == 2 and all(map(_is_bound, ends))):
            yield f"{where}.ci95: expected null or two numbers, got {_show(ends)}"
    gates = data["verdict"].get("gates", [])
    if not isinstance(gates, list):
        yield f"verdict.gates: expected a list, got {_show(gates)}"
        return
    for index, gate in enumerate(gates):
        where = f"verdict.gates[{index}]"
        if not isinstance(gate, dict):
            yield f"{where}: expected an object, got {_show(gate)}"
        else:
            yield from _find_other_than_numbers(gate, _GATE_NUMBERS, where)


def _find_other_than_numbers(entry: Mapping[str, Any], names: tuple[str, ...], where: str) -> Iterator[str]:
    for name in names:
        value = entry.get(name)
        if value is not None and not _is_bound(value):
            yield f"{where}.{name}: expected a number, got {_show(value)}"


def _is_bound(value: Any) -> bool:
    """A number, or ``inf`` as artifacts write an infinite latency."""
    return value == "inf" or (isinstance(value, int | float) and not isinstance(value, bool))


def _show(value: Any) -> str:
    return repr(value if isinstance(value, str | int | float | None) else type(value).__name__)[:40]

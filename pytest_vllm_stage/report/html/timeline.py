"""The phases and waits of a run as bars on one time axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.report.run_data import RunData
from pytest_vllm_stage.report.values import format_duration

_GOOD = ("done", "ok")
#: Waits that were over at once say nothing.
_SHORTEST_S = 0.05


@dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        kind: ``phase`` or ``wait``.
        name: What it was.
        start: From the start of the run.
        duration: How long it took.
        outcome: ``done``, or the error's type.
        good: It ended well.
        left: Percent of the axis before it.
        width: Percent of the axis.
    """

    kind: str
    name: str
    start: str
    duration: str
    outcome: str
    good: bool
    left: float
    width: float


def bars(data: RunData) -> list[Bar]:
    """Every phase and wait by its start; an event's time is its end."""
    found = [*_spans("phase", data.record["phases"]), *_spans("wait", data.record["waits"])]
    if not found:
        return []
    zero = float(data.record["started_at"])
    end = max([start + length for _, start, length, _ in found] + [float(data.record.get("ended_at") or 0.0)])
    whole = max(end - zero, 0.001)
    return [
        _bar(kind, event, start - zero, length, whole)
        for kind, start, length, event in sorted(found, key=lambda one: (one[1], one[0] == "wait"))
    ]


def _spans(kind: str, events: list[dict[str, Any]]) -> Iterator[tuple[str, float, float, Mapping[str, Any]]]:
    for event in events:
        length = float(event.get("duration_s", 0.0))
        if kind == "phase" or length >= _SHORTEST_S:
            yield kind, float(event["at"]) - length, length, event


def _bar(kind: str, event: Mapping[str, Any], start: float, length: float, whole: float) -> Bar:
    left = min(99.5, max(0.0, 100 * start / whole))
    outcome = str(event.get("outcome", ""))
    return Bar(
        kind=kind,
        name=str(event["name"]).removeprefix("step: "),
        start=format_duration(max(0.0, start)),
        duration=format_duration(length),
        outcome=outcome,
        good=outcome in _GOOD,
        left=round(left, 2),
        width=round(min(100 - left, max(0.3, 100 * length / whole)), 2),
    )

"""The disruptions of a run as one table, for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from pytest_vllm_stage.report import slo_table

HEADER = ("disruption", "requests", "failed", "recovery s", "TTFT P99 ms", "verdict")


def rows(disruptions: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row per disruption, in the order in which they were carried out."""
    return [_row(one) for one in disruptions]


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    window = one["window"]
    verdict = one["outcome"].upper() if one["outcome"] == "fail" else one["outcome"]
    return (
        f"{one['role']} {one['disruption']}",
        str(window["requests"]),
        str(window["failed"]),
        _number(window["recovery_s"], 1),
        _number(window["ttft_p99_ms"], 0),
        verdict,
    )


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"


def lines(data: dict[str, Any]) -> list[str]:
    """The table, then what broke each promise; empty where nothing was disrupted."""
    disruptions = data.get("disruptions", [])
    if not disruptions:
        return []
    table = [HEADER, *rows(disruptions)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    found = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    for one in disruptions:
        if one["outcome"] != "pass":
            for text in (one["why"], *one["problems"]):
                found += _wrapped(f"{one['role']} {one['disruption']}: {text}")
    return [*found, ""]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, slo_table.WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )

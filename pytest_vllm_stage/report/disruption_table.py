"""The disruptions of a run as one table: for the terminal, and with the limits for the documents."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from pytest_vllm_stage.report import slo_table
from pytest_vllm_stage.report.slo_matrix import sign_of
from pytest_vllm_stage.report.values import NONE, format_number
from pytest_vllm_stage.settings.disruptions import DISRUPTIONS

HEADER = ("disruption", "requests", "failed", "recovery s", "TTFT P99 ms", "verdict")
DOCUMENT_HEADER = ("disruption", "verdict", "what happened", "failed requests", "recovery", "TTFT P99")


def rows(disruptions: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """A row per disruption, in the order in which they were carried out."""
    return [_row(one) for one in disruptions]


def document_rows(disruptions: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """A row of `DOCUMENT_HEADER` per disruption, in the order in which they were carried out."""
    return [_document_row(one) for one in disruptions]


def title_of(one: Mapping[str, Any]) -> str:
    """The model's role and the disruption's name."""
    return f"{one['role']} {one['disruption']}"


def find_reasons(one: Mapping[str, Any]) -> list[str]:
    """Why a disruption did not pass, a text each; empty where it passed."""
    return [] if one["outcome"] == "pass" else [one["why"], *one["problems"]]


def _row(one: dict[str, Any]) -> tuple[str, ...]:
    window = one["window"]
    verdict = one["outcome"].upper() if one["outcome"] == "fail" else one["outcome"]
    return (
        title_of(one),
        str(window["requests"]),
        str(window["failed"]),
        _number(window["recovery_s"], 1),
        _number(window["ttft_p99_ms"], 0),
        verdict,
    )


def _number(value: Any, digits: int) -> str:
    return f"{value:.{digits}f}" if isinstance(value, int | float) else "-"


def _document_row(one: Mapping[str, Any]) -> tuple[str, ...]:
    window, promise = one["window"], one.get("promise", {})
    kinds = window.get("kinds")
    named = ", ".join(f"{kind} {count}" for kind, count in kinds.items()) if isinstance(kinds, dict) else ""
    failed = f"{window['failed']} of {window['requests']}{f' ({named})' if named else ''}"
    return (
        title_of(one),
        sign_of(one["outcome"]),
        DISRUPTIONS.get(one["disruption"], "").replace("`", ""),
        failed + _limit(promise.get("failed_requests_max"), ""),
        _with_unit(window["recovery_s"], "s") + _limit(promise.get("recovery_s"), " s"),
        _with_unit(window["ttft_p99_ms"], "ms") + _limit(promise.get("ttft_p99_ms"), " ms"),
    )


def _with_unit(value: Any, unit: str) -> str:
    return f"{format_number(value)} {unit}" if isinstance(value, int | float) else NONE


def _limit(value: Any, unit: str) -> str:
    return f", limit {format_number(value)}{unit}" if isinstance(value, int | float) else ""


def lines(data: dict[str, Any]) -> list[str]:
    """The table, then what broke each promise; empty where nothing was disrupted."""
    disruptions = data.get("disruptions", [])
    if not disruptions:
        return []
    table = [HEADER, *rows(disruptions)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEADER))]
    found = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in table]
    for one in disruptions:
        for text in find_reasons(one):
            found += _wrapped(f"{title_of(one)}: {text}")
    return [*found, ""]


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(
        text, slo_table.WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False
    )

"""``reports/index.html``: every run on disk with its verdict and gated metrics; and the retention of old runs."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.files import escape_surrogates, write_atomically
from pytest_vllm_stage.core.journal import read_events
from pytest_vllm_stage.core.json_text import parse_json
from pytest_vllm_stage.report.files import PAGE
from pytest_vllm_stage.report.html.page import render_index
from pytest_vllm_stage.report.run_data import JOURNAL, RECORD
from pytest_vllm_stage.report.values import format_duration, format_number

INDEX = "index.html"
#: A run without an end whose journal is younger than this may still run.
_MAY_RUN_S = 24 * 3600.0
_METRICS = ("ttft_p50_ms", "tpot_p50_ms")
_WIDTH, _HEIGHT = 120.0, 24.0


@dataclass(frozen=True)
class RunEntry:
    """One run of the index.

    Attributes:
        run_id: Its id, which is its folder's name.
        started_at: Seconds since the epoch.
        ended: It reached its end.
        verdict: As in the page.
        profile: Name of the profile.
        models: The served models.
        simulated: A simulated engine answered.
        duration: How long it took.
        checks: Outcome to number.
        metrics: ``STEP METRIC`` to value: of the steps that are compared with earlier runs, else of all promised ones.
        page: It has a page.
    """

    run_id: str
    started_at: float
    ended: bool
    verdict: str
    profile: str
    models: tuple[str, ...]
    simulated: bool
    duration: str
    checks: Mapping[str, int]
    metrics: Mapping[str, float]
    page: bool


@dataclass(frozen=True)
class Sparkline:
    """One metric over the runs of a profile, oldest first.

    Attributes:
        name: Step and metric.
        points: Of an SVG polyline in a box of 120 by 24.
        last: The newest value.
        low: The smallest one.
        high: The largest one.
    """

    name: str
    points: str
    last: str
    low: str
    high: str


def write_index(folder: Path) -> Path:
    """Write the index over all runs of a folder; what is not a run is passed over."""
    entries = sorted(read_entries(folder), key=lambda entry: entry.started_at, reverse=True)
    path = folder / INDEX
    write_atomically(path, escape_surrogates(render_index(entries, _sparklines(entries))))
    return path


def read_entries(folder: Path) -> Iterator[RunEntry]:
    """The runs of a folder, in no order."""
    for path in folder.iterdir():
        if path.is_dir() and (entry := _entry(path)):
            yield entry


def _entry(path: Path) -> RunEntry | None:
    """From the record alone, which is quick; of a run without one, from its journal."""
    try:
        record = parse_json((path / RECORD).read_text(encoding="utf-8"))
        if record["run_id"] != path.name:
            return None
        return _of_record(record, path)
    except (OSError, ValueError, LookupError, TypeError, AttributeError):
        return _of_journal(path)


def _of_record(record: dict[str, Any], path: Path) -> RunEntry:
    checks: dict[str, int] = {}
    for test in record["tests"]:
        checks[test["outcome"]] = checks.get(test["outcome"], 0) + 1
    started, ended = float(record["started_at"]), record.get("ended_at")
    return RunEntry(
        run_id=path.name,
        started_at=started,
        ended=ended is not None,
        verdict=_verdict(record),
        profile=str(record["profile"].get("name", "")),
        models=tuple(dict.fromkeys(str(one.get("model", "")) for one in record["benchmarks"])),
        simulated=bool(record.get("simulated")),
        duration=format_duration(float(ended) - started) if ended else "",
        checks=checks,
        metrics=dict(_metrics(record)),
        page=(path / PAGE).is_file(),
    )


def _verdict(record: Mapping[str, Any]) -> str:
    """Without the causes: the index says which run to open, and its page says why."""
    status = record.get("exit_status")
    if status == 0:
        undecided = any(one.get("outcome") in ("inconclusive", "invalid") for one in record["benchmarks"])
        return "inconclusive" if undecided else "pass"
    return {1: "fail", 69: "environment unusable"}.get(status if isinstance(status, int) else -1, "incomplete")


def _metrics(record: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
    gated = {str(one["name"]): tuple(one.get("metrics", {})) for one in record.get("regressions", [])}
    for one in record["benchmarks"]:
        if one.get("outcome") == "observed":
            continue
        values = one.get("result", {}).get("metrics", {})
        for metric in gated.get(one["name"], () if gated else _METRICS):
            value = values.get(metric)
            if isinstance(value, int | float) and math.isfinite(value):
                yield f"{one['name']} {metric}", float(value)


def _of_journal(path: Path) -> RunEntry | None:
    events = read_events(path / JOURNAL)
    if not events or events[0].get("kind") != "run" or events[0].get("name") != path.name:
        return None
    profile, at = events[0].get("profile"), events[0].get("at")
    name = str(profile.get("name", "")) if isinstance(profile, dict) else ""
    started = float(at) if isinstance(at, int | float) else 0.0
    page = (path / PAGE).is_file()
    return RunEntry(path.name, started, False, "incomplete", name, (), False, "", {}, {}, page)


def _sparklines(entries: Sequence[RunEntry]) -> dict[str, list[Sparkline]]:
    """By profile; simulated and real runs are never on one line."""
    found: dict[str, list[Sparkline]] = {}
    groups: dict[tuple[str, bool], list[RunEntry]] = {}
    for entry in reversed(entries):
        groups.setdefault((entry.profile, entry.simulated), []).append(entry)
    for (profile, simulated), runs in groups.items():
        names = dict.fromkeys(name for run in runs for name in run.metrics)
        lines = [_sparkline(name, [run.metrics[name] for run in runs if name in run.metrics]) for name in names]
        if lines:
            found[f"{profile} (simulated)" if simulated else profile] = lines
    return found


def _sparkline(name: str, values: Sequence[float]) -> Sparkline:
    low, high = min(values), max(values)
    step = _WIDTH / max(1, len(values) - 1)
    heights = [_HEIGHT - 2 - (value - low) / (high - low or 1) * (_HEIGHT - 4) for value in values]
    points = " ".join(f"{place * step:.1f},{height:.1f}" for place, height in enumerate(heights))
    if len(values) == 1:
        points += f" {_WIDTH:.1f},{heights[0]:.1f}"
    return Sparkline(name, points, format_number(values[-1]), format_number(low), format_number(high))


def remove_old_runs(folder: Path, keep: int, current: str) -> list[str]:
    """Remove the oldest runs beyond ``keep``; return their ids.

    Only folders that are named as the run whose record they hold; the current run, those that may still run, and
    everything else in the folder (baselines among it) stay.
    """
    entries = sorted(read_entries(folder), key=lambda entry: entry.started_at, reverse=True)
    old = [entry for entry in entries[keep:] if entry.run_id != current and not _may_run(folder / entry.run_id, entry)]
    for entry in old:
        shutil.rmtree(folder / entry.run_id)
    return [entry.run_id for entry in old]


def _may_run(path: Path, entry: RunEntry) -> bool:
    return not entry.ended and time.time() - (path / JOURNAL).stat().st_mtime < _MAY_RUN_S

"""The load steps of a run for the terminal: latencies with confidence intervals, verdicts and their reasons."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

#: Columns of a terminal that the summary may take.
WIDTH = 100
_PERCENTS = (50, 90, 99)
#: The state of a step whose metrics did not change.
_UNCHANGED = "ok"
#: The state of a step with too few accepted comparable runs.
_NO_HISTORY = "no-baseline"
#: Follows a percentile of too few requests for a confidence interval.
_UNCERTAIN = "?"
#: Precedes a percentile that is only known to be at least so large.
_AT_LEAST = ">"
_HEADER = ("step", "n", "ttft P50 ms [95 % CI]", "P90 ms", "P99 ms", "e2e P90 s", "tok/s", "verdict")


def lines(data: dict[str, Any]) -> list[str]:
    """The table of a record, then a line for each objective's verdict; empty where no load step was measured.

    The P50 is followed by its two-sided 95 % confidence interval, and the number of requests by their effective sample
    size for it where that is smaller; a question mark follows what has too few requests for an interval. The interval
    of every percentile is in the artifacts and in the report.
    """
    benchmarks = data["benchmarks"]
    found = [capacity["text"] for capacity in data["capacities"]]
    if not benchmarks:
        return [*found, ""] if found else []
    rows = [_HEADER, *(_row(benchmark) for benchmark in benchmarks)]
    return [
        *_aligned(rows),
        *_server_table(benchmarks),
        *_reasons(benchmarks),
        *_remarks(data),
        *_history(data["regressions"]),
        *found,
        "",
    ]


def _history(regressions: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The comparison with earlier runs: unchanged steps in one line, steps without a baseline in one, others each."""
    where = "compared with earlier runs"
    alike = {state: [one for one in regressions if one["state"] == state] for state in (_UNCHANGED, _NO_HISTORY)}
    if alike[_UNCHANGED]:
        yield f"{where}: {len(alike[_UNCHANGED])} of {len(regressions)} steps unchanged"
    if alike[_NO_HISTORY]:
        few = max(one["runs"] for one in alike[_NO_HISTORY])
        notes = dict.fromkeys(note for one in alike[_NO_HISTORY] for note in one["notes"])
        details = "; ".join([f"{few} accepted comparable run{'' if few == 1 else 's'} at most", *notes])
        yield f"{where}: {len(alike[_NO_HISTORY])} of {len(regressions)} steps have no baseline yet: {details}"
    for one in regressions:
        if one["state"] not in alike:
            yield from _wrapped(f"{where}: {one['text']}")


def _row(benchmark: dict[str, Any]) -> tuple[str, ...]:
    result = benchmark["result"]
    percentiles, metrics = result["percentiles"], result["metrics"]
    ttft = [_percentile(percentiles.get(f"ttft_p{percent}_ms"), interval=percent == 50) for percent in _PERCENTS]
    e2e = _percentile(percentiles.get("e2e_latency_p90_s"), interval=False)
    tokens_per_s = _number(metrics.get("output_tokens_per_s"))
    return (
        benchmark["name"],
        f"{metrics['requests']}{_effective(result)}",
        *ttft,
        e2e,
        tokens_per_s,
        benchmark["outcome"].upper() if benchmark["outcome"] == "fail" else benchmark["outcome"],
    )


def _effective(result: dict[str, Any]) -> str:
    """The effective sample size of the TTFT P50 in brackets, where it is smaller than the number of requests."""
    found = result["percentiles"].get("ttft_p50_ms") or {}
    effective_n = found.get("effective_n")
    return "" if effective_n is None or effective_n >= found["n"] else f" ({effective_n})"


def _percentile(found: dict[str, Any] | None, *, interval: bool) -> str:
    if found is None:
        return "-"
    value, bounds = _number(found["value"]), found["ci95"]
    if found.get("at_least"):
        return f"{_AT_LEAST}{value}"
    if bounds is None:
        return f"{value}{_UNCERTAIN}"
    return f"{value} [{_number(bounds[0])}-{_number(bounds[1])}]" if interval else value


def _number(value: float | str | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) else f"{value:.0f}" if value >= 100 else f"{value:.3g}"


#: The metrics of the engine and the GPUs: a column's head, its metrics, and the factor to its unit.
_SERVER_COLUMNS = (
    ("running", ("running_mean", "running_max"), 1.0),
    ("waiting", ("waiting_mean", "waiting_max"), 1.0),
    ("KV %", ("kv_cache_usage_mean", "kv_cache_usage_max"), 100.0),
    ("prefix %", ("prefix_cache_hit_rate",), 100.0),
    ("preempted", ("preemptions",), 1.0),
    ("GPU GiB", ("gpu_memory_peak_bytes",), 1 / 1024**3),
    ("GPU %", ("gpu_utilization_mean", "gpu_utilization_p90"), 100.0),
)


def _server_table(benchmarks: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The columns that have a value in some step; no lines where no server was read."""
    found = [one["result"]["metrics"] for one in benchmarks]
    columns = [column for column in _SERVER_COLUMNS if any(metrics.get(column[1][0]) is not None for metrics in found)]
    if not columns:
        return
    rows = [
        (one["name"], *("/".join(_scaled(metrics.get(name), factor) for name in names) for _, names, factor in columns))
        for one, metrics in zip(benchmarks, found, strict=True)
    ]
    yield from _aligned([("server, mean/max", *(head for head, _, _ in columns)), *rows])


def _scaled(value: float | str | None, factor: float) -> str:
    return f"{value * factor:.3g}" if isinstance(value, int | float) else "-"


def _aligned(rows: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    last = len(widths) - 1
    for row in rows:
        cells = [
            cell.ljust(width) if i in (0, last) else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  ".join(cells).rstrip()


def _reasons(benchmarks: Sequence[dict[str, Any]]) -> Iterator[str]:
    """The objectives that all steps share, the reasons of those that did not pass, and remarks on the others."""
    promised = {", ".join(one["objectives"]) for one in benchmarks if one["objectives"]}
    if len(promised) == 1:
        yield f"promised  {promised.pop()}"
    for one in benchmarks:
        if one["outcome"] != "pass":
            yield from _wrapped(f"{one['name']}: {one['why']}")
            continue
        for remark in one.get("remarks", ()):
            yield from _wrapped(f"{one['name']}: {remark}")


def _wrapped(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, subsequent_indent="    ", break_long_words=False, break_on_hyphens=False)


def _remarks(data: dict[str, Any]) -> Iterator[str]:
    benchmarks, accesses = data["benchmarks"], data["load_access"]
    if any(_UNCERTAIN in cell for one in benchmarks for cell in _row(one)[2:-1]):
        yield f"{_UNCERTAIN} too few requests for a 95 % confidence interval"
    if any(cell.startswith(_AT_LEAST) for one in benchmarks for cell in _row(one)[2:-1]):
        yield f"{_AT_LEAST} at least: requests were abandoned when the step ended early"
    if any(_effective(one["result"]) for one in benchmarks):
        yield "n: the effective sample size follows where requests depend on each other"
    saved_s = sum(one["saved_s"] for one in benchmarks)
    if saved_s:
        yield f"decided early: {saved_s:.0f} s of load saved"
    if not any(one["gpu_metrics"] for one in benchmarks):
        yield "GPU memory and utilisation: no source (--stage-gpu-metrics names one)"
    blind = [one["name"] for one in benchmarks if not one["engine_metrics"]]
    if blind:
        yield f"the engine's own metrics could not be read in {', '.join(blind)}"
    for access in accesses:
        if access["concurrent"]:
            yield f"NOT EXCLUSIVE: {', '.join(access['concurrent'][:3])} ran during {access['name']}"

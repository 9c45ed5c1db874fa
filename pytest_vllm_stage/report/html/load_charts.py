"""Latency against load, throughput against load, and latency against throughput."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_vllm_stage.report.html import svg
from pytest_vllm_stage.report.html.chart import Chart, Section
from pytest_vllm_stage.report.run_data import CONCURRENCY, RATE, RunData, StepData
from pytest_vllm_stage.report.values import format_interval, format_number, format_percentile, format_sizes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LATENCIES = {
    "ttft": ("Time to first token", "ms"),
    "itl": ("Inter-token latency", "ms"),
    "tpot": ("Time per output token", "ms"),
    "e2e_latency": ("Response time", "s"),
}
_PERCENTS = {50: ("o", "-"), 90: ("s", "--"), 99: ("^", ":")}
_KINDS = {RATE: "request rate, requests/s", CONCURRENCY: "concurrent users"}
_THROUGHPUT = "output_tokens_per_s"


def load_section(data: RunData) -> Section | None:
    """Every chart over the loads; None where no step was measured."""
    if not data.steps:
        return None
    charts = [_latency(data, name) for name in _LATENCIES if _has(data, name)]
    charts += [_throughput(data), _knee(data)]
    note = "Both axes of the latency charts are logarithmic. Open circles, squares and triangles are P50, P90 and P99."
    return Section("load", "Latency and throughput", note, charts)


def _has(data: RunData, name: str) -> bool:
    return any(key.startswith(f"{name}_p") for step in data.steps for key in step.percentiles)


def _latency(data: RunData, name: str) -> Chart:
    title, unit = _LATENCIES[name]
    rows = [row for step in data.steps for row in _latency_rows(step, name, unit)]
    lost = sum(1 for row in rows if row[4] == "∞")
    caption = (
        "Whiskers: 95 % confidence interval; a point without one has too few requests. Red: the objective. "
        "Vertical lines: the promised rate (dash-dotted) and the capacity that was found (dotted)."
    )
    caption += f" {lost} infinite values (too many failed requests) are not drawn." if lost else ""
    picture = _draw_latency(data, name, unit) if svg.available() else None
    headers = ("model", "load", "verdict", "percentile", unit, "95 % CI", "n")
    drawn = svg.draw(picture, f"latency-{name}") if picture else None
    return Chart(f"{title} against load", caption, headers, rows, drawn)


def _latency_rows(step: StepData, name: str, unit: str) -> Iterator[tuple[str, ...]]:
    for percent in _PERCENTS:
        found = step.percentiles.get(f"{name}_p{percent}_{unit}")
        value = step.metrics.get(f"{name}_p{percent}_{unit}")
        interval = _interval(found)
        needs = f"needs n ≥ {found['needs']}" if found and found.get("needs") else ""
        yield (
            step.role,
            step.load,
            step.outcome,
            f"P{percent}",
            format_percentile(found, value),
            format_interval(interval) or needs,
            format_sizes(found) if found else "",
        )


def _interval(found: object) -> tuple[float, float] | None:
    ci = found.get("ci95") if isinstance(found, dict) else None
    if not isinstance(ci, list) or len(ci) != 2 or any(isinstance(end, str) for end in ci):
        return None
    return float(ci[0]), float(ci[1])


def _draw_latency(data: RunData, name: str, unit: str) -> Figure:
    figure, panels = _panels(data, 3.3)
    for kind, axes in panels.items():
        for place, role in enumerate(data.roles):
            steps = [step for step in data.steps if (step.role, step.kind) == (role, kind)]
            for percent, (marker, line) in _PERCENTS.items():
                _percentile_line(
                    axes, steps, f"{name}_p{percent}_{unit}", _colour(place), marker, line, f"{role} P{percent}"
                )
            _objectives(axes, steps, name)
            if kind == RATE:
                _marks(axes, data, role, _colour(place))
        axes.set_yscale("log")
        _finish(axes, kind, f"{name.replace('_', ' ')}, {unit}", data)
    _legend(figure, next(iter(panels.values())))
    return figure


def _percentile_line(
    axes: Axes, steps: Sequence[StepData], key: str, colour: str, marker: str, line: str, label: str
) -> None:
    known = [(step, value) for step in steps if (value := step.metrics.get(key)) and math.isfinite(value)]
    if not known:
        return
    x, y = [step.level for step, _ in known], [value for _, value in known]
    axes.plot(x, y, color=colour, marker=marker, linestyle=line, markerfacecolor="none", label=label)
    whiskers = [(step.level, *ends) for step, _ in known if (ends := _interval(step.percentiles.get(key)))]
    axes.vlines([at for at, _, _ in whiskers], [low for _, low, _ in whiskers], [high for *_, high in whiskers], colour)


def _objectives(axes: Axes, steps: Sequence[StepData], name: str) -> None:
    """A red bar at the load's place for each limit of this latency."""
    for step in steps:
        for gate in step.gates:
            if gate.objective.startswith(f"{name}_p"):
                axes.plot([step.level], [gate.limit], color=svg.COLOURS["bad"], marker="_", markersize=16, linewidth=0)


def _marks(axes: Axes, data: RunData, role: str, colour: str) -> None:
    limit = data.of_model(role, "rate_limit_requests_per_s")
    if isinstance(limit, int | float):
        axes.axvline(limit, color=colour, linestyle="-.", linewidth=0.9)
    capacity = found_capacity(data, role)
    if capacity:
        axes.axvline(capacity, color=colour, linestyle=":", linewidth=1.1)


def found_capacity(data: RunData, role: str) -> float | None:
    """Requests/s: the highest rate that held in the search, else what the server reached while it was saturated."""
    for one in data.record["capacities"]:
        if one.get("name") == role and isinstance(one.get("holds"), int | float):
            return float(one["holds"])
    reached = sorted(step.capacity for step in data.steps if step.role == role and step.capacity)
    return reached[len(reached) // 2] if reached else None


def _throughput(data: RunData) -> Chart:
    columns = {
        "output tokens/s": _THROUGHPUT,
        "while all users are busy": "steady_output_tokens_per_s",
        "requests/s": "requests_per_s",
        "goodput, requests/s": "goodput_requests_per_s",
        "failed": "failed",
        "abandoned": "abandoned",
    }
    rows = [
        (step.role, step.load, step.outcome, *(format_number(step.metrics.get(name)) for name in columns.values()))
        for step in data.steps
    ]
    drawn = svg.draw(_draw_throughput(data), "throughput") if svg.available() else None
    caption = (
        "Output tokens per second from the first request to the last answer; vertical lines as above. When a closed "
        "loop stops sending, fewer and fewer users are busy: the table also has the throughput until then."
    )
    return Chart("Throughput against load", caption, ("model", "load", "verdict", *columns), rows, drawn)


def _draw_throughput(data: RunData) -> Figure:
    figure, panels = _panels(data, 2.8)
    for kind, axes in panels.items():
        for place, role in enumerate(data.roles):
            steps = [step for step in data.steps if (step.role, step.kind) == (role, kind)]
            x = [step.level for step in steps]
            y = [step.metrics.get(_THROUGHPUT) or 0.0 for step in steps]
            axes.plot(x, y, color=_colour(place), marker="o", label=role)
            if kind == RATE:
                _marks(axes, data, role, _colour(place))
        axes.set_ylim(bottom=0)
        _finish(axes, kind, "output tokens/s", data)
    _legend(figure, next(iter(panels.values())))
    return figure


def _knee(data: RunData) -> Chart:
    headers = ("model", "load", "output tokens/s", "response time P50, s", "response time P90, s")
    names = (_THROUGHPUT, "e2e_latency_p50_s", "e2e_latency_p90_s")
    rows = [(step.role, step.load, *(format_number(step.metrics.get(name)) for name in names)) for step in data.steps]
    drawn = svg.draw(_draw_knee(data), "knee") if svg.available() else None
    caption = (
        "Response time P90; each point is a load step, labelled with its level. "
        "Where the line turns up, more load only adds waiting. Infinite values are not drawn."
    )
    return Chart("Latency against throughput", caption, headers, rows, drawn)


def _draw_knee(data: RunData) -> Figure:
    figure, panels = _panels(data, 3.0)
    for kind, axes in panels.items():
        for place, role in enumerate(data.roles):
            known = [
                (step, step.metrics.get(_THROUGHPUT), step.metrics.get("e2e_latency_p90_s"))
                for step in data.steps
                if (step.role, step.kind) == (role, kind)
            ]
            drawn = [(step, x, y) for step, x, y in known if x and y and math.isfinite(y)]
            axes.plot([x for _, x, _ in drawn], [y for *_, y in drawn], color=_colour(place), marker="o", label=role)
            for step, x, y in drawn:
                axes.annotate(
                    f"{step.level:g}", (x, y), textcoords="offset points", xytext=(4, 4), color=_colour(place)
                )
        axes.set_yscale("log")
        svg.label_axes(axes, f"output tokens/s, by {_KINDS[kind]}", "response time P90, s")
        svg.plain_ticks(axes.yaxis)
    _legend(figure, next(iter(panels.values())))
    return figure


def _panels(data: RunData, height: float) -> tuple[Figure, dict[str, Axes]]:
    kinds = [kind for kind in _KINDS if any(step.kind == kind for step in data.steps)]
    figure, grid = svg.new_figure(height, columns=len(kinds))
    return figure, {kind: figure.add_subplot(grid[0, place]) for place, kind in enumerate(kinds)}


def _finish(axes: Axes, kind: str, label: str, data: RunData) -> None:
    from matplotlib.ticker import NullLocator

    levels = sorted({step.level for step in data.steps if step.kind == kind})
    axes.set_xscale("log")
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.xaxis.set_minor_locator(NullLocator())
    svg.label_axes(axes, _KINDS[kind], label)
    if axes.get_yscale() == "log":
        svg.plain_ticks(axes.yaxis)


def _legend(figure: Figure, axes: Axes) -> None:
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        figure.legend(handles, labels, loc="upper center", ncols=6, borderaxespad=0.1)


def _colour(place: int) -> str:
    return svg.COLOURS[svg.SERIES[place % len(svg.SERIES)]]

"""Each gated metric over the accepted earlier runs: the band of the baseline, change points, and this run's place."""

from __future__ import annotations

import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.report.html import svg
from pytest_vllm_stage.report.html.chart import Chart, Section
from pytest_vllm_stage.report.run_data import RunData
from pytest_vllm_stage.report.values import format_number, unit_of
from pytest_vllm_stage.slo import trend
from pytest_vllm_stage.slo.baselines import Baseline
from pytest_vllm_stage.slo.regression import HISTORY

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

#: Runs that are drawn; change points are looked for among them.
_MOST_RUNS = 50
_COLUMNS = 3
#: Characters of a title that fit above a panel.
_LONGEST_TITLE = 46


@dataclass(frozen=True)
class Series:
    """One metric of one step over the comparable runs.

    Attributes:
        step: The step's id.
        metric: The metric's name.
        lines: The runs, oldest first; the last one is this run's where it was compared.
        state: What the gate said of this run; empty where it said nothing.
        baseline: The median that this run was compared with.
    """

    step: str
    metric: str
    lines: tuple[Baseline, ...]
    state: str
    baseline: float | None

    @property
    def values(self) -> list[float]:
        """The metric's values."""
        return [line.metrics[self.metric] for line in self.lines]


def history_section(data: RunData) -> Section | None:
    """A chart per gated metric with a small panel per step; None where the run was compared with nothing."""
    regressions = data.record["regressions"]
    if not regressions and not data.history:
        return None
    series = find_series(data)
    metrics = dict.fromkeys(one.metric for one in series)
    note = (
        "Comparable runs only: the same model, image, engine arguments, GPU, load and driver. The band is the range of "
        f"the last {HISTORY} accepted runs, the line their median; filled: this run; crosses: runs that were not "
        "accepted; vertical lines: change points (E-divisive), which are reported and not gated."
    )
    lines = [str(one.get("text", "")) for one in regressions if one.get("state") not in ("ok", "improved")]
    charts = [_chart(data, metric, [one for one in series if one.metric == metric]) for metric in metrics]
    return Section("history", "History", note, charts, lines=lines)


def find_series(data: RunData) -> list[Series]:
    """The series of this run's steps and gated metrics, among the runs with the same key as this one's."""
    states = {str(one["name"]): one for one in data.record["regressions"]}
    found = []
    for step in data.steps:
        lines = [line for line in data.history if line.key.get("step") == step.name]
        own = next((line for line in reversed(lines) if line.run_id == data.run_id), None)
        if own is not None:
            lines = [line for line in lines if line.key == own.key]
        state = states.get(step.name, {})
        for metric, judged in state.get("metrics", {}).items():
            known = tuple(line for line in lines if metric in line.metrics)[-_MOST_RUNS:]
            found.append(Series(step.name, metric, known, str(state.get("state", "")), _baseline(judged)))
    return found


def _baseline(judged: Mapping[str, Any]) -> float | None:
    value = judged.get("baseline")
    return float(value) if isinstance(value, int | float) else None


def _chart(data: RunData, metric: str, series: Sequence[Series]) -> Chart:
    rows = [_row(data, one) for one in series]
    headers = ("load step", "runs", unit_of(metric) or "value", "baseline", "change", "state", "runs, oldest first")
    drawable = [one for one in series if len(one.lines) > 1]
    picture = _draw(data, metric, drawable) if drawable and svg.available() else None
    caption = "One panel per load step." if picture else "Too few comparable runs for a picture."
    return Chart(f"{metric} over the last runs", caption, headers, rows, picture)


def _row(data: RunData, one: Series) -> tuple[str, ...]:
    own = next((line.metrics[one.metric] for line in one.lines if line.run_id == data.run_id), None)
    change = f"{100 * (own / one.baseline - 1):+.1f} %" if own is not None and one.baseline else "unknown"
    runs = ", ".join(
        f"{time.strftime('%m-%d %H:%M', time.gmtime(line.at))}: {format_number(line.metrics[one.metric])}"
        f"{'' if line.accepted else ' (not accepted)'}"
        for line in one.lines
    )
    return one.step, str(len(one.lines)), format_number(own), format_number(one.baseline), change, one.state, runs


def _draw(data: RunData, metric: str, series: Sequence[Series]) -> Markup:
    rows = -(-len(series) // _COLUMNS)
    figure, grid = svg.new_figure(1.5 * rows + 0.3, rows=rows, columns=_COLUMNS, bottom=0.1)
    for place, one in enumerate(series):
        _panel(figure.add_subplot(grid[place // _COLUMNS, place % _COLUMNS]), one, data.run_id)
    return svg.draw(figure, f"history-{metric}")


def _panel(axes: Axes, one: Series, run_id: str) -> None:
    places = range(len(one.lines))
    past = [line.metrics[one.metric] for line in one.lines if line.accepted and line.run_id != run_id][-HISTORY:]
    if past:
        axes.axhspan(min(past), max(past), color=svg.COLOURS["c0"], alpha=0.15, linewidth=0)
        axes.axhline(statistics.median(past), color=svg.COLOURS["soft"], linewidth=0.8, linestyle="--")
    axes.plot(places, one.values, color=svg.COLOURS["c0"], marker="o", markersize=2.5, linewidth=1)
    for place, line in zip(places, one.lines, strict=True):
        if not line.accepted:
            axes.plot([place], [line.metrics[one.metric]], "x", color=svg.COLOURS["bad"])
        if line.run_id == run_id:
            colour = svg.COLOURS["bad" if one.state == "regression" else "good" if one.state == "improved" else "fg"]
            axes.plot([place], [line.metrics[one.metric]], "o", color=colour, markersize=6)
    for change in trend.changes(one.values):
        axes.axvline(change.at - 0.5, color=svg.COLOURS["c2"], linewidth=1)
    state = f": {one.state}" if one.state else ""
    axes.set_title(_shorten(one.step, _LONGEST_TITLE - len(state)) + state, loc="left")
    axes.set_xticks([])
    axes.set_ylim(bottom=0, top=max(one.values) * 1.15)


def _shorten(text: str, most: int) -> str:
    return text if len(text) <= most else f"{text[: most - 1]}…"

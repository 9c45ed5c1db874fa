"""Inside each load step: every request over the schedule, the engine beneath, and the distribution."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.measurement.metrics import latency_s
from pytest_vllm_stage.measurement.samples import Measurement, Sample, ServerReading
from pytest_vllm_stage.report.html import svg
from pytest_vllm_stage.report.html.chart import Chart, Part, Section
from pytest_vllm_stage.report.html.load_charts import plain_ticks
from pytest_vllm_stage.report.run_data import RunData, StepData
from pytest_vllm_stage.report.slo_matrix import sign_of
from pytest_vllm_stage.report.values import format_interval, format_number

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

#: Up to so many requests are drawn one by one.
MOST_POINTS = 2000
_SLOWEST_SHARE = 0.1
#: Fewer than so many are drawn larger.
_FEW_POINTS = 150
_LATENCIES = (("ttft", "ms"), ("itl", "ms"), ("tpot", "ms"), ("e2e_latency", "s"))
_GIB = 1024**3


@dataclass(frozen=True)
class Track:
    """A panel of the engine's readings.

    Attributes:
        label: Of its axis.
        series: Name to field of `ServerReading`.
        factor: What the values are multiplied with.
    """

    label: str
    series: dict[str, str]
    factor: float = 1.0


_TRACKS = (
    Track("requests", {"running": "running", "waiting": "waiting"}),
    Track("KV cache, %", {"KV cache": "kv_cache_usage"}, 100),
    Track("GPU, GiB", {"GPU memory": "gpu_memory_used_bytes"}, 1 / _GIB),
    Track("GPU, %", {"GPU utilisation": "gpu_utilization"}, 100),
)


def step_section(data: RunData) -> Section | None:
    """A collapsible part for each step, open where it is not good; None where no step was measured."""
    if not data.steps:
        return None
    note = (
        "Every request at its scheduled time, with the engine's own metrics beneath on the same axis. Latency counts "
        "from the scheduled send time. The warm-up comes before second 0 and is not measured."
    )
    return Section("steps", "Inside each load step", note, parts=[_part(step) for step in data.steps])


def _part(step: StepData) -> Part:
    lines = [step.why, *(text for text in step.findings if text not in step.why)]
    picture, extra = None, []
    try:
        measurement = step.measurement()
        if measurement is None:
            extra = ["The samples of this step are missing."]
        else:
            extra = list(_remarks(measurement, step))
            if svg.available() and measurement.samples:
                picture = _draw(step, measurement)
    except ConfigError as error:
        extra = [error.message]
    title = f"Requests of {step.name}"
    caption = (
        "Left: each request; crosses are failed ones. Right: share of the requests within a time (ECDF, log axis)."
    )
    chart = Chart(
        title, caption, ("metric", "unit", "P50", "P90", "P95", "P99", "mean", "max", "n"), _rows(step), picture
    )
    opened = step.outcome in ("fail", "invalid")
    return Part(
        f"{step.role}, {step.load}",
        step.outcome,
        sign_of(step.outcome),
        [*filter(None, lines), *extra],
        [chart],
        opened,
    )


def _rows(step: StepData) -> list[tuple[str, ...]]:
    rows = []
    for name, unit in _LATENCIES:
        found = [step.percentiles.get(f"{name}_p{percent}_{unit}") for percent in (50, 90, 95, 99)]
        if not any(found):
            continue
        values = [_with_interval(step, f"{name}_p{percent}_{unit}") for percent in (50, 90, 95, 99)]
        ends = [format_number(step.metrics.get(f"{name}_{end}_{unit}")) for end in ("mean", "max")]
        rows.append((name, unit, *values, *ends, str(next(one["n"] for one in found if one))))
    return rows


def _with_interval(step: StepData, key: str) -> str:
    ci = step.percentiles.get(key, {}).get("ci95")
    value = format_number(step.metrics.get(key))
    if not isinstance(ci, list) or any(isinstance(end, str) for end in ci):
        return value
    return f"{value} ({format_interval((float(ci[0]), float(ci[1])))})"


def _remarks(measurement: Measurement, step: StepData) -> Iterator[str]:
    failures: dict[str, int] = {}
    for sample in measurement.samples:
        if sample.failure:
            kind = f"{sample.failure.kind}: {sample.failure.text[:120]}"
            failures[kind] = failures.get(kind, 0) + 1
    yield from (
        f"{count} requests failed: {kind}" for kind, count in sorted(failures.items(), key=lambda one: -one[1])[:5]
    )
    if measurement.early_stop:
        stop = measurement.early_stop
        saved = f"{stop.saved_s:.1f} s saved"
        yield f"Ended early after {stop.requests} requests at {stop.at_s:.1f} s, {saved}: {stop.reason}"
    if not measurement.server:
        yield "The engine's own metrics could not be read during this step."
    elif all(reading.gpu_memory_used_bytes is None for reading in measurement.server):
        yield "GPU memory and utilisation: no source."
    shown = len(thin(measurement.samples))
    if shown < len(measurement.samples):
        yield (
            f"{shown} of {len(measurement.samples)} requests are drawn: all failed ones, the slowest "
            f"{_SLOWEST_SHARE:.0%}, and an even selection of the others; the distribution has all."
        )


def thin(samples: Sequence[Sample]) -> list[Sample]:
    """At most about `MOST_POINTS`: every failed and slow request stays, of the others an even selection."""
    if len(samples) <= MOST_POINTS:
        return list(samples)
    ordered = sorted(samples, key=lambda sample: sample.end_s - sample.scheduled_s)
    slow = {sample.index for sample in ordered[-int(len(ordered) * _SLOWEST_SHARE) :][-MOST_POINTS // 2 :]}
    others = [sample.index for sample in samples if sample.index not in slow and sample.failure is None]
    stride = max(1, math.ceil(len(others) / (MOST_POINTS - len(slow))))
    kept = slow | set(others[::stride])
    return [sample for sample in samples if sample.failure is not None or sample.index in kept]


def _draw(step: StepData, measurement: Measurement) -> Markup:
    tracks = [track for track in _TRACKS if _has(track, measurement.server)]
    figure = svg.new_figure(10, 2.9 + 0.75 * len(tracks))
    heights = (1.6, 1.6, *[1] * len(tracks))
    grid = figure.add_gridspec(2 + len(tracks), 2, width_ratios=(2.6, 1), height_ratios=heights)
    first = figure.add_subplot(grid[0, 0])
    rest = [figure.add_subplot(grid[row, 0], sharex=first) for row in range(1, 2 + len(tracks))]
    shares = figure.add_subplot(grid[:, 1])
    left = [first, *rest]
    shown = thin(measurement.samples)
    _scatter(first, shown, "ttft", 1000, "c0", "TTFT, ms")
    _scatter(rest[0], shown, "e2e_latency", 1, "c1", "response, s")
    for track, axes in zip(tracks, rest[1:], strict=True):
        _track(axes, track, measurement.server)
    _mark_events(left, step, measurement)
    for axes in left[:-1]:
        axes.tick_params(labelbottom=False)
    last_s = max([sample.scheduled_s for sample in measurement.samples] + [measurement.step.duration_s])
    first.set_xlim(-0.02 * last_s, 1.02 * last_s)
    left[-1].set_xlabel("seconds from the start of the step")
    _distribution(shares, measurement.samples)
    return svg.draw(figure, f"step-{zlib.crc32(step.name.encode())}")  # a step's name may hold anything


def _has(track: Track, server: Sequence[ServerReading]) -> bool:
    return any(getattr(reading, field) is not None for reading in server for field in track.series.values())


def _scatter(axes: Axes, samples: Sequence[Sample], name: str, factor: float, colour: str, label: str) -> None:
    known = [
        (sample.scheduled_s, value * factor) for sample in samples if (value := latency_s(name, sample)) is not None
    ]
    good = [(x, y) for x, y in known if math.isfinite(y)]
    size = 5.0 if len(good) < _FEW_POINTS else 3.0
    svg.points(axes, [x for x, _ in good], [y for _, y in good], colour, size=size)
    values = [y for _, y in good] or [1.0]
    low, high = max(min(values), 1e-4), max(max(values), 1e-4)
    axes.set_yscale("log")
    axes.set_ylim(low / 1.25, high * 1.5)
    failed = [x for x, y in known if not math.isfinite(y)]
    axes.plot(failed, [high * 1.3] * len(failed), "x", color=svg.COLOURS["bad"])
    axes.set_ylabel(label)
    plain_ticks(axes.yaxis)


def _track(axes: Axes, track: Track, server: Sequence[ServerReading]) -> None:
    styles = (("c2", "-"), ("open", "--"))
    for (name, field), (colour, line) in zip(track.series.items(), styles, strict=False):
        known = [(reading.at_s, getattr(reading, field)) for reading in server if getattr(reading, field) is not None]
        axes.step(
            [x for x, _ in known], [y * track.factor for _, y in known], where="post", color=svg.COLOURS[colour],
            linestyle=line, label=name,
        )  # fmt: skip
    axes.set_ylim(bottom=0)
    axes.set_ylabel(track.label)
    axes.legend(loc="upper left", ncols=2)


def _mark_events(left: Sequence[Axes], step: StepData, measurement: Measurement) -> None:
    stalls = step.result.get("metrics", {}).get("stalled_at_s", [])
    for axes in left:
        for at_s in stalls[:50]:
            axes.axvline(float(at_s), color=svg.COLOURS["bad"], linewidth=0.8, linestyle=":")
        if measurement.early_stop:
            axes.axvline(measurement.early_stop.at_s, color=svg.COLOURS["good"], linewidth=1, linestyle="--")
    if measurement.early_stop:
        left[0].set_title("dashed: ended early, the verdict was certain", loc="left")
    elif stalls:
        left[0].set_title(f"dotted: {len(stalls)} stalls", loc="left")


def _distribution(axes: Axes, samples: Sequence[Sample]) -> None:
    for name, colour, label in (("ttft", "c0", "TTFT"), ("e2e_latency", "c1", "response")):
        values = sorted(value for sample in samples if (value := latency_s(name, sample)) is not None)
        finite = [value for value in values if 0 < value < math.inf]
        stride = max(1, math.ceil(len(finite) / 150))
        shares = [(place + 1) / len(values) * 100 for place in range(len(finite))]
        axes.plot(finite[::stride], shares[::stride], color=svg.COLOURS[colour], label=label)
    axes.set_xscale("log")
    axes.set_ylim(0, 101)
    axes.set_xlabel("seconds")
    axes.set_ylabel("% of the requests within")
    axes.legend(loc="lower right")
    plain_ticks(axes.xaxis)

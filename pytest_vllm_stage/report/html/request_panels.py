"""The chart of a load step: every request over the schedule, the engine beneath, and the distribution.

To make a figure with its panels takes longer than to draw into it, so steps with the same panels share one.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllm_stage.measurement.metrics import latency_s
from pytest_vllm_stage.measurement.samples import Measurement, Sample, ServerReading
from pytest_vllm_stage.report.html import svg
from pytest_vllm_stage.report.run_data import StepData

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

#: Up to so many requests are drawn one by one.
MOST_POINTS = 2000
SLOWEST_SHARE = 0.1
#: Fewer than so many are drawn larger.
_FEW_POINTS = 150
#: Stalls that are marked.
_MOST_STALLS = 50
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


def tracks_of(measurement: Measurement) -> tuple[str, ...]:
    """Labels of the panels for which the engine or the GPU gave readings."""
    return tuple(track.label for track in _TRACKS if _has(track, measurement.server))


class RequestPanels:
    """A figure with the panels of a load step, drawn once per step.

    Args:
        tracks: Labels of the panels under the requests.
    """

    def __init__(self, tracks: Sequence[str]) -> None:
        self._tracks = [track for track in _TRACKS if track.label in tracks]
        rows = 2 + len(tracks)
        height = 3.1 + 0.75 * len(tracks)
        ratios = (1.6, 1.6, *[1] * len(tracks))
        self._figure, grid = svg.new_figure(
            height, rows=rows, columns=2, row_gap=0.18, width_ratios=(2.6, 1), height_ratios=ratios
        )
        first = self._figure.add_subplot(grid[0, 0])
        self._left = [first, *(self._figure.add_subplot(grid[row, 0], sharex=first) for row in range(1, rows))]
        self._shares = self._figure.add_subplot(grid[:, 1])
        labels = ("TTFT, ms", "response, s", *(track.label for track in self._tracks))
        for axes, label in zip(self._left, labels, strict=True):
            svg.label_axes(axes, "", label)
            axes.tick_params(labelbottom=axes is self._left[-1])
        svg.label_axes(self._left[-1], "seconds from the start of the step", labels[-1])
        svg.label_axes(self._shares, "seconds", "% of the requests within")

    def draw(self, step: StepData, measurement: Measurement) -> Markup:
        """The picture of a step that has samples."""
        panels = (*self._left, self._shares)
        empty = [set(axes.get_children()) for axes in panels]
        shown = thin(measurement.samples)
        scatter_latency(self._left[0], shown, "ttft", 1000, "c0")
        scatter_latency(self._left[1], shown, "e2e_latency", 1, "c1")
        for track, axes in zip(self._tracks, self._left[2:], strict=True):
            _track(axes, track, measurement.server)
        _mark_events(self._left, step, measurement)
        last_s = max([sample.scheduled_s for sample in measurement.samples] + [measurement.step.duration_s])
        self._left[0].set_xlim(-0.02 * last_s, 1.02 * last_s)
        _distribution(self._shares, measurement.samples)
        picture = svg.draw(self._figure, f"step-{zlib.crc32(step.name.encode())}")  # a step's name may hold anything
        for axes, kept in zip(panels, empty, strict=True):
            for drawn in set(axes.get_children()) - kept:
                drawn.remove()
        return picture


def thin(samples: Sequence[Sample]) -> list[Sample]:
    """At most about `MOST_POINTS`: every failed, abandoned and slow request stays, of the others an even selection."""
    if len(samples) <= MOST_POINTS:
        return list(samples)
    ordered = sorted(samples, key=lambda sample: sample.end_s - sample.scheduled_s)
    slow = {sample.index for sample in ordered[-int(len(ordered) * SLOWEST_SHARE) :][-MOST_POINTS // 2 :]}
    others = [sample.index for sample in samples if sample.index not in slow and sample.failure is None]
    stride = max(1, math.ceil(len(others) / (MOST_POINTS - len(slow))))
    kept = slow | set(others[::stride])
    return [sample for sample in samples if sample.failure is not None or sample.index in kept]


def _has(track: Track, server: Sequence[ServerReading]) -> bool:
    return any(getattr(reading, field) is not None for reading in server for field in track.series.values())


def scatter_latency(
    axes: Axes, samples: Sequence[Sample], name: str, factor: float, colour: str, *, start_s: float = 0.0
) -> None:
    """Each request's latency at its scheduled time after ``start_s``, on a log axis; failed ones as crosses above.

    Abandoned ones are triangles at the time that they had waited.
    """
    waited = [
        (sample.scheduled_s - start_s, (sample.end_s - sample.scheduled_s) * factor)
        for sample in samples
        if sample.abandoned and math.isinf(latency_s(name, sample) or 0.0)
    ]
    known = [
        (sample.scheduled_s - start_s, value * factor)
        for sample in samples
        if (value := latency_s(name, sample)) is not None and not (sample.abandoned and math.isinf(value))
    ]
    good = [(x, y) for x, y in known if math.isfinite(y)]
    size = 5.0 if len(good) < _FEW_POINTS else 3.0
    svg.points(axes, [x for x, _ in good], [y for _, y in good], colour, size=size)
    axes.plot([x for x, _ in waited], [y for _, y in waited], "^", color=svg.COLOURS["open"], markersize=4)
    values = [y for _, y in (*good, *waited)] or [1.0]
    low, high = max(min(values), 1e-4), max(max(values), 1e-4)
    axes.set_yscale("log")
    axes.set_ylim(low / 1.25, high * 1.5)
    failed = [x for x, y in known if not math.isfinite(y)]
    axes.plot(failed, [high * 1.3] * len(failed), "x", color=svg.COLOURS["bad"])
    svg.plain_ticks(axes.yaxis)


def _track(axes: Axes, track: Track, server: Sequence[ServerReading]) -> None:
    styles = (("c2", "-"), ("open", "--"))
    highest = 0.0
    for (name, field), (colour, line) in zip(track.series.items(), styles, strict=False):
        known = [(reading.at_s, getattr(reading, field)) for reading in server if getattr(reading, field) is not None]
        values = [y * track.factor for _, y in known]
        highest = max([highest, *values])
        axes.step([x for x, _ in known], values, where="post", color=svg.COLOURS[colour], linestyle=line, label=name)
    axes.set_ylim(0, 1.4 * highest if highest else 1)  # with room for the legend
    if len(track.series) > 1:
        axes.legend(loc="upper left", ncols=2)


def _mark_events(left: Sequence[Axes], step: StepData, measurement: Measurement) -> None:
    stalls = step.result.get("metrics", {}).get("stalled_at_s", [])
    for axes in left:
        for at_s in stalls[:_MOST_STALLS]:
            axes.axvline(float(at_s), color=svg.COLOURS["bad"], linewidth=0.8, linestyle=":")
        if measurement.early_stop:
            axes.axvline(measurement.early_stop.at_s, color=svg.COLOURS["good"], linewidth=1, linestyle="--")
    title = f"dotted: {len(stalls)} stalls" if stalls else ""
    if measurement.early_stop:
        title = "dashed: ended early, the verdict was certain"
    left[0].set_title(title, loc="left")


def _distribution(axes: Axes, samples: Sequence[Sample]) -> None:
    drawn: list[float] = []
    for name, colour, label in (("ttft", "c0", "TTFT"), ("e2e_latency", "c1", "response")):
        values = sorted(value for sample in samples if (value := latency_s(name, sample)) is not None)
        finite = [value for value in values if 0 < value < math.inf]
        stride = max(1, math.ceil(len(finite) / 150))
        shares = [(place + 1) / len(values) * 100 for place in range(len(finite))]
        axes.plot(finite[::stride], shares[::stride], color=svg.COLOURS[colour], label=label)
        drawn += finite
    axes.set_xscale("log")
    axes.set_xlim(min(drawn, default=0.9) / 1.1, max(drawn, default=1.1) * 1.1)
    axes.set_ylim(0, 101)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, borderaxespad=0)
    svg.plain_ticks(axes.xaxis)

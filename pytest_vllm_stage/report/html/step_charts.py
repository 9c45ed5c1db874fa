"""Inside each load step: its verdict and remarks, the chart of its requests, and the table of its latencies."""

from __future__ import annotations

from collections.abc import Iterator

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.report.html import svg
from pytest_vllm_stage.report.html.chart import Chart, Part, Section
from pytest_vllm_stage.report.html.request_panels import SLOWEST_SHARE, RequestPanels, thin, tracks_of
from pytest_vllm_stage.report.run_data import RunData, StepData
from pytest_vllm_stage.report.slo_matrix import sign_of
from pytest_vllm_stage.report.values import format_interval, format_number, format_percentile, format_sizes

_LATENCIES = (("ttft", "ms"), ("itl", "ms"), ("tpot", "ms"), ("e2e_latency", "s"))


def step_section(data: RunData) -> Section | None:
    """A collapsible part for each step, open where it is not good; None where no step was measured."""
    if not data.steps:
        return None
    note = (
        "Every request at its scheduled time, with the engine's own metrics beneath on the same axis. Latency counts "
        "from the scheduled send time. The warm-up comes before second 0 and is not measured."
    )
    figures: dict[tuple[str, ...], RequestPanels] = {}
    return Section("steps", "Inside each load step", note, parts=[_part(step, figures) for step in data.steps])


def _part(step: StepData, figures: dict[tuple[str, ...], RequestPanels]) -> Part:
    lines = [step.why, *(text for text in step.findings if text not in step.why)]
    picture, extra = None, []
    try:
        measurement = step.measurement()
        if measurement is None:
            extra = ["The samples of this step are missing."]
        else:
            extra = list(_remarks(measurement, step))
            if svg.available() and measurement.samples:
                tracks = tracks_of(measurement)
                panels = figures.get(tracks) or figures.setdefault(tracks, RequestPanels(tracks))
                picture = panels.draw(step, measurement)
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
        rows.append((name, unit, *values, *ends, format_sizes(*(one for one in found if one))))
    return rows


def _with_interval(step: StepData, key: str) -> str:
    ci = step.percentiles.get(key, {}).get("ci95")
    value = format_percentile(step.percentiles.get(key), step.metrics.get(key))
    if not isinstance(ci, list) or any(isinstance(end, str) for end in ci):
        return value
    return f"{value} ({format_interval((float(ci[0]), float(ci[1])))})"


def _remarks(measurement: Measurement, step: StepData) -> Iterator[str]:
    failures: dict[str, int] = {}
    for sample in measurement.samples:
        if sample.failure and not sample.abandoned:
            kind = f"{sample.failure.kind}: {sample.failure.text[:120]}"
            failures[kind] = failures.get(kind, 0) + 1
    yield from (
        f"{count} requests failed: {kind}" for kind, count in sorted(failures.items(), key=lambda one: -one[1])[:5]
    )
    abandoned = sum(sample.abandoned for sample in measurement.samples)
    if abandoned:
        yield (
            f"{abandoned} requests were abandoned when the step ended early (triangles: how long they had waited); a "
            "percentile after > is at least so large."
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
            f"{SLOWEST_SHARE:.0%}, and an even selection of the others; the distribution has all."
        )

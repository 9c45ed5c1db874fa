"""The disruptions of --stage-disrupt: a table of all, and for each the requests around it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.measurement.metrics import latency_s
from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.samples_file import SUFFIX, read_measurement
from pytest_vllm_stage.report import disruption_table
from pytest_vllm_stage.report.html import svg
from pytest_vllm_stage.report.html.chart import Chart, Part, Section
from pytest_vllm_stage.report.html.request_panels import scatter_latency, thin
from pytest_vllm_stage.report.run_data import RunData
from pytest_vllm_stage.report.slo_matrix import sign_of
from pytest_vllm_stage.report.values import format_number
from pytest_vllm_stage.resilience.window import FOLDER, Marks

if TYPE_CHECKING:
    from markupsafe import Markup

_HEADERS = ("seconds from its start", "requests", "failed", "slowest TTFT, ms")
#: Rows of the table of one disruption's requests.
_MOST_ROWS = 40


def disruption_section(data: RunData) -> Section | None:
    """A table over all disruptions and a collapsible part for each; None where the run disrupted nothing."""
    disruptions = data.record["disruptions"]
    if not disruptions:
        return None
    note = (
        "The stage was changed while traffic ran on a schedule that does not wait for answers. The window around a "
        "disruption is judged: from its start until every request is good again, and a settle period after that."
    )
    rows = disruption_table.document_rows(disruptions)
    table = Chart("All disruptions", "With the promises of the profile.", disruption_table.DOCUMENT_HEADER, rows)
    return Section("disruptions", "Disruptions", note, [table], [_part(data, one) for one in disruptions])


def _part(data: RunData, one: Mapping[str, Any]) -> Part:
    lines, charts = [one["why"], *one["problems"], *one["notes"]], []
    # A name of the record may be no file's name.
    files = {path.name.removesuffix(SUFFIX): path for path in (data.directory / FOLDER).glob(f"*{SUFFIX}")}
    try:
        samples = read_measurement(files[one["name"]]).samples if one["name"] in files else ()
        marks = Marks(one["marks"]["began_s"], one["marks"]["ended_s"])
        if not samples:
            lines.append("The samples of this disruption are missing.")
        elif not _first_s(samples) <= marks.began_s <= marks.ended_s <= _last_s(samples):
            lines.append("The disruption is not within the time of its samples.")
        else:
            charts = [_chart(one, samples, marks)]
    except ConfigError as error:
        lines.append(error.message)
    outcome = one["outcome"]
    opened = outcome != "pass"
    return Part(disruption_table.title_of(one), outcome, sign_of(outcome), list(filter(None, lines)), charts, opened)


def _first_s(samples: Sequence[Sample]) -> float:
    return min(sample.scheduled_s for sample in samples)


def _last_s(samples: Sequence[Sample]) -> float:
    return max(sample.end_s for sample in samples)


def _chart(one: Mapping[str, Any], samples: Sequence[Sample], marks: Marks) -> Chart:
    picture = _draw(one, samples, marks) if svg.available() else None
    caption = (
        "Each request at its scheduled time; crosses are failed ones. Shaded: from the start of the disruption to "
    )
    caption += "its end. Dotted: recovered. Dashed: the limit of the TTFT."
    return Chart(f"Requests around {disruption_table.title_of(one)}", caption, _HEADERS, _rows(samples, marks), picture)


def _rows(samples: Sequence[Sample], marks: Marks) -> list[tuple[str, ...]]:
    """The requests by when they were scheduled, in intervals of equal length."""
    at_s = [sample.scheduled_s - marks.began_s for sample in samples]
    width_s = max(1, math.ceil((max(at_s) - min(at_s)) / (_MOST_ROWS - 1)))
    groups: dict[int, list[Sample]] = {}
    for start_s, sample in zip(at_s, samples, strict=True):
        groups.setdefault(math.floor(start_s / width_s), []).append(sample)
    return [
        (
            f"{place * width_s} to {(place + 1) * width_s}",
            str(len(group)),
            str(sum(sample.failure is not None for sample in group)),
            format_number(max(_answered_ttfts_ms(group), default=None)),
        )
        for place, group in sorted(groups.items())
    ]


def _answered_ttfts_ms(samples: Sequence[Sample]) -> list[float]:
    found = (latency_s("ttft", sample) for sample in samples)
    return [value * 1000 for value in found if value is not None and math.isfinite(value)]


def _draw(one: Mapping[str, Any], samples: Sequence[Sample], marks: Marks) -> Markup:
    figure, grid = svg.new_figure(2.6)
    axes = figure.add_subplot(grid[0, 0])
    svg.label_axes(axes, "seconds from the start of the disruption", "TTFT, ms")
    scatter_latency(axes, thin(samples), "ttft", 1000, "c0", start_s=marks.began_s)
    axes.axvspan(0, marks.ended_s - marks.began_s, color=svg.COLOURS["grid"], zorder=0)
    recovery_s = one["window"].get("recovery_s")
    if recovery_s is not None and 0 <= recovery_s <= _last_s(samples) - marks.began_s:
        axes.axvline(recovery_s, color=svg.COLOURS["good"], linewidth=1, linestyle=":")
    limit_ms = one["promise"].get("ttft_p99_ms")
    low, high = axes.get_ylim()
    if isinstance(limit_ms, int | float) and low <= limit_ms <= high:
        axes.axhline(limit_ms, color=svg.COLOURS["bad"], linewidth=0.8, linestyle="--")
    return svg.draw(figure, f"disruption-{zlib.crc32(one['name'].encode())}")

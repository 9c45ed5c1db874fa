"""``report.md``: the verdict, the SLO matrix, regressions and failures, for job summaries and pull-request comments."""

from __future__ import annotations

import re
from collections.abc import Iterator

from pytest_vllm_stage.report import disruption_table
from pytest_vllm_stage.report.causes import find_causes, find_gaps
from pytest_vllm_stage.report.overview import Overview, summarise_run
from pytest_vllm_stage.report.run_data import RunData
from pytest_vllm_stage.report.slo_matrix import Cell, build_matrix
from pytest_vllm_stage.report.values import format_duration

#: GitHub cuts a job summary at 1 MiB and refuses a comment beyond 65 536 characters.
LIMIT_BYTES = 60_000
_MOST_CAUSES = 20
_MOST_TESTS = 8


def render_markdown(data: RunData) -> str:
    """The report, at most `LIMIT_BYTES` long; it is cut at a line, with a note."""
    parts = (_head, _causes, _regressions, _matrix, _disruptions, _gaps, _links)
    lines = [line for part in parts for line in part(data)]
    text: list[str] = []
    size = 0
    cut = "\n*The rest did not fit; `report.html` has it.*\n"
    for line in lines:
        size += len(line.encode("utf-8", "backslashreplace")) + 1
        if size > LIMIT_BYTES - len(cut.encode()):
            return "\n".join(text) + "\n" + cut
        text.append(line)
    return "\n".join(text) + "\n"


def escape(text: str) -> str:
    """Text from a server as one line without Markdown or HTML."""
    one_line = " ".join(text.split())
    html = one_line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    unmentioned = html.replace("@", "@\u200b")  # a model's name must not notify a GitHub user
    return re.sub(r"([\\`*\[\]#+|~]|(?<!\w)_|_(?!\w))", r"\\\1", unmentioned)


def _code(text: str) -> str:
    """A fenced block; the fence is longer than any in the text."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def _head(data: RunData) -> Iterator[str]:
    overview = summarise_run(data)
    marks = {"pass": "✅", "fail": "❌", "inconclusive": "❔", "environment unusable": "⚠️", "incomplete": "⚠️"}
    yield f"## {marks[overview.verdict]} vLLM stage: {overview.verdict}"
    yield ""
    for label, text in data.notices:
        yield f"> **{label}**: {escape(text)}."
        yield ""
    yield from (f"- {escape(reason)}" for reason in overview.reasons)
    yield ""
    yield f"{_tests(overview)}; {format_duration(overview.duration_s)}"
    yield ""
    yield "| | |"
    yield "|---|---|"
    yield from (f"| {escape(name)} | {escape(value)} |" for name, value in overview.facts)
    yield ""
    yield from (f"- ⚠️ {escape(problem)}" for problem in data.problems)


def _tests(overview: Overview) -> str:
    return "Checks: " + (", ".join(f"{n} {outcome}" for outcome, n in overview.counts.items()) or "none ran")


def _causes(data: RunData) -> Iterator[str]:
    causes = find_causes(data)
    if not causes:
        return
    yield "### Failures"
    yield ""
    for cause in causes[:_MOST_CAUSES]:
        blocked = f", {len(cause.blocked)} not run because of it" if cause.blocked else ""
        checks = f"{len(cause.tests)} check{'' if len(cause.tests) == 1 else 's'}"
        yield f"**{escape(cause.headline)}**" + (f" ({checks} failed{blocked})" if cause.tests else "")
        yield ""
        if cause.message != cause.headline:
            yield _code(cause.message)
            yield ""
        yield from (f"- next: {escape(step)}" for step in cause.next_steps)
        yield from (f"- {escape(name)}" for name in cause.tests[:_MOST_TESTS])
        if len(cause.tests) > _MOST_TESTS:
            yield f"- {len(cause.tests) - _MOST_TESTS} more"
        yield ""
    if len(causes) > _MOST_CAUSES:
        yield f"{len(causes) - _MOST_CAUSES} more causes are in `report.html`."
        yield ""


def _regressions(data: RunData) -> Iterator[str]:
    regressions = data.record["regressions"]
    if not regressions:
        return
    yield "### Compared with earlier runs"
    yield ""
    unchanged = [one for one in regressions if one.get("state") in ("ok", "improved")]
    yield f"{len(unchanged)} of {len(regressions)} load steps unchanged or improved."
    yield ""
    yield from (f"- {escape(str(one.get('text', '')))}" for one in regressions if one not in unchanged)
    yield ""


def _matrix(data: RunData) -> Iterator[str]:
    matrix = build_matrix(data)
    if not data.steps:
        return
    yield "### SLO matrix"
    yield ""
    yield "| step | verdict | " + " | ".join(escape(column) for column in matrix.columns) + " |"
    yield "|---|---|" + "---|" * len(matrix.columns)
    for rows in matrix.rows.values():
        for row in rows:
            cells = " | ".join(_cell(cell) for cell in row.cells)
            yield f"| {escape(row.step.name)} | {row.sign} | {cells} |"
    yield ""
    why = [step for step in data.steps if step.outcome != "pass"]
    yield from (f"- {escape(step.name)}: {escape(step.why)}" for step in why)
    yield ""


def _cell(cell: Cell | None) -> str:
    if cell is None:
        return ""
    return f"{cell.sign.split()[0]} {cell.value} {cell.limit}<br>{cell.interval}<br>{cell.samples}"


def _disruptions(data: RunData) -> Iterator[str]:
    disruptions = data.record["disruptions"]
    if not disruptions:
        return
    yield "### Disruptions"
    yield ""
    yield "| " + " | ".join(disruption_table.DOCUMENT_HEADER) + " |"
    yield "|" + "---|" * len(disruption_table.DOCUMENT_HEADER)
    for row in disruption_table.document_rows(disruptions):
        yield "| " + " | ".join(map(escape, row)) + " |"
    yield ""
    for one in disruptions:
        title = escape(disruption_table.title_of(one))
        yield from (f"- {title}: {escape(text)}" for text in disruption_table.find_reasons(one))
    yield ""


def _gaps(data: RunData) -> Iterator[str]:
    gaps = [gap for gap in find_gaps(data) if not gap.declared]
    if not gaps:
        return
    yield "### Without a verdict"
    yield ""
    yield from (f"- {escape(gap.reason)} ({len(gap.tests)} checks)" for gap in gaps[:_MOST_CAUSES])
    yield ""


def _links(data: RunData) -> Iterator[str]:
    for one in data.record["publications"]:
        yield f"Published {escape(str(one.get('name')))}: {escape(str(one.get('uri')))}"
        yield ""
    yield f"Full report: `{data.directory.name}/report.html`; samples and metrics: `{data.directory.name}/benchmarks/`"

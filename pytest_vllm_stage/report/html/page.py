"""Puts the parts of the page together: what is said is decided here, how it looks is the template's."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup

import pytest_vllm_stage
from pytest_vllm_stage.report.causes import Cause, find_causes, find_gaps
from pytest_vllm_stage.report.files import PAGE
from pytest_vllm_stage.report.html import svg, timeline
from pytest_vllm_stage.report.html.chart import Section
from pytest_vllm_stage.report.html.comparison import compare_models, compare_runs
from pytest_vllm_stage.report.html.disruptions import disruption_section
from pytest_vllm_stage.report.html.history import history_section
from pytest_vllm_stage.report.html.load_charts import load_section
from pytest_vllm_stage.report.html.publications import describe_publications
from pytest_vllm_stage.report.html.step_charts import step_section
from pytest_vllm_stage.report.overview import summarise_run
from pytest_vllm_stage.report.run_data import RunData
from pytest_vllm_stage.report.slo_matrix import build_matrix
from pytest_vllm_stage.report.values import format_duration

_MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "environment unusable": "!", "incomplete": "…"}
_RANK = {"error": 0, "failed": 1, "skipped": 2, "passed": 3}
#: The files next to the page that its last lines link to.
_FILES = ("run.json", "journal.jsonl", "junit.xml", "report.md", "metrics.prom", "benchmarks/benchmarks.csv")
_MOST_RERUN = 20


def render_page(data: RunData, other: RunData | None = None) -> str:
    """The whole page as text; with another run, each load step is compared with that run's too."""
    chart_sections, history = _chart_sections(data)
    comparisons = [table for table in (compare_models(data), compare_runs(data, other) if other else None) if table]
    overview = summarise_run(data)
    causes = find_causes(data)
    script = _asset("script.js")
    return (
        _environment()
        .get_template("page.html.j2")
        .render(
            data=data,
            overview=overview,
            mark=_MARKS[overview.verdict],
            duration=format_duration(overview.duration_s),
            sections=_sections(chart_sections, comparisons=bool(comparisons), history=history is not None),
            causes=causes,
            rerun=rerun_command(data, causes),
            gaps=find_gaps(data),
            tests=_tests(data),
            matrix=build_matrix(data),
            chart_sections=chart_sections,
            comparisons=comparisons,
            history=history,
            links=_earlier_pages(data),
            drawn=svg.available(),
            publications=describe_publications(data),
            bars=timeline.bars(data),
            settings=_settings(data),
            versions=[(str(name), str(value)) for name, value in data.record["versions"].items()],
            files={
                "names": [
                    name for name in _FILES if (data.directory / name).exists() or name.startswith(("rep", "met"))
                ],
                "diagnostics": (data.directory / "diagnostics").is_dir(),
            },
            version=pytest_vllm_stage.__version__,
            style=Markup(_asset("style.css")),  # noqa: S704 - our own file
            script=Markup(script),  # noqa: S704 - our own file
            script_hash=_hash(script),
        )
    )


def render_index(entries: Sequence[Any], sparklines: Mapping[str, Any]) -> str:
    """The page over all runs; see `report.index`, which knows them."""
    style = Markup(_asset("style.css"))  # noqa: S704 - our own file
    template = _environment().get_template("index.html.j2")
    return template.render(entries=entries, sparklines=sparklines, marks=_MARKS, style=style)


@cache
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_asset),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _asset(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")


def _hash(script: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def _sections(chart_sections: list[Section], *, comparisons: bool, history: bool) -> list[tuple[str, str]]:
    found = [("failures", "Failures"), ("checks", "Checks"), ("slo", "SLO matrix")]
    found += [(section.id, section.title) for section in chart_sections]
    found += [("comparison", "Comparison")] if comparisons else []
    found += [("history", "History")] if history else []
    return [*found, ("publication", "Publication"), ("timeline", "Timeline"), ("settings", "Settings")]


def _chart_sections(data: RunData) -> tuple[list[Section], Section | None]:
    if (
        not data.steps and not data.history and not data.record["disruptions"]
    ):  # nothing to draw, and matplotlib takes a second to import
        return [], history_section(data)
    with svg.drawing():
        sections = (load_section(data), step_section(data), disruption_section(data))
        return [section for section in sections if section], history_section(data)


def _earlier_pages(data: RunData) -> list[str]:
    """The pages of the runs in the history whose directories are next to this run's, newest first."""
    earlier = dict.fromkeys(line.run_id for line in reversed(data.history) if line.run_id != data.run_id)
    parent = data.directory.resolve().parent
    return [f"../{run_id}/{PAGE}" for run_id in earlier if (parent / Path(run_id).name / PAGE).is_file()]


def _tests(data: RunData) -> list[Mapping[str, Any]]:
    """Every check with what it proves, the worst outcomes first."""
    tests = [{"proves": "", "duration_s": 0.0, **test} for test in data.record["tests"]]
    return sorted(tests, key=lambda test: _RANK.get(test["outcome"], 0))


def rerun_command(data: RunData, causes: list[Cause]) -> str:
    """The failed checks with the options that were given on the command line; empty where no check failed."""
    names = [name for cause in causes for name in cause.tests]
    if not names:
        return ""
    options = [
        f"{setting['source']}={setting['value']}" if setting["value"] not in (True, "true") else setting["source"]
        for name, setting in data.record["settings"].items()
        if str(setting["source"]).startswith("--stage-") and name != "run_dir"
    ]
    return shlex.join(["pytest", *(names if len(names) <= _MOST_RERUN else ["suites/"]), *options])


def _settings(data: RunData) -> list[tuple[str, str, str]]:
    return [
        (name, _shown(setting.get("value")), str(setting.get("source", "")))
        for name, setting in data.record["settings"].items()
    ] + [(f"profile: {name}", str(value), "profile") for name, value in data.record["profile"].items()]


def _shown(value: Any) -> str:
    if value is None:
        return ""
    return str(value).lower() if isinstance(value, bool) else str(value)

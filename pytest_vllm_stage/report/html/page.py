"""Puts the parts of the page together: what is said is decided here, how it looks is the template's."""

from __future__ import annotations

import base64
import hashlib
import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

import jinja2
from markupsafe import Markup

import pytest_vllm_stage
from pytest_vllm_stage.report.causes import Cause, find_causes, find_gaps
from pytest_vllm_stage.report.html import svg, timeline
from pytest_vllm_stage.report.html.chart import Section
from pytest_vllm_stage.report.html.load_charts import load_section
from pytest_vllm_stage.report.html.publications import describe_publications
from pytest_vllm_stage.report.html.step_charts import step_section
from pytest_vllm_stage.report.overview import summarise_run
from pytest_vllm_stage.report.run_data import RunData
from pytest_vllm_stage.report.slo_matrix import build_matrix
from pytest_vllm_stage.report.values import format_duration
from pytest_vllm_stage.settings.config import SIMULATED_NOTICE

_MARKS = {"pass": "✓", "fail": "✗", "inconclusive": "?", "environment unusable": "!", "incomplete": "…"}
_RANK = {"error": 0, "failed": 1, "skipped": 2, "passed": 3}
#: What a run leaves beside the page, for its last lines.
_FILES = ("run.json", "journal.jsonl", "junit.xml", "report.md", "metrics.prom", "benchmarks/benchmarks.csv")
_MOST_RERUN = 20


def render_page(data: RunData) -> str:
    """The whole page as text."""
    chart_sections = _chart_sections(data)
    comparison = _comparison(data)
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
            simulated_notice=SIMULATED_NOTICE,
            sections=_sections(chart_sections, comparison is not None),
            causes=causes,
            rerun=rerun_command(data, causes),
            gaps=find_gaps(data),
            tests=_tests(data),
            matrix=build_matrix(data),
            chart_sections=chart_sections,
            comparison=comparison,
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


def _sections(chart_sections: list[Section], comparison: bool) -> list[tuple[str, str]]:
    found = [("failures", "Failures"), ("checks", "Checks"), ("slo", "SLO matrix")]
    found += [(section.id, section.title) for section in chart_sections]
    found += [("comparison", "Comparison")] if comparison else []
    return [*found, ("publication", "Publication"), ("timeline", "Timeline"), ("settings", "Settings")]


def _chart_sections(data: RunData) -> list[Section]:
    with svg.drawing():
        return [section for section in (load_section(data), step_section(data)) if section]


@dataclass(frozen=True)
class ComparisonTable:
    """A table of the models side by side."""

    note: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def _comparison(data: RunData) -> ComparisonTable | None:
    return None


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
        f"{setting['source']}={setting['value']}" if setting["value"] != "true" else setting["source"]
        for name, setting in data.record["settings"].items()
        if str(setting["source"]).startswith("--stage-") and name != "run_dir"
    ]
    return shlex.join(["pytest", *(names if len(names) <= _MOST_RERUN else ["suites/"]), *options])


def _settings(data: RunData) -> list[tuple[str, str, str]]:
    return [
        (name, "" if setting.get("value") is None else str(setting["value"]), str(setting.get("source", "")))
        for name, setting in data.record["settings"].items()
    ] + [(f"profile: {name}", str(value), "profile") for name, value in data.record["profile"].items()]

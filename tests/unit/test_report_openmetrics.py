"""metrics.prom: stable names and labels, units in base units, nothing that would break the exposition format."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_vllm_stage.report.openmetrics import render_metrics
from pytest_vllm_stage.report.run_data import load_run
from tests.unit.made_results import measured, rate_step
from tests.unit.made_run import check, make_run, steps

_SAMPLE = re.compile(r'^(\w+)\{((?:\w+="(?:[^"\\\n]|\\["\\n])*",?)*)\} (\S+)$')
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')

Parsed = dict[str, list[tuple[dict[str, str], float]]]


def parse(text: str) -> Parsed:
    """A strict reader: families in one piece, each with TYPE and HELP first, each sample once, and an end."""
    lines = text.split("\n")
    assert lines[-2:] == ["# EOF", ""]
    found: Parsed = {}
    family, described = "", 0
    for line in lines[:-2]:
        if line.startswith("# TYPE "):
            family, kind = line.split()[2:]
            assert kind == "gauge"
            assert family not in found, "a family is in one piece"
            found[family], described = [], 1
        elif line.startswith("# UNIT "):
            assert family.endswith("_" + line.split()[3])
        elif line.startswith("# HELP "):
            assert line.split()[2] == family
            described += 1
        else:
            match = _SAMPLE.match(line)
            assert match, line
            assert (match[1], described) == (family, 2)
            labels = dict(_LABEL.findall(match[2]))
            assert labels not in [known for known, _ in found[family]], "each sample once"
            found[family].append((labels, float(match[3])))
    return found


def test_values_are_those_of_the_steps_in_base_units(tmp_path: Path) -> None:
    data = load_run(make_run(tmp_path / "run", check("a.py::test_a"), measurements=steps()))
    found = parse(render_metrics(data))
    assert {labels["verdict"]: value for labels, value in found["vllm_stage_run_verdict"]}["pass"] == 1
    (ttft,) = [
        value
        for labels, value in found["vllm_stage_step_latency_seconds"]
        if labels
        == {
            "profile": "local", "role": "full", "model": "smollm2-135m", "kind": "rate", "level": "5",
            "latency": "ttft", "quantile": "0.5",
        }
    ]  # fmt: skip
    step = next(step for step in data.steps if step.name == "full-rate-5")
    assert ttft == pytest.approx((step.metrics["ttft_p50_ms"] or 0) / 1000)
    assert {value for _, value in found["vllm_stage_objective_limit"]} == {500.0}


def test_infinite_latency_and_markup_in_names_keep_the_format(tmp_path: Path) -> None:
    broken = measured(rate_step(1.0, "full", 'a"b\\c\nd'), failures=39)
    found = parse(render_metrics(load_run(make_run(tmp_path / "run", measurements=[broken]))))
    latencies = found["vllm_stage_step_latency_seconds"]
    assert math.inf in [value for _, value in latencies]
    assert {labels["model"] for labels, _ in latencies} == {'a\\"b\\\\c\\nd'}


def test_killed_run_and_run_without_load_have_metrics_too(tmp_path: Path) -> None:
    found = parse(render_metrics(load_run(make_run(tmp_path / "run", exit_status=None))))
    assert {labels["verdict"] for labels, value in found["vllm_stage_run_verdict"] if value} == {"incomplete"}
    assert not [name for name in found if "_step_" in name]


def test_unknown_numbers_are_left_out(tmp_path: Path) -> None:
    data = load_run(make_run(tmp_path / "run", measurements=steps()[:1]))
    without = replace(data, steps=tuple(replace(step, metrics={}) for step in data.steps))
    assert "vllm_stage_step_requests" not in parse(render_metrics(without))

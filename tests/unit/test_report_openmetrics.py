"""metrics.prom: stable names and labels, units in base units, nothing that would break the exposition format."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families

from pytest_vllm_stage.report.openmetrics import render_metrics
from pytest_vllm_stage.report.run_data import load_run
from tests.unit.made_results import measured, rate_step
from tests.unit.made_run import check, make_run, steps

Parsed = dict[str, list[tuple[dict[str, str], float]]]


def parse(text: str) -> Parsed:
    """What Prometheus's own strict reader of the format finds: name to labels and value of each sample."""
    found: Parsed = {}
    for family in text_string_to_metric_families(text):
        assert (family.type, bool(family.documentation)) == ("gauge", True)
        assert {sample.name for sample in family.samples} == {family.name}
        found[family.name] = [(dict(sample.labels), sample.value) for sample in family.samples]
        every = [tuple(sorted(labels.items())) for labels, _ in found[family.name]]
        assert len(every) == len(set(every)), "each sample once"
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
    assert {labels["model"] for labels, _ in latencies} == {'a"b\\c\nd'}


def test_killed_run_and_run_without_load_have_metrics_too(tmp_path: Path) -> None:
    found = parse(render_metrics(load_run(make_run(tmp_path / "run", exit_status=None))))
    assert {labels["verdict"] for labels, value in found["vllm_stage_run_verdict"] if value} == {"incomplete"}
    assert not [name for name in found if "_step_" in name]


def test_unknown_numbers_are_left_out(tmp_path: Path) -> None:
    data = load_run(make_run(tmp_path / "run", measurements=steps()[:1]))
    without = replace(data, steps=tuple(replace(step, metrics={}) for step in data.steps))
    assert "vllm_stage_step_requests" not in parse(render_metrics(without))


@pytest.mark.parametrize("damage", [("# EOF\n", ""), ("gauge\n", "speed\n"), ('profile="local"', 'profile="local')])
def test_reader_of_the_tests_refuses_a_damaged_file(tmp_path: Path, damage: tuple[str, str]) -> None:
    text = render_metrics(load_run(make_run(tmp_path / "run", check("a.py::test_a"))))
    parse(text)
    with pytest.raises(ValueError, match=r"."):
        parse(text.replace(*damage, 1))

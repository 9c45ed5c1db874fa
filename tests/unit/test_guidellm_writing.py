"""Our measurement as GuideLLM's report: its percentiles are ours, and nothing is lost that GuideLLM can say."""

from __future__ import annotations

import json
import random
from pathlib import Path

import pytest

from pytest_vllm_stage.load.guidellm.distribution import summary
from pytest_vllm_stage.load.guidellm.reading import read_report
from pytest_vllm_stage.load.guidellm.writing import report_of, write_report
from pytest_vllm_stage.measurement.metrics import PERCENTS, summarise
from pytest_vllm_stage.measurement.samples import Measurement
from tests.unit.made_samples import failed, measurement, open_step, sample


def made(*, failing: bool) -> Measurement:
    dice = random.Random(1)
    step = open_step(10.0, 12.0)
    samples = [
        failed(i, i / 10)
        if failing and i % 10 == 0
        else sample(i, i / 10, ttft_s=dice.uniform(0.05, 0.4), itl_s=dice.uniform(0.004, 0.02))
        for i in range(120)
    ]
    return measurement(step, samples)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ("time_to_first_token_ms", "ttft_p{}_ms"),
        ("inter_token_latency_ms", "itl_p{}_ms"),
        ("request_latency", "e2e_latency_p{}_s"),
        ("request_scheduled_latency", "e2e_latency_p{}_s"),
    ],
)
def test_percentiles_are_ours(theirs: str, ours: str) -> None:
    measured = made(failing=False)
    metrics = summarise(measured.samples, measured.step)
    flat = metrics.flat()
    found = report_of(measured, metrics)["benchmarks"][0]["metrics"][theirs]["successful"]["percentiles"]
    assert [found[f"p{percent}"] for percent in PERCENTS] == pytest.approx([flat[ours.format(p)] for p in PERCENTS])


def test_failed_requests_are_apart() -> None:
    measured = made(failing=True)
    (benchmark,) = report_of(measured, summarise(measured.samples, measured.step))["benchmarks"]
    totals = {"successful": 108, "errored": 12, "incomplete": 0, "total": 120}
    assert benchmark["metrics"]["request_totals"] == totals
    assert benchmark["metrics"]["time_to_first_token_ms"]["successful"]["count"] == 108
    assert benchmark["metrics"]["time_to_first_output_token_ms"]["total"]["count"] == 0, "not known"
    assert {row["info"]["error"] for row in benchmark["requests"]["errored"]} == {"http_status: 503"}


def test_a_report_read_back_is_the_same_measurement(tmp_path: Path) -> None:
    measured = made(failing=True)
    path = tmp_path / "report.json"
    write_report(measured, path, summarise(measured.samples, measured.step))
    back = read_report(path, measured.step)
    for ours, theirs in zip(measured.samples, back.samples, strict=True):
        assert theirs.failure == ours.failure
        assert theirs.scheduled_s == pytest.approx(ours.scheduled_s, abs=1e-5)
        assert theirs.lag_s == pytest.approx(ours.lag_s, abs=1e-5)
        assert theirs.end_s == pytest.approx(ours.end_s, abs=1e-5)
        ends = (*ours.token_times_s[:1], *ours.token_times_s[-1:])
        assert theirs.token_times_s == pytest.approx(ends, abs=1e-5)
        assert (theirs.prompt_tokens, theirs.output_tokens) == (ours.prompt_tokens, ours.output_tokens)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.json"]


def test_the_driver_is_named(tmp_path: Path) -> None:
    right = made(failing=False)
    write_report(right, tmp_path / "report.json", summarise(right.samples, right.step))
    labels = json.loads((tmp_path / "report.json").read_text())["config"]["metadata"]["labels"]
    assert labels == {"driver": "test 1", "step": made(failing=False).step.id}


def test_a_summary_of_known_values() -> None:
    found = summary([4.0, 1.0, 2.0, 3.0])
    assert (found["mean"], found["median"], found["min"], found["max"], found["count"]) == (2.5, 2.0, 1.0, 4.0, 4)
    assert found["percentiles"]["p25"] == 1.0
    assert found["percentiles"]["p99"] == 4.0
    assert found["variance"] == pytest.approx(1.25)
    assert summary([])["count"] == 0

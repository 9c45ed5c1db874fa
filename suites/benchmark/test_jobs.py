"""Does the stage's own benchmark work? GuideLLM runs in the cluster and reports to MinIO."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import BenchmarkJob, Measurement, StageConfig, StepResult

pytestmark = pytest.mark.load


def test_job_completes_with_a_report_for_each_rate(
    benchmark_job: BenchmarkJob, record_property: Callable[[str, object], None]
) -> None:
    """The Job completed, and MinIO has one unaltered report per declared rate.

    A Job that was found, in read-only mode, measured with the declared settings, and the engine that runs now: reports
    of an earlier one say nothing about it.
    """
    record_property("benchmark_job.location", benchmark_job.location)
    assert not benchmark_job.outdated, health.message(
        f"reports in {benchmark_job.location} are outdated",
        benchmark_job.outdated,
        f"kubectl delete job/{benchmark_job.name}, apply the overlay's folder benchmark again, and run again after it",
    )
    summary = benchmark_job.summary
    assert benchmark_job.rates, f"job {benchmark_job.name} declares no rate"
    assert summary["model"] == benchmark_job.model, f"{benchmark_job.location} holds reports of {summary['model']}"
    reported = [step["request_rate"] for step in summary["steps"]]
    assert reported == list(benchmark_job.rates), (
        f"job {benchmark_job.name} declares rates {list(benchmark_job.rates)} and left reports for {reported} "
        f"in {benchmark_job.location}"
    )


def test_reports_are_not_vacuous(benchmark_job: BenchmarkJob, measured_by_job: list[Measurement]) -> None:
    """Each report has rate x duration requests of the planned lengths, and tokens in their answers."""
    lines = []
    for one in measured_by_job:
        planned = one.step.planned_requests
        tokens = sum(sample.output_tokens or 0 for sample in one.samples)
        if len(one.samples) != planned:
            lines.append(f"{one.step.id}: expected {planned} samples (rate x duration), got {len(one.samples)}")
        if not tokens:
            lines.append(f"{one.step.id}: vacuous: not one token came from {len(one.samples)} requests")
    assert not lines, "\n".join([f"reports of job {benchmark_job.name} in {benchmark_job.location}:", *lines])


def test_reports_keep_the_objectives(
    judged_job: list[StepResult], stage_config: StageConfig, record_property: Callable[[str, object], None]
) -> None:
    """GuideLLM's measurements in the cluster keep the objectives of the suite's own load."""
    for result in judged_job:
        for name, value in result.properties().items():
            record_property(f"{result.planned.step.id}.{name}", value)
    broken = [result.text() for result in judged_job if result.outcome == "fail"]
    open_ = [result.text() for result in judged_job if result.undecided]
    if broken or (open_ and stage_config.strict):
        pytest.fail("\n".join([*broken, *open_]), pytrace=False)
    if open_:
        pytest.skip("; ".join(open_))

"""A run's benchmark results made by hand, for tests of what is published of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_vllm_stage.benchmark.artifacts import artifact_of, read_artifacts, write_csv, write_step
from pytest_vllm_stage.measurement.samples import Measurement, Sample
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.publication import document
from pytest_vllm_stage.publication.document import Results, ResultsSource, Step
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import closed_step, failed, measurement, open_step, sample

RUN = "20261124-100000-aaaa"
SERVICE = "smollm2-135m-quantized"
#: 2026-11-24T10:00:00Z
STARTED_AT = 1795514400.0


def measured(
    step: LoadStep, *, ttft_s: float = 0.1, failures: int = 0, run: str = RUN, later_s: float = 0.0, **facts: Any
) -> Measurement:
    """A step's measurement: ``n`` requests, of which the last few failed."""
    n = step.planned_requests or 40
    rate = step.request_rate or 10.0
    rows: Sequence[Sample] = [
        failed(i, i / rate, step=step.id)
        if i >= n - failures
        # In no order of time: a TTFT that only rises is a queue that grows.
        else sample(i, i / rate, ttft_s=ttft_s + i * 37 % n / 10000, step=step.id)
        for i in range(n)
    ]
    known = {"run_id": run, "engine_version": "0.32.0", "profile": "local", "simulated": False}
    return replace(measurement(step, rows), started_at=STARTED_AT + later_s, facts=known | facts)


def rate_step(rate: float, role: str = "quantized", service: str = SERVICE, duration_s: float = 40.0) -> LoadStep:
    return open_step(rate, duration_s, role=role, model=service)


def user_step(users: int, role: str = "quantized", service: str = SERVICE) -> LoadStep:
    return closed_step(users, role=role, model=service)


def write_folder(
    folder: Path,
    measurements: Sequence[Measurement],
    objectives: Sequence[Objective] = (Objective("ttft_p50_ms", 500),),
) -> Path:
    """The benchmarks folder of a run."""
    for one in measurements:
        write_step(folder, one, *judge(one, list(objectives)))
    write_csv(folder, read_artifacts(folder))
    return folder


def source(**changes: str) -> ResultsSource:
    run = changes.get("run", RUN)
    made = {
        "model": SERVICE,
        "version": "w4a16",
        "run": run,
        "namespace": "vllm-stage",
        "service": SERVICE,
        "revision": f"{SERVICE}-predictor-5d4c8",
        "uri": f"s3://test-results/{SERVICE}/w4a16/{run}/",
    }
    return ResultsSource(**(made | changes))


def steps(*rates: float, verdict: str = "pass", **changes: Any) -> list[Step]:
    return [step(measured(rate_step(rate), **changes), verdict) for rate in rates or (1.0, 5.0)]


def step(measurement: Measurement, verdict: str) -> Step:
    """A measurement as a step to be published, whatever its own verdict is."""
    return Step(artifact_of(measurement, *judge(measurement, [Objective("ttft_p50_ms", 500)])), verdict)


def made(*rates: float, **changes: Any) -> Results:
    """The results of a run with these rates."""
    run = str(changes.pop("run", RUN))
    return document.make(steps(*rates, run=run, **changes), source(run=run))

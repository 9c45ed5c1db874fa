"""A benchmark Job's summary: what the Job writes is read, and what cannot be is refused by its field."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_vllm_stage.benchmark.job_summary import parse_summary
from pytest_vllm_stage.benchmark.jobs import BenchmarkJob, measurements
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.load.guidellm.writing import write_report
from pytest_vllm_stage.measurement.metrics import summarise
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import measurement, sample

Change = Callable[[dict[str, Any]], Any]


def summary() -> dict[str, Any]:
    step = {"request_rate": 5.0, "object": "rate-5.json", "sha256": "0" * 64, "samples": 40, "planned": 40, "failed": 1}
    facts = {"duration_s": 8, "prompt_tokens": 64, "output_tokens": 16, "warmup_requests": 20, "request_timeout_s": 60}
    return {"model": "m", "lead_in": 1, "steps": [step], **facts}


def test_what_the_job_writes_is_read() -> None:
    assert parse_summary(json.dumps(summary()).encode(), "s3://b/summary.json") == summary()


def step(**changes: Any) -> Change:
    return lambda found: found["steps"][0].update(changes)


def top(**changes: Any) -> Change:
    return lambda found: found.update(changes)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (top(duration_s=0), "duration_s: expected a number above 0, got 0"),
        (top(duration_s=float("nan")), "duration_s: expected a number, got nan"),
        (top(prompt_tokens=6.5), "prompt_tokens: expected a whole number from 0, got 6.5"),
        (top(output_tokens=None), "output_tokens: expected a whole number from 0, got null"),
        (top(request_timeout_s=-1), "request_timeout_s: expected a number above 0, got -1"),
        (top(held_s=-1), "held_s: expected a number from 0, got -1"),
        (top(lead_in=-1), "lead_in: expected a whole number from 0, got -1"),
        (top(model=7), "model: expected a string, got 7"),
        (lambda found: found.pop("warmup_requests"), "has no 'warmup_requests'"),
        (step(request_rate=-5), "steps[0].request_rate: expected a number above 0, got -5"),
        (
            step(object="../rate-5.json"),
            "steps[0].object: expected a file's name without a folder, got '../rate-5.json'",
        ),
        (step(sha256="0"), "steps[0].sha256: expected 64 hexadecimal digits"),
        (step(measured_again=3), "steps[0].measured_again: expected a string, got 3"),
        (step(failed=41), "steps[0].failed is 41 of 40 samples"),
        (step(samples=4000), "steps[0].samples is 4000, and 5 requests/s for 8 s are fewer"),
        (lambda found: found["steps"].append(found["steps"][0]), "steps has a rate twice: [5.0, 5.0]"),
    ],
)
def test_what_cannot_be_is_refused_by_its_field(change: Change, message: str) -> None:
    found = summary()
    change(found)
    with pytest.raises(ConfigError) as caught:
        parse_summary(json.dumps(found).encode(), "s3://b/summary.json")
    assert message in caught.value.message
    assert caught.value.message.startswith("s3://b/summary.json")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff\xfe"])
def test_what_is_not_a_json_object_is_refused(content: bytes) -> None:
    with pytest.raises(ConfigError, match=r"s3://b/summary\.json: (not readable JSON|must be a JSON object)"):
        parse_summary(content, "s3://b/summary.json")


def test_step_that_was_measured_again_says_so_in_its_verdict(tmp_path: Path) -> None:
    plan = LoadStep("any", "m", CONSTANT, 8.2, 64, 16, request_rate=5.0)
    rows = [sample(i, i / 5) for i in range(41)]
    write_report(measurement(plan, rows), tmp_path / "rate-5.json", summarise(rows, plan))
    found = summary()
    found["steps"][0] |= {"failed": 0, "measured_again": "GuideLLM's report had 39 of 40 samples, none failed"}
    (tmp_path / "summary.json").write_text(json.dumps(found))
    run = SimpleNamespace(run_id="r", config=SimpleNamespace(profile=SimpleNamespace(name="local")))
    job = BenchmarkJob("full", "m", "benchmark-m", (5.0,), "s3://b/benchmark-jobs/m/r", str(tmp_path))
    (made,) = measurements(run, job, simulated=False)  # type: ignore[arg-type]
    verdict = judge(made, [Objective("ttft_p50_ms", 5000)])[1]
    assert verdict.outcome is Outcome.PASS
    assert "the step was measured again: GuideLLM's report had 39 of 40 samples, none failed" in verdict.why

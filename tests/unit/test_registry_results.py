"""What of a run's steps is published: names, order, what is left out and what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.measurement.metrics import summarise
from pytest_vllm_stage.publication import document
from pytest_vllm_stage.publication.document import OBSERVED
from tests.unit.made_results import (
    RUN,
    SERVICE,
    made,
    measured,
    rate_step,
    source,
    step,
    steps,
    user_step,
    write_folder,
)


def test_published_names_have_the_metrics_of_the_samples() -> None:
    found = made(5.0)
    flat = summarise(measured(rate_step(5.0)).samples, rate_step(5.0)).flat()
    assert dict(found.values) == {
        "benchmark_test_run": RUN,
        "benchmark_timestamp": "2026-11-24T10:00:00Z",
        "benchmark_namespace": "vllm-stage",
        "benchmark_inference_service": SERVICE,
        "benchmark_revision": f"{SERVICE}-predictor-5d4c8",
        "benchmark_artifact_uri": f"s3://test-results/{SERVICE}/w4a16/{RUN}/",
        "benchmark_rate_5_throughput": pytest.approx(flat["output_tokens_per_s"], rel=1e-5),
        "benchmark_rate_5_ttft_p99": pytest.approx(flat["ttft_p99_ms"], rel=1e-5),
        "benchmark_rate_5_latency_p99": pytest.approx(flat["e2e_latency_p99_s"], rel=1e-5),
        "benchmark_rate_5_verdict": "pass",
        "benchmark_rate_5_ttft_mean": pytest.approx(flat["ttft_mean_ms"], rel=1e-5),
        "benchmark_rate_5_latency_mean": pytest.approx(flat["e2e_latency_mean_s"], rel=1e-5),
        "benchmark_rate_5_ttft_p50": pytest.approx(flat["ttft_p50_ms"], rel=1e-5),
        "benchmark_rate_5_ttft_p90": pytest.approx(flat["ttft_p90_ms"], rel=1e-5),
    }


def test_a_missing_number_is_absent_and_never_0() -> None:
    """Two percent of failures make the P99 infinite: it has no number, the mean and the P50 have one."""
    found = document.values_of(step(measured(rate_step(5.0), failures=4), "fail"))
    assert "ttft_p99" not in found
    assert "latency_p99" not in found
    assert found["ttft_p50"]
    assert found["verdict"] == "fail"


def test_a_step_without_a_first_answer_has_no_latency() -> None:
    only = measured(rate_step(5.0), failures=200)
    rows = (replace(only.samples[0], token_times_s=(0.1,)), *only.samples[1:])
    assert document.values_of(step(replace(only, samples=rows), "fail")) == {"verdict": "fail", "throughput": 0.0}


def test_an_invalid_step_gives_its_verdict_and_no_number() -> None:
    assert document.values_of(step(measured(rate_step(5.0)), "invalid")) == {"verdict": "invalid"}


def test_promised_rates_come_first_then_observations_then_users() -> None:
    mixed = [
        step(measured(user_step(5)), "pass"),
        step(measured(rate_step(10.0)), OBSERVED),
        step(measured(rate_step(5.0)), "pass"),
        step(measured(rate_step(1.0)), "fail"),
    ]
    found = document.make(mixed, source())
    numbers = [name for name in found.values if "_rate_" in name or "_concurrency_" in name]
    assert numbers[:3] == ["benchmark_rate_1_throughput", "benchmark_rate_5_throughput", "benchmark_rate_1_ttft_p99"]
    assert numbers[16] == "benchmark_rate_10_throughput"
    assert numbers[24] == "benchmark_concurrency_5_throughput"
    assert found.observations == ("quantized-rate-10",)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"simulated": True}, "quantized-rate-5 is simulated"),
        ({"engine_version": "0.0.0+vllm-stage-sim"}, "quantized-rate-5 is simulated"),
        ({"simulated": None}, "quantized-rate-5 does not record whether a simulated engine answered"),
        ({"dummy_weights": True}, "quantized-rate-5 was measured with dummy weights"),
        ({"run_id": "another"}, f"was measured by run 'another', not by {RUN}"),
        ({"failures": 200}, "quantized-rate-5 is vacuous: not one token came from 200 requests"),
    ],
)
def test_simulated_and_vacuous_results_are_refused(changes: dict[str, Any], line: str) -> None:
    good = step(measured(rate_step(1.0)), "pass")
    with pytest.raises(StageFailure) as caught:
        document.make([good, step(measured(rate_step(5.0), **changes), "fail")], source())
    assert line in caught.value.message


def test_no_step_is_refused_as_well() -> None:
    with pytest.raises(StageFailure, match="there is no step"):
        document.make([], source())


def test_the_same_load_twice_is_refused() -> None:
    with pytest.raises(StageFailure, match="two steps have the load of quantized-rate-5"):
        document.make([*steps(5.0), *steps(5.0)], source())


def test_the_folder_gives_a_models_steps_and_no_others(tmp_path: Path) -> None:
    other = measured(rate_step(5.0, role="full", service="smollm2-135m"))
    search = measured(replace(rate_step(5.0), variant="capacity"))
    write_folder(tmp_path, [measured(rate_step(5.0)), measured(user_step(2)), other, search])
    found = document.read_steps(tmp_path, SERVICE, lambda one: one.outcome.value)
    assert [(step.artifact.step.id, step.verdict) for step in found] == [
        ("quantized-concurrency-2", "pass"),
        ("quantized-rate-5", "pass"),
    ]


def test_the_document_is_read_as_it_was_written() -> None:
    found = made()
    assert document.parse(found.to_bytes(), "here") == found


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "here: is corrupt"),
        (b"[]", "here: schema: expected vllm-stage/publication"),
        (made().to_bytes().replace(b'"run": ', b'"walk": '), "here: run: expected a string, got None"),
        (made().to_bytes().replace(b'"pass"', b"true"), "here: properties: expected a string or a number, got True"),
    ],
)
def test_invalid_document_is_refused_with_its_field(content: bytes, message: str) -> None:
    with pytest.raises(StageFailure) as caught:
        document.parse(content, "here")
    assert message in caught.value.message

"""Steps that the plan makes too short for any verdict are named before the run."""

from __future__ import annotations

import pytest

from pytest_vllm_stage.benchmark.plans import PlannedStep
from pytest_vllm_stage.benchmark.undecidable import find_undecidable
from pytest_vllm_stage.measurement.step import POISSON, LoadStep
from pytest_vllm_stage.slo.objectives import Objective
from tests.unit.made_samples import closed_step, open_step

P90, P99 = Objective("ttft_p90_ms", 2000), Objective("ttft_p99_ms", 2000)


def lines(step: LoadStep, *objectives: Objective, observation: bool = False) -> list[str]:
    return list(find_undecidable([PlannedStep("full", step, objectives, observation)]))


def test_a_rate_with_too_few_requests_is_named_with_the_duration_that_it_needs() -> None:
    assert lines(open_step(1, 20), P90, Objective("error_rate", 0)) == [
        "full-rate-1 can never pass: 20 requests in 20 s, and ttft_p90_ms <= 2000 needs 29 without a miss: "
        "duration_s = 29 at least"
    ]
    (line,) = lines(open_step(5, 30), P90, P99)
    assert "ttft_p99_ms <= 2000 needs 299 without a miss: duration_s = 60 at least" in line


def test_users_whose_answers_would_have_to_be_too_fast_are_named() -> None:
    (line,) = lines(closed_step(1, 60, prompt_tokens=256, output_tokens=256), P90)
    assert line.startswith("full-concurrency-1 can hardly pass: ttft_p90_ms <= 2000 needs 29 requests without a miss")
    assert "answers of 256 tokens must take under 2.1 s in a step of 60 s; at 100 tokens/s duration_s = 75" in line


def test_random_arrivals_need_a_step_of_many_answers() -> None:
    assert lines(open_step(5, 20, arrivals=POISSON, output_tokens=256), P90) == [
        "full-rate-5 can hardly pass: with random arrivals a pass needs a step of 18 answers, and one of 256 tokens "
        "takes 2.6 s at 100 tokens/s: duration_s = 47 at least"
    ]


@pytest.mark.parametrize(
    ("step", "objectives", "observation"),
    [
        (open_step(1, 29), [P90], False),
        (open_step(1, 20), [P90], True),
        (open_step(1, 20), [], False),
        (open_step(1, 20), [Objective("error_rate", 0), Objective("output_tokens_per_s_min", 5)], False),
        (closed_step(5, 60, output_tokens=256), [P90], False),
        (open_step(5, 20, output_tokens=256), [P90], False),
        (open_step(5, 24, arrivals=POISSON, output_tokens=256), [P90], False),
        (open_step(0.3, 100, arrivals=POISSON, output_tokens=256), [Objective("ttft_p50_ms", 2000)], False),
    ],
)
def test_steps_that_can_pass_or_promise_nothing_are_not_named(
    step: LoadStep, objectives: list[Objective], observation: bool
) -> None:
    assert lines(step, *objectives, observation=observation) == []

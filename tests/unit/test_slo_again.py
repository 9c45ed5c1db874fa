"""An undecided step is measured once more, for as long as its numbers say, and at a part of the risk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from pytest_vllm_stage.measurement.samples import UNDECIDED_BEFORE, Measurement
from pytest_vllm_stage.slo.again import find_second_duration_s, note_second, second_alpha
from pytest_vllm_stage.slo.decision import ALPHA, SECOND_SHARE_OF_ALPHA, Outcome
from pytest_vllm_stage.slo.objectives import GATEWAY_ADDED_TTFT, Objective
from pytest_vllm_stage.slo.verdict import StepVerdict, judge
from tests.unit.made_samples import closed_step, measurement, sample, with_ttfts

P50, P90, P99 = (Objective(f"ttft_p{percent}_ms", 500) for percent in (50, 90, 99))


def made(n: int, misses: Sequence[int] = (), **client: Any) -> Measurement:
    """One request per second, each answered before the next one, of which some are slow."""
    found = with_ttfts([0.6 if i in misses else 0.1 for i in range(n)], rate=1)
    return replace(found, client=replace(found.client, **client))


def verdict_on(found: Measurement, *objectives: Objective) -> StepVerdict:
    return judge(found, objectives)[1]


def second_s(found: Measurement, *objectives: Objective, times: float = 4.0) -> float | None:
    return find_second_duration_s(found.step, verdict_on(found, *objectives), times * found.step.duration_s)


@pytest.mark.parametrize(
    ("found", "objective"),
    [(made(60), P90), (made(60, range(0, 60, 2)), P90)],
    ids=["passed", "failed"],
)
def test_a_decided_step_is_not_measured_again(found: Measurement, objective: Objective) -> None:
    assert verdict_on(found, objective).outcome in (Outcome.PASS, Outcome.FAIL)
    assert second_s(found, objective) is None


def test_the_second_is_as_long_as_a_pass_with_one_miss_takes() -> None:
    # 64 requests pass a P90 with one miss at a risk of 1 %; 46 would at 5 %, and 45 are there.
    assert second_s(made(45, [20]), P90) == 64
    assert second_s(made(45, [20]), P90, times=1.2) == 54, "no longer than allowed"
    assert second_s(made(45, [20]), P90, P50) == second_s(made(45, [20]), P90), "the decided objective asks for nothing"


def test_a_result_at_the_limit_is_measured_as_long_as_allowed() -> None:
    assert second_s(made(40, [5, 15, 25, 35]), P90) == 160


@pytest.mark.parametrize("times", [0.0, 0.9])
def test_no_second_is_made_where_the_profile_forbids_it(times: float) -> None:
    assert second_s(made(45, [20]), P90, times=times) is None


def test_a_plan_of_too_few_requests_is_not_measured_again() -> None:
    assert second_s(made(20), P90) is None, "29 pass without a miss, and the plan has 20"
    assert second_s(made(20), times=9) is None, "nothing is promised"


def test_users_without_a_miss_are_measured_again_only_if_the_second_can_pass() -> None:
    step = closed_step(2, 2)
    found = measurement(step, [sample(i, i / 10) for i in range(20)])
    # 44 requests pass a P90 without a miss at a risk of 1 %: 2.2 times as many, of which one may miss in the plan.
    assert second_s(found, P90) == pytest.approx(6.4, abs=0.7)
    assert second_s(found, P99) is None, "459 are 23 times as many"


def test_a_busy_client_gets_a_second_chance_of_twice_the_length() -> None:
    assert second_s(made(60, loop_lag_p99_ms=80.0), P90) == 120
    repeated = made(60)
    repeated = replace(repeated, samples=tuple(replace(one, prompt_digest="the same") for one in repeated.samples))
    assert verdict_on(repeated, P90).outcome is Outcome.INVALID
    assert second_s(repeated, P90) is None, "the same prompts would come again"


def test_an_objective_without_a_value_is_not_measured_again() -> None:
    assert verdict_on(made(60), Objective(GATEWAY_ADDED_TTFT, 10)).outcome is Outcome.INCONCLUSIVE
    assert second_s(made(60), Objective(GATEWAY_ADDED_TTFT, 10)) is None


def test_the_second_measurement_is_judged_at_its_share_of_alpha() -> None:
    first = verdict_on(made(45, [20]), P90)
    second = made(46, [20])
    assert verdict_on(second, P90).outcome is Outcome.PASS
    second = replace(second, facts=note_second(first))
    judged = verdict_on(second, P90)
    assert (judged.outcome, judged.alpha) == (Outcome.INCONCLUSIVE, SECOND_SHARE_OF_ALPHA * ALPHA)
    assert "; measured twice, the second time for 46 s: inconclusive at first" in judged.why
    long = replace(made(64, [20]), facts=note_second(first))
    assert verdict_on(long, P90).outcome is Outcome.PASS
    assert "measured twice" in verdict_on(long, P90).why


def test_an_invalid_measurement_has_spent_no_alpha() -> None:
    late = verdict_on(made(60, loop_lag_p99_ms=80.0), P90)
    second = replace(made(46, [20]), facts=note_second(late))
    judged = verdict_on(second, P90)
    assert (judged.outcome, judged.alpha, second_alpha(late)) == (Outcome.PASS, ALPHA, ALPHA)
    assert "invalid at first" in judged.why
    assert second_alpha(verdict_on(made(45, [20]), P90)) == SECOND_SHARE_OF_ALPHA * ALPHA


@pytest.mark.parametrize("fact", [None, "inconclusive", 1, {}], ids=str)
def test_a_fact_of_another_shape_makes_no_second_measurement(fact: object) -> None:
    judged = verdict_on(replace(made(46, [20]), facts={UNDECIDED_BEFORE: fact}), P90)
    assert (judged.outcome, judged.alpha) == (Outcome.PASS, ALPHA)

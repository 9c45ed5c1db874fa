"""The capacity search against servers whose capacity is known, with verdicts as noisy as they are allowed to be."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.benchmark.find_capacity import FoundCapacity
from pytest_vllm_stage.slo.capacity import MOST_STEPS, Capacity, CapacitySearch
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.objectives import Objective


def search(outcome_at: Callable[[float], Outcome], start: float, **options: float) -> tuple[Capacity, list[float]]:
    machine = CapacitySearch(start, **options)  # type: ignore[arg-type]
    tried = []
    while (rate := machine.next_rate()) is not None:
        tried.append(rate)
        machine.record(rate, outcome_at(rate))
    return machine.result(), tried


@settings(derandomize=True, deadline=None, max_examples=200)
@given(true=st.floats(0.1, 100), start=st.floats(0.5, 20))
def test_an_exact_server_is_bracketed(true: float, start: float) -> None:
    found, tried = search(lambda rate: Outcome.PASS if rate <= true else Outcome.FAIL, start, most_steps=40)
    assert found.ended == "the bracket is close enough"
    assert found.holds is not None
    assert found.breaks is not None
    assert found.holds <= true < found.breaks <= found.holds * 1.1 * (1 + 1e-9)
    assert len(tried) == len(set(tried)) == found.steps


def test_the_number_of_steps_is_bounded() -> None:
    found, tried = search(lambda _rate: Outcome.PASS, 1.0)
    assert len(tried) == MOST_STEPS
    assert (found.holds, found.breaks) == (2.0 ** (MOST_STEPS - 1), None)
    assert "no upper limit was found" in found.text()
    found, _ = search(lambda _rate: Outcome.FAIL, 1.0)
    assert found.holds is None
    assert "no rate was shown to hold" in found.text()


def test_capacity_shown_by_an_overloaded_step_shortens_the_search() -> None:
    machine = CapacitySearch(16.0, most_steps=40)
    steps = 0
    while (rate := machine.next_rate()) is not None:
        steps += 1
        machine.record(rate, Outcome.PASS if rate <= 0.8 else Outcome.FAIL, 0.84 if rate > 0.8 else None)
    without = search(lambda rate: Outcome.PASS if rate <= 0.8 else Outcome.FAIL, 16.0, most_steps=40)[1]
    assert machine.result().holds == pytest.approx(0.78, abs=0.03)
    assert steps < len(without)


def test_undecided_rate_is_retried_once_and_then_does_not_hold() -> None:
    found, tried = search(lambda rate: Outcome.PASS if rate < 4 else Outcome.INCONCLUSIVE, 4.0, most_steps=30)
    assert tried[:3] == [4.0, 4.0, 2.0]
    assert found.undecided
    assert "is undecided" in found.text()


def test_a_rate_that_cannot_be_measured_ends_the_search() -> None:
    found, tried = search(lambda rate: Outcome.PASS if rate < 8 else Outcome.INVALID, 4.0)
    assert tried == [4.0, 8.0, 8.0]
    assert found.ended == "8 requests/s could not be measured"
    assert (found.holds, found.breaks) == (4.0, None)


def test_aborted_search_returns_what_is_known() -> None:
    machine = CapacitySearch(5.0)
    machine.record(5.0, Outcome.PASS)
    assert machine.result().text(5.0) == (
        "capacity: 5 requests/s hold, no upper limit was found (95 % confidence, 1 steps); the profile promises 5"
    )
    assert machine.result().ended == "the search was aborted"


def test_a_step_is_long_enough_to_pass() -> None:
    machine = CapacitySearch(5.0)
    assert machine.step_alpha == pytest.approx(0.005)
    assert machine.step_duration_s(5.0, [Objective("ttft_p99_ms", 1)]) == pytest.approx(740 / 5, rel=0.02)
    assert machine.step_duration_s(50.0, [Objective("ttft_p50_ms", 1), Objective("requests_per_s_min", 1)]) == 20.0


def test_bracket_is_right_with_its_stated_confidence() -> None:
    """Each verdict is wrong with just the probability that its alpha allows, 400 searches."""
    wrong = 0
    for seed in range(400):
        dice = random.Random(seed)
        true = 2.0 ** dice.uniform(-2, 5)
        machine = CapacitySearch(5.0)
        while (rate := machine.next_rate()) is not None:
            right = Outcome.PASS if rate <= true else Outcome.FAIL
            other = Outcome.FAIL if rate <= true else Outcome.PASS
            machine.record(rate, other if dice.random() < machine.step_alpha else right)
        found = machine.result()
        wrong += (found.holds or 0) > true or (found.breaks or 1e9) <= true
    assert wrong / 400 <= 0.07


def test_a_rate_above_an_undecided_one_was_still_shown_broken() -> None:
    outcomes = {True: Outcome.INCONCLUSIVE, False: Outcome.FAIL}
    found, _ = search(lambda rate: Outcome.PASS if rate < 4 else outcomes[rate < 6], 16.0)
    assert found.undecided
    assert found.shown_broken == pytest.approx(6, rel=0.4)
    assert f"is undecided, {found.shown_broken:.3g} breaks the SLO" in found.text()
    assert FoundCapacity("full", found, limit=16.0).broken
    assert not FoundCapacity("full", found, limit=4.0).broken

"""Requests that depend on each other: seen where they do, never where they do not."""

from __future__ import annotations

import random

import pytest

from pytest_vllm_stage.measurement.step import POISSON
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.dependence import confirmed, design_effect, effects
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import open_step, queued


def independent(n: int, share: float, seed: int) -> list[bool]:
    dice = random.Random(seed)
    return [dice.random() < share for _ in range(n)]


def in_bursts(n: int, length: int, bursts: int) -> list[bool]:
    """Bursts of so many slow requests, evenly spread."""
    every = n // bursts
    return [i % every < length for i in range(n)]


@pytest.mark.parametrize(("n", "share"), [(600, 0.1), (300, 0.1), (2000, 0.02)])
def test_independent_requests_lose_nothing(n: int, share: float) -> None:
    effects_seen = [design_effect(independent(n, share, seed)) for seed in range(500)]
    assert sum(effect > 1 for effect in effects_seen) <= 5


def test_bursts_count_about_once_each() -> None:
    effect = design_effect(in_bursts(600, 20, 3))
    assert 10 <= effect <= 30


def test_too_little_is_no_evidence() -> None:
    assert design_effect([True] * 9 + [False] * 591) == 1
    assert design_effect([True] * 50) == 1
    assert design_effect(in_bursts(90, 10, 2)) == 1
    assert effects([], []) == (1.0, 1.0)


def test_what_is_broken_throughout_is_broken_whatever_the_bursts() -> None:
    """A latency that only rises: nearly all requests miss, and their slowest tenth is one burst."""
    values = [float(i) for i in range(600)]
    misses = [float(value > 60) for value in values]
    assert effects(values, misses)[0] > 20
    assert confirmed(Outcome.FAIL, values, misses, 0.01, alpha=0.05)


def test_one_burst_is_not_broken_throughout() -> None:
    misses = [float(100 <= i < 115) for i in range(600)]
    assert not confirmed(Outcome.FAIL, misses, misses, 0.01, alpha=0.05)


def test_a_queue_is_remarked_and_does_not_end_a_step_early() -> None:
    step = open_step(13, 60, arrivals=POISSON, seed=3, decide_early=True)
    made = queued(step, 16, lambda dice: dice.expovariate(1.0), seed=3)
    objective = Objective("ttft_p99_ms", 60_000)
    decision = EarlyDecision(step, [objective])
    assert {decision(one) for one in made.samples} == {None}
    found = judge(made, [objective])[1]
    assert found.outcome is Outcome.PASS
    assert "slow requests come in bursts (ttft): these 780 are worth about" in found.why

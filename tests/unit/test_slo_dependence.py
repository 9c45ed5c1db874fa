"""The effective sample size: requests that depend on each other count less, independent ones count fully."""

from __future__ import annotations

import random

import pytest

from pytest_vllm_stage.measurement.metrics import summarise
from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.step import POISSON
from pytest_vllm_stage.slo import gates
from pytest_vllm_stage.slo.decision import Outcome, decide
from pytest_vllm_stage.slo.dependence import (
    LEAST_TIMES,
    LEAST_TIMES_BUSY,
    Dependence,
    correlation_time,
    find_dependence,
    pool,
    requests_in_engine,
)
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import measurement, open_step, queued, sample


def autoregressive(n: int, memory: float, seed: int) -> list[float]:
    dice = random.Random(seed)
    values = [dice.gauss(0, 1)]
    while len(values) < n:
        values.append(memory * values[-1] + dice.gauss(0, 1))
    return values


@pytest.mark.parametrize("memory", [0.5, 0.8])
def test_correlation_time_of_a_known_process(memory: float) -> None:
    """An AR(1) process has (1 + memory) / (1 - memory)."""
    true = (1 + memory) / (1 - memory)
    found = [correlation_time(autoregressive(2000, memory, seed)) for seed in range(20)]
    assert sum(found) / len(found) == pytest.approx(true, rel=0.25)


def test_independent_and_constant_values_count_fully() -> None:
    dice = random.Random(1)
    found = [correlation_time([dice.random() for _ in range(400)]) for _ in range(50)]
    assert sum(found) / len(found) < 1.3
    assert correlation_time([0.1] * 600) == 1
    assert correlation_time([0.0, 1.0] * 300) == 1
    assert correlation_time([]) == 1


def test_requests_in_engine_counts_what_was_sent_and_has_not_ended() -> None:
    rows = [sample(i, float(i), ttft_s=2.5, itl_s=0.0) for i in range(6)]
    assert requests_in_engine(rows) == [0, 1, 2, 2, 2, 2]


def test_requests_that_find_the_engine_idle_are_independent() -> None:
    rows: list[Sample] = [sample(i, float(i), ttft_s=0.1 + 0.01 * i) for i in range(15)]
    values = [0.1 + 0.01 * i for i in range(15)]
    found = find_dependence(rows, open_loop=True)
    assert found.idle_share == 1
    assert found.design_effects(values, [0.0] * 15, 0.5)[0] == 1


def test_quiet_step_of_a_busy_engine_does_not_count_as_independent_requests() -> None:
    """No request misses, and the number in the engine shows that they are not independent all the same."""
    step = open_step(11.2, 54, arrivals=POISSON, seed=5)
    made = queued(step, 16, lambda _dice: 1.0, seed=5)
    found = find_dependence(made.samples, open_loop=True)
    assert found.in_engine_time > 5
    assert found.design_effects([0.1] * 600, [0.0] * 600, 0.1)[0] > 3


def test_pass_needs_a_number_of_correlation_times_and_more_where_requests_wait() -> None:
    assert Dependence(600, in_engine_time=10).least_n == 10 * LEAST_TIMES
    assert Dependence(600, in_engine_time=10, waiting_share=0.5).least_n == 10 * LEAST_TIMES_BUSY
    assert Dependence(600, in_engine_time=10, fixed_load=True).least_n == 1
    assert Dependence(600).least_n == 1


def test_interval_of_a_judged_percentile_has_the_effective_sample_size_of_its_verdict() -> None:
    """Slow and quick requests follow each other in long blocks: 600 of them seem to decide a median between the two."""
    rows = [sample(i, i / 10, ttft_s=0.9 if i // 60 % 5 in (0, 2) else 0.1, itl_s=0.001) for i in range(600)]
    made = measurement(open_step(10, 60), rows)
    assert summarise(rows, made.step).latencies["ttft"].percentiles[50].high == pytest.approx(100)
    metrics, found = judge(made, [Objective("ttft_p50_ms", 500)])
    median, (gate,) = metrics.latencies["ttft"].percentiles[50], found.gates
    assert (gate.outcome, median.n) == (Outcome.INCONCLUSIVE, 600)
    assert median.effective_n == gate.effective_n < 100
    assert median.high is None or median.high == pytest.approx(900)
    assert metrics.to_json()["percentiles"]["ttft_p50_ms"]["effective_n"] == gate.effective_n


def test_interval_of_a_percentile_without_an_objective_has_an_effective_sample_size_too() -> None:
    made = queued(open_step(11.2, 54, arrivals=POISSON, seed=5), 16, lambda _dice: 1.0, seed=5)
    metrics, _ = judge(made, [])
    assert all(one.effective_n < one.n / 2 for one in metrics.latencies["ttft"].percentiles.values())
    assert metrics.latencies["ttft"].percentiles[99].interval_text().startswith("n/a (needs ")
    alone = [sample(i, i / 10, ttft_s=0.01 + random.Random(i).random() / 1000) for i in range(600)]
    found = judge(measurement(open_step(10, 60), alone), [])[0].latencies["ttft"].percentiles[50]
    assert found.effective_n > 400


def test_design_effects_make_each_request_count_less() -> None:
    assert decide(600, 0, 0.01).outcome is Outcome.PASS
    tied = decide(600, 0, 0.01, design_effects=(3.0, 3.0))
    assert (tied.outcome, tied.effective_n) == (Outcome.INCONCLUSIVE, 200)
    assert tied.needs == pytest.approx(3 * 299, abs=3)
    assert decide(tied.needs or 0, 0, 0.01, design_effects=(3.0, 3.0)).outcome is Outcome.PASS
    assert decide(600, 0, 0.01, least_n=800).needs == 800
    assert decide(600, 12, 0.01).outcome is Outcome.FAIL
    assert decide(600, 12, 0.01, design_effects=(3.0, 3.0)).outcome is Outcome.INCONCLUSIVE


def test_broken_throughout_is_broken_although_the_requests_depend_on_each_other() -> None:
    values = [float(i) for i in range(600)]
    misses = [float(value > 60) for value in values]
    effects = Dependence(600, in_engine_time=100).design_effects(values, misses, 0.01)
    assert effects[1] > 20
    assert decide(600, 539, 0.01, design_effects=effects).outcome is Outcome.FAIL


def test_one_burst_is_not_broken_throughout() -> None:
    misses = [float(100 <= i < 115) for i in range(600)]
    effects = Dependence(600).design_effects(misses, misses, 0.01)
    assert decide(600, 15, 0.01, design_effects=effects).outcome is Outcome.INCONCLUSIVE


def test_queue_near_capacity_neither_ends_early_nor_passes_and_the_reason_names_the_duration() -> None:
    step = open_step(15.2, 40, arrivals=POISSON, seed=3, decide_early=True)
    made = queued(step, 16, lambda dice: dice.expovariate(1.0), seed=3)
    objective = Objective("ttft_p90_ms", 60_000)
    decision = EarlyDecision(step, [objective])
    assert {decision(one) for one in made.samples} == {None}
    found = judge(made, [objective])[1]
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "effective sample size about" in found.why
    assert " s) would decide" in found.why


def test_correlated_requests_never_pass_a_step_early() -> None:
    """A queue well within its capacity, whose quiet times look like a pass at one of many looks."""
    for seed in range(6):
        step = open_step(11.2, 54, arrivals=POISSON, seed=seed, decide_early=True)
        made = queued(step, 16, lambda _dice: 1.0, seed=seed)
        decision = EarlyDecision(step, [Objective("e2e_latency_p50_s", 60)])
        assert {decision(one) for one in made.samples[:-1]} == {None}


def test_a_step_under_way_measures_its_dependence_at_most_once_in_a_twentieth_of_the_plan(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It takes tens of milliseconds while tokens are being timed on the same machine."""
    looks = []

    def counted(samples: list[Sample], *, open_loop: bool, random_arrivals: bool) -> Dependence:
        looks.append(len(samples))
        return find_dependence(samples, open_loop=open_loop, random_arrivals=random_arrivals)

    monkeypatch.setattr(gates, "find_dependence", counted)
    step = open_step(15.5, 1000 / 15.5, arrivals=POISSON, seed=1, decide_early=True)
    made = queued(step, 16, lambda dice: dice.expovariate(1.0))
    decision = EarlyDecision(step, [Objective("ttft_p99_ms", 60_000)])
    for one in made.samples:
        decision(one)
    assert 2 <= len(looks) <= 20


def test_pooled_correlation_time_is_the_estimate_of_a_long_step_and_nearer_the_known_one_in_a_short_step() -> None:
    assert pool(20, 5, 1_000_000) == pytest.approx(20, rel=0.01)
    assert pool(20, 5, 600) == pytest.approx(20**0.385 * 5**0.615, rel=0.01)
    assert 5 < pool(20, 5, 60) < 7
    assert pool(5, 5, 60) == pytest.approx(5)


def test_a_burst_of_arrivals_does_not_decide_the_design_effect_of_a_step_alone() -> None:
    """Steps of one queue differ in their estimated correlation time more than in their design effect for a pass."""
    times, effects = [], []
    for seed in range(12):
        made = queued(open_step(11.2, 54, arrivals=POISSON, seed=seed), 16, lambda _dice: 1.0, seed=seed)
        found = find_dependence(made.samples, open_loop=True, random_arrivals=True)
        times.append(found.in_engine_time)
        effects.append(found.design_effects([0.1] * 600, [0.0] * 600, 0.1)[0])
    assert max(effects) / min(effects) < 0.8 * max(times) / min(times)

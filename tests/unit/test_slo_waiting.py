"""A fail that a busy period of the queue can explain is inconclusive; a fail for any other reason stays one."""

from __future__ import annotations

from dataclasses import replace

import pytest

from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.step import POISSON
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.dependence import Dependence, find_dependence
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.gates import GateVerdict, Risks, judge_gate
from pytest_vllm_stage.slo.margin import Quiet, margin_reason
from pytest_vllm_stage.slo.objectives import ERROR_RATE, Objective
from pytest_vllm_stage.slo.verdict import judge
from tests.bench.queues import Case, build_measurement
from tests.unit.made_samples import failed, open_step, queued, sample, with_ttfts

#: Every request of the step waits.
BUSY = Dependence(600, in_engine_time=100.0, waiting_share=0.9)
ALL_WAIT = [2.0 + 0.001 * (i % 7) for i in range(600)]


def gate(objective: Objective, tied: Dependence = BUSY, *, grows: bool = False, **changes: object) -> GateVerdict:
    made = with_ttfts(ALL_WAIT)
    samples = [replace(one, **changes) for one in made.samples]  # type: ignore[arg-type]
    return judge_gate(made.step, samples, objective, 2.0, Risks(), tied, grows=grows)


def test_a_step_within_one_busy_period_does_not_fail_and_says_how_long_it_would_have_to_be() -> None:
    found = gate(Objective("ttft_p90_ms", 1000))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.why.endswith("a busy period of the queue can explain this, about 1000 requests (100 s) would decide")


def test_ten_correlation_times_fail_where_the_effective_sample_size_has_enough_misses() -> None:
    assert gate(Objective("ttft_p90_ms", 1000), replace(BUSY, in_engine_time=40.0)).outcome is Outcome.FAIL
    assert gate(Objective("ttft_p90_ms", 1000), replace(BUSY, in_engine_time=61.0)).outcome is Outcome.INCONCLUSIVE


def test_queue_that_grows_fails() -> None:
    assert gate(Objective("ttft_p90_ms", 1000), grows=True).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    "tied", [replace(BUSY, waiting_share=0.1), replace(BUSY, fixed_load=True), replace(BUSY, in_engine_time=1.0)]
)
def test_step_without_a_queue_that_can_grow_fails(tied: Dependence) -> None:
    assert gate(Objective("ttft_p90_ms", 1000), tied).outcome is Outcome.FAIL


def test_latency_without_a_wait_fails() -> None:
    assert gate(Objective("tpot_p90_ms", 1)).outcome is Outcome.FAIL
    assert gate(Objective("itl_p90_ms", 1)).outcome is Outcome.FAIL


def test_answers_that_are_too_slow_without_the_wait_fail() -> None:
    """An answer takes 0.15 s after its first token."""
    assert gate(Objective("e2e_latency_p90_s", 0.14)).outcome is Outcome.FAIL
    assert gate(Objective("e2e_latency_p90_s", 0.16)).outcome is Outcome.INCONCLUSIVE


def test_failed_requests_fail_whatever_the_queue_does() -> None:
    made = with_ttfts(ALL_WAIT)
    samples = [failed(i, i / 10) if i % 5 == 0 else one for i, one in enumerate(made.samples)]
    for objective in (Objective(ERROR_RATE, 0.01), Objective("ttft_p90_ms", 60_000)):
        assert judge_gate(made.step, samples, objective, 0.0, Risks(), BUSY, grows=False).outcome is Outcome.FAIL


def test_rate_certainly_above_the_batch_limit_is_an_overload() -> None:
    """A batch of ten with answers of one second and 11 requests a second: the trend alone is not significant yet."""
    made = queued(open_step(11, 30), 10, lambda _dice: 1.0)
    limit = Objective("ttft_p50_ms", 300)
    assert judge(made, [limit])[1].outcome is Outcome.FAIL


def stationary(load: float, n: int, seeds: range) -> list[Measurement]:
    case = Case("M/M", load, 16)
    return [build_measurement(rows, case.arrivals) for rows in case.steps(seeds, n)]


def test_healthy_queue_near_capacity_rarely_fails() -> None:
    """On its true P50 (1.6 answers) 5 of these steps failed without the rule."""
    objective = Objective("e2e_latency_p50_s", 1.6)
    outcomes = [judge(made, [objective])[1].outcome for made in stationary(0.95, 600, range(60))]
    assert outcomes.count(Outcome.FAIL) <= 2
    assert Outcome.PASS not in outcomes


def test_short_step_of_random_arrivals_does_not_pass_by_its_margin() -> None:
    """60 requests that met no busy period: 15 to 19 % passed on the true P90 (1.1 answers)."""
    objective = Objective("ttft_p90_ms", 1100)
    outcomes = [judge(made, [objective])[1].outcome for made in stationary(0.9, 60, range(40))]
    assert Outcome.PASS not in outcomes


def test_busy_period_rarely_ends_a_step_early_by_a_fail() -> None:
    """While a step runs, the engine's readings are not known."""
    objective = Objective("e2e_latency_p50_s", 1.7)
    ended = []
    for made in stationary(0.95, 600, range(30)):
        decision = EarlyDecision(replace(made.step, decide_early=True), [objective])
        ended.append(next((end for one in made.samples if (end := decision(one))), ""))
    assert ended.count("fail") <= 2


def test_error_rate_of_a_step_without_a_queue_is_judged_as_independent() -> None:
    def reason(values: list[float], quiet: Quiet) -> str:
        return margin_reason(Objective(ERROR_RATE, 0.1), values, quiet, 30.0, 0.05)

    assert reason([0.0] * 60, Quiet.CALM) == "none failed, and hardly any waited"
    assert reason([0.0] * 60, Quiet.NOT) == ""
    assert reason([0.0] * 20, Quiet.CALM) == ""
    assert reason([1.0, *[0.0] * 59], Quiet.CALM) == ""


def test_random_arrivals_correlate_as_many_requests_as_are_in_the_engine() -> None:
    """A short step of equal answers shows no correlation of its own."""
    rows = [sample(i, i / 10, ttft_s=0.5, itl_s=0.1) for i in range(60)]
    assert find_dependence(rows, open_loop=True).in_engine_time == 1
    assert find_dependence(rows, open_loop=True, random_arrivals=True).in_engine_time == pytest.approx(20, abs=1)


def test_poisson_plan_is_judged_as_random_arrivals() -> None:
    step = open_step(10, 6, arrivals=POISSON, seed=3)
    made = queued(step, 64, lambda _dice: 1.0, seed=3)
    assert judge(made, [Objective("ttft_p90_ms", 1000)])[1].outcome is Outcome.INCONCLUSIVE
    constant = queued(open_step(10, 6), 64, lambda _dice: 1.0)
    assert judge(constant, [Objective("ttft_p90_ms", 1000)])[1].outcome is Outcome.PASS

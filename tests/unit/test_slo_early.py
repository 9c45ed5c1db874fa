"""When a step may end before its planned duration: zero errors, closed loops, and observations past capacity."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import pytest

from pytest_vllm_stage.measurement.samples import PAST_CAPACITY, EarlyStop, Measurement, Sample
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import abandoned, closed_step, failed, measurement, open_step, queued, sample
from tests.unit.test_slo_healthy import GATES, closed_loop, open_loop

PROMISED = (Objective("error_rate", 0), Objective("ttft_p50_ms", 2000))
#: A short step, as on a machine whose answers are short.
LOCAL_S = 15.0


def ends(
    step: LoadStep,
    samples: Iterable[Sample],
    *,
    observation: bool = False,
    objectives: Iterable[Objective] = PROMISED,
    after: bool = False,
) -> tuple[str | None, float]:
    """What was certain, and when; the samples are given as they end while the step sends, or also `after` it."""
    decision = EarlyDecision(step, tuple(objectives), observation=observation)
    for one in sorted(samples, key=lambda one: one.end_s):
        if one.end_s > step.duration_s and not after:
            break
        if reason := decision(one):
            return reason, one.end_s
    return None, step.duration_s


@pytest.mark.parametrize(("planned", "passes_at"), [(20, None), (40, 30), (200, 100)])
def test_error_rate_of_0_is_kept_early_by_enough_requests(planned: int, passes_at: int | None) -> None:
    step = open_step(10, planned / 10, decide_early=True)
    reason, at_s = ends(step, [sample(i, i / 10, itl_s=0.0001) for i in range(planned)])
    assert reason == ("pass" if passes_at else None)
    assert passes_at is None or at_s == pytest.approx(passes_at / 10, abs=0.3)


def users(concurrency: int, answer_s: float, duration_s: float = LOCAL_S) -> list[Sample]:
    """Users that each send when their last answer ended."""
    rounds = int(duration_s / answer_s)
    starts = [round_ * answer_s + user * 0.001 for round_ in range(rounds) for user in range(concurrency)]
    return [sample(i, at, ttft_s=answer_s * 0.9, itl_s=answer_s * 0.1 / 15) for i, at in enumerate(starts)]


def test_closed_loop_ends_at_half_time_where_its_objectives_are_kept_by_far() -> None:
    step = closed_step(5, LOCAL_S, decide_early=True)
    reason, at_s = ends(step, users(5, 0.5))
    assert reason == "pass"
    assert at_s == pytest.approx(LOCAL_S / 2, abs=0.6)
    assert ends(replace(step, decide_early=False), users(5, 0.5))[0] is None


@pytest.mark.parametrize(
    ("concurrency", "answer_s", "objectives"),
    [
        (1, 1.0, PROMISED),  # 15 requests
        (5, 0.5, [*PROMISED, Objective("output_tokens_per_s_min", 1)]),
        (5, 0.5, [Objective("error_rate", 0), Objective("ttft_p99_ms", 2000)]),  # 150 requests, a P99 needs 299
    ],
)
def test_closed_loop_goes_on_where_it_is_not_certain(
    concurrency: int, answer_s: float, objectives: list[Objective]
) -> None:
    step = closed_step(concurrency, LOCAL_S, decide_early=True)
    assert ends(step, users(concurrency, answer_s), objectives=objectives)[0] is None


def test_closed_loop_that_allows_no_failure_ends_with_the_first() -> None:
    rows = [failed(9, one.scheduled_s) if one.index == 9 else one for one in users(5, 0.5)]
    reason, at_s = ends(closed_step(5, LOCAL_S, decide_early=True), rows)
    assert (reason, at_s < 2) == ("fail", True)


def test_stopping_a_closed_loop_early_hardly_adds_to_the_risk_of_a_wrong_pass() -> None:
    """Exactly half of the requests miss a P50, so that every pass is wrong."""
    step, wrong = closed_step(5, LOCAL_S, decide_early=True), 0
    for seed in range(400):
        dice = random.Random(seed)
        rows = [sample(i, i * 0.1, ttft_s=dice.choice([0.05, 0.15]), itl_s=0.0001) for i in range(150)]
        wrong += ends(step, rows, objectives=[Objective("ttft_p50_ms", 100)])[0] == "pass"
    assert wrong <= 3


def past_capacity(rate: float) -> Measurement:
    """A batch of eight with answers of 1.2 s: 6.7 requests/s, as the quantized model on one core."""
    return queued(open_step(rate, LOCAL_S, decide_early=True), 8, lambda dice: dice.uniform(1.1, 1.3))


def ended(made: Measurement, reason: str, at_s: float) -> Measurement:
    """What is left of a step whose sending ends; past capacity, requests in progress are abandoned."""
    sent = tuple(one for one in made.samples if one.scheduled_s <= at_s)
    if reason == PAST_CAPACITY:
        sent = tuple(one if one.end_s <= at_s else abandoned(one, at_s) for one in sent)
    last_s = max(one.end_s for one in sent)
    stop = EarlyStop(at_s, len(sent), reason, max(0.0, made.step.duration_s - at_s))
    server = tuple(reading for reading in made.server if reading.at_s <= last_s)
    return replace(made, samples=sent, server=server, early_stop=stop)


@pytest.mark.parametrize(
    "make",
    [
        *(partial(open_loop, 5, 0.088 * slower, 0.19 * slower) for slower in (1, 4)),
        *(partial(open_loop, 10, 0.11 * slower, 0.32 * slower) for slower in (1, 4)),
        *(partial(closed_loop, users, 14.0, 0.2) for users in (1, 5, 10, 25)),
    ],
    ids=lambda make: "-".join(map(str, (make.func.__name__, *make.args))),
)
def test_healthy_step_that_ends_early_passes(make: Callable[..., Measurement]) -> None:
    """The verdict on what was sent is the one that was certain."""
    early = 0
    for seed in range(15):
        made = make(dice=random.Random(seed), start=1)
        made = replace(made, step=replace(made.step, decide_early=True))
        decision = EarlyDecision(made.step, PROMISED, gates=GATES)
        for one in sorted(made.samples, key=lambda one: one.end_s):
            if one.end_s < made.step.duration_s and (reason := decision(one)):
                early += 1
                found = judge(ended(made, reason, one.end_s), PROMISED, gates=GATES)[1]
                assert (reason, found.outcome) == ("pass", Outcome.PASS), found.why
                break
    assert early > 10


@pytest.mark.parametrize("rate", [10.0, 25.0])
def test_observation_past_capacity_ends_early_and_is_still_called_past_capacity(rate: float) -> None:
    made = past_capacity(rate)
    reason, at_s = ends(made.step, made.samples, observation=True)
    assert reason == PAST_CAPACITY
    assert at_s < 0.75 * LOCAL_S
    metrics, found = judge(ended(made, reason, at_s), PROMISED)
    assert found.outcome is Outcome.FAIL
    assert f"{rate:g} requests/s is past capacity, about 6." in found.why
    assert metrics.abandoned > 10
    assert f"{metrics.abandoned} of {metrics.requests} requests were abandoned" in found.why
    assert metrics.failed == {}
    assert metrics.requests_per_s == pytest.approx(6.7, rel=0.1)  # nothing is missing of what was in progress


def test_promised_step_past_capacity_is_not_ended_by_its_backlog() -> None:
    made = past_capacity(10.0)
    assert ends(made.step, made.samples)[0] != PAST_CAPACITY


@pytest.mark.parametrize("stall_s", [0.0, 1.0])
@pytest.mark.parametrize("answer_s", [0.3, 3.0])
def test_observation_within_capacity_is_not_ended_by_slow_answers_or_a_stall(answer_s: float, stall_s: float) -> None:
    """The server stands still once, at every half second of the step, and then catches up."""
    step = open_step(10, 60.0, decide_early=True)
    for at_s in (n / 2 for n in range(4, 40)):
        rows = []
        for i in range(600):
            end_s = i / 10 + answer_s
            end_s = max(end_s, at_s + stall_s) if at_s <= end_s < at_s + stall_s else end_s
            rows.append(sample(i, i / 10, ttft_s=end_s - i / 10 - 0.0015, itl_s=0.0001))
        assert ends(step, rows, observation=True, objectives=[Objective("ttft_p50_ms", 60_000)])[0] != PAST_CAPACITY


#: Objectives that decide nothing early.
OPEN = [Objective("ttft_p99_ms", 60_000)]


def test_backlog_is_certain_after_the_last_send_where_answers_take_half_of_the_step() -> None:
    """One request per second of the 25 that arrive: 300 s of backlog, of which a few answers' time is awaited."""
    made = queued(open_step(25, LOCAL_S, decide_early=True), 7, lambda dice: dice.uniform(6.5, 7.5))
    reason, at_s = ends(made.step, made.samples, observation=True, objectives=OPEN, after=True)
    assert reason == PAST_CAPACITY
    assert LOCAL_S < at_s < LOCAL_S + 5 * 7.5
    assert ends(made.step, made.samples, objectives=OPEN, after=True)[0] != PAST_CAPACITY  # something is promised


def test_backlog_ends_an_observation_that_has_failed_before() -> None:
    """A failure ends the sending; the requests in progress would still take minutes."""
    made = queued(open_step(25, 60.0, decide_early=True), 1, lambda dice: dice.uniform(1.9, 2.1))
    decision = EarlyDecision(made.step, PROMISED, observation=True)
    rows = [failed(one.index, one.scheduled_s, end_s=one.end_s) if one.index == 1 else one for one in made.samples]
    said = [(reason, one.end_s) for one in rows if (reason := decision(one))]
    first = next(at_s for reason, at_s in said if reason == "fail")
    assert first < next(at_s for reason, at_s in said if reason == PAST_CAPACITY) < first + 8 * 2.1


@pytest.mark.parametrize("slower", [1.0, 3.0])
@pytest.mark.parametrize("streamed", [True, False])
def test_engine_that_fills_and_then_stands_still_has_no_backlog(slower: float, streamed: bool) -> None:
    """Answers take up to three times as long once the engine is full; at any time it stands still for two seconds.

    It then works off what has arrived meanwhile at one and a half times the rate.
    """
    step, alone_s = open_step(10, 20.0, decide_early=True), 0.8
    for stall_at_s in range(2, 25):
        rows, free_s = [], 0.0
        for i in range(200):
            answer_s = alone_s * min(slower, 1 + (slower - 1) * i / 10 / (alone_s * slower))
            end_s = i / 10 + answer_s
            if stall_at_s <= end_s:
                free_s = max(free_s + 1 / 15, stall_at_s + 2)
                end_s = max(end_s, free_s)
            first_s = i / 10 + (0.1 * answer_s if streamed and stall_at_s > end_s else end_s - i / 10 - 0.0015)
            rows.append(sample(i, i / 10, ttft_s=first_s - i / 10, itl_s=(end_s - first_s) / 15))
        assert ends(step, rows, observation=True, objectives=OPEN, after=True)[0] != PAST_CAPACITY, stall_at_s


def batches(lengths_s: list[float]) -> list[Sample]:
    """25 requests/s over 4 s; sixteen of them end at once, after each of these times."""
    ends_s = [sum(lengths_s[: n + 1]) for n in range(len(lengths_s))]
    rows = [(i / 25, ends_s[i // 16]) for i in range(min(100, 16 * len(ends_s)))]
    return [sample(i, at_s, ttft_s=end_s - at_s - 0.03, itl_s=0.002) for i, (at_s, end_s) in enumerate(rows)]


def test_backlog_is_certain_where_all_requests_end_in_large_batches() -> None:
    """Between two batches there is a pause, each about as long as the others."""
    step = open_step(25, 4.0, decide_early=True)
    reason, at_s = ends(step, batches([1.6] * 5), observation=True, objectives=OPEN, after=True)
    assert reason == PAST_CAPACITY
    assert at_s == pytest.approx(8.0, abs=0.1)
    found = judge(ended(measurement(step, batches([1.6] * 5)), reason, at_s), PROMISED)[1]
    assert found.outcome is Outcome.FAIL
    assert "25 requests/s is past capacity" in found.why


def test_backlog_is_not_certain_after_a_pause_that_is_longer_than_the_batches_take() -> None:
    step, rows = open_step(25, 4.0, decide_early=True), batches([1.0, 1.0, 1.0, 3.0])
    assert ends(step, rows, observation=True, objectives=OPEN, after=True)[0] != PAST_CAPACITY

"""Steady or not: queues that grow do not pass, queues that only wander are not accused, and the reason has numbers."""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from pytest_vllm_stage.measurement.samples import Measurement, Sample, ServerReading
from pytest_vllm_stage.measurement.samples_file import read_measurement
from pytest_vllm_stage.measurement.step import POISSON
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.engine_load import MAX_NUM_SEQS, find_engine_load
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.steadiness import find_fill_time, find_trends
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import closed_step, measurement, open_step, queued, sample

DATA = Path(__file__).parents[1] / "data"
GENEROUS = Objective("ttft_p90_ms", 60_000)


def growing(rate: float = 10.5, duration_s: float = 60, **changes: object) -> Measurement:
    """A batch of ten with answers of one second, 5 % past its capacity."""
    return queued(open_step(rate, duration_s, **changes), 10, lambda _dice: 1.0)


@pytest.fixture(scope="module")
def ramp() -> Measurement:
    """A real step: an H100, a batch of 24, 4 % past its capacity; every sixteenth token's time is kept."""
    return read_measurement(DATA / "queue-grows.samples.jsonl.gz")


def test_a_real_step_past_its_capacity_is_not_steady(ramp: Measurement) -> None:
    objectives = [Objective("error_rate", 0), Objective("ttft_p90_ms", 2000), Objective("tpot_p90_ms", 100)]
    found = judge(ramp, objectives)[1]
    assert found.outcome is Outcome.FAIL
    assert found.why.startswith(
        "not steady: the queue grows by 0.18 requests/s (24 of 24 running); TTFT P90 would exceed 2000 ms after about "
    )
    assert "capacity about 4.8 requests/s" in found.why
    assert "a batch of 24 with 5 s per answer allows 4.8 requests/s at most" in found.why


def test_limit_exceeded_only_after_the_horizon_is_ignored(ramp: Measurement) -> None:
    far = [Objective("ttft_p90_ms", 40_000)]
    assert "would exceed 40000 ms after about 9" in judge(ramp, far, horizon_s=3600)[1].why
    assert "not steady" not in judge(ramp, far)[1].why


def test_without_the_engines_readings_a_rise_is_not_certain(ramp: Measurement) -> None:
    found = judge(replace(ramp, server=()), [Objective("ttft_p90_ms", 2000)])[1]
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.why.startswith("not steady: the requests in the engine grow by 0.2 per second; TTFT P90 would exceed")


def test_closed_loop_reports_requests_that_wait_for_a_small_batch() -> None:
    server = [ServerReading(float(at), 16, 9) for at in range(1, 60)]
    rows = [sample(i, i / 10, ttft_s=2.4) for i in range(600)]
    found = judge(measurement(closed_step(25), rows, server), [Objective("ttft_p90_ms", 2000)])[1]
    assert found.outcome is Outcome.FAIL
    assert "ttft_p90_ms <= 2000: 2400, 600 misses of 600 requests" in found.why
    assert "9 requests always waited: the engine runs 16 at a time" in found.why


def test_a_real_closed_loop_names_the_batch_that_is_smaller_than_its_concurrency() -> None:
    """An H100 with a batch of 16 and 25 users; every sixteenth token's time is kept."""
    closed = read_measurement(DATA / "closed-25.samples.jsonl.gz")
    found = judge(closed, [Objective("error_rate", 0), Objective("ttft_p90_ms", 2000)])[1]
    assert found.outcome is Outcome.FAIL
    assert found.why.startswith(
        "ttft_p90_ms <= 2000: 2434, 243 misses of 441 requests; "
        "9 requests always waited: the engine runs 16 at a time (concurrency 25)"
    )


@pytest.mark.parametrize(
    ("running", "waiting", "kv_cache", "facts", "says"),
    [
        (24, 16, 0.5, {}, "16 requests always waited: the engine runs 24 at a time (concurrency 40)"),
        (
            *(11, 29, 1.0, {MAX_NUM_SEQS: 16}),
            "29 requests always waited: the engine runs 11 at a time: its KV cache is full (concurrency 40)",
        ),
        (
            *(11, 29, 0.4, {MAX_NUM_SEQS: 16}),
            "29 requests always waited: the engine runs 11 at a time, not the declared 16 (concurrency 40)",
        ),
        (32, 8, 0.5, {MAX_NUM_SEQS: 16}, "8 requests always waited: the engine runs 32 at a time (concurrency 40)"),
        (
            *(None, None, None, {MAX_NUM_SEQS: 16}),
            "24 requests always wait: the engine is declared to run 16 at a time (concurrency 40)",
        ),
    ],
)
def test_closed_loop_says_what_its_requests_wait_for(
    running: float | None, waiting: float | None, kv_cache: float | None, facts: dict[str, int], says: str
) -> None:
    server = [ServerReading(float(at), running, waiting, kv_cache) for at in range(1, 60)]
    made = measurement(closed_step(40), [sample(i, i / 10, ttft_s=2.4) for i in range(600)], server)
    found = judge(replace(made, facts=facts), [Objective("ttft_p90_ms", 2000)])[1]
    assert found.outcome is Outcome.FAIL
    assert says in found.why


@pytest.mark.parametrize(
    ("running", "facts"), [([40.0] * 59, {}), ([31.0, 36.0] * 30, {}), (None, {MAX_NUM_SEQS: 40}), (None, {})]
)
def test_closed_loop_that_waits_for_nothing_says_so_of_nothing(
    running: list[float] | None, facts: dict[str, int]
) -> None:
    server = [ServerReading(float(at), count, 0) for at, count in enumerate(running or [], start=1)]
    made = measurement(closed_step(40), [sample(i, i / 10) for i in range(600)], server)
    found = judge(replace(made, facts=facts), [Objective("ttft_p90_ms", 2000)])[1]
    assert (found.outcome, "wait" in found.why) == (Outcome.PASS, False), found.why


def users_of(
    ttft_s: Callable[[float], float], itl_s: Callable[[float], float], duration_s: float = 60.0, users: int = 5
) -> Measurement:
    """A closed loop whose latencies depend on the time, and vary by a twentieth."""
    dice, waiting = random.Random(4), [(0.001 * user, user) for user in range(users)]
    rows: list[Sample] = []
    while (first := heapq.heappop(waiting))[0] < duration_s:
        at_s, factor = round(first[0], 6), math.exp(dice.gauss(0, 0.05))
        rows.append(sample(len(rows), at_s, ttft_s=factor * ttft_s(at_s), itl_s=factor * itl_s(at_s)))
        heapq.heappush(waiting, (rows[-1].end_s + 0.001, first[1]))
    return measurement(closed_step(users, duration_s), rows)


@pytest.mark.parametrize(
    ("made", "objective", "says"),
    [
        (users_of(lambda at: 0.06 + 0.024 * at, lambda _: 0.02), "ttft_p90_ms", "TTFT P90 would exceed 2000 ms after"),
        (users_of(lambda _: 0.06, lambda at: 0.02 + 0.0012 * at), "tpot_p90_ms", "TPOT P90 would exceed 100 ms after"),
        (users_of(lambda _: 0.3, lambda at: 0.02 + 0.0008 * at), "e2e_latency_p90_s", "P90 would exceed 2 s after"),
    ],
    ids=["ttft", "tpot", "e2e_latency"],
)
def test_an_engine_that_slows_down_under_constant_concurrency_does_not_pass(
    made: Measurement, objective: str, says: str
) -> None:
    limits = {"ttft_p90_ms": 2000, "tpot_p90_ms": 100, "e2e_latency_p90_s": 2}
    found = judge(made, [Objective(objective, limits[objective])])[1]
    assert found.outcome is Outcome.INCONCLUSIVE
    assert found.why.startswith(
        "not steady: the latency rises at a constant concurrency of 5: the engine slows down; "
    ), found.why
    assert says in found.why


@pytest.mark.parametrize(
    "made",
    [
        users_of(lambda _: 0.06, lambda _: 0.02),
        users_of(lambda at: 0.06 + 1.5 * math.exp(-at / 3), lambda _: 0.02),
        users_of(lambda at: 0.06 + 0.00025 * at, lambda at: 0.02 + 0.00005 * at),
        users_of(lambda at: 0.06 if at < 30 else 0.2, lambda _: 0.02),
        users_of(lambda at: 0.06 + 0.2 * (20 < at < 30), lambda _: 0.02),
        users_of(lambda at: 0.06 + 0.05 * at, lambda _: 0.02, duration_s=20),
    ],
    ids=["steady", "cold", "drift", "step", "disturbed", "short"],
)
def test_a_closed_loop_that_does_not_slow_down_for_good_passes(made: Measurement) -> None:
    found = judge(made, [Objective("ttft_p90_ms", 2000), Objective("tpot_p90_ms", 100)])[1]
    assert found.outcome is Outcome.PASS, found.why


@pytest.mark.parametrize(
    ("kv_cache", "says"),
    [(0.99, "(24 of 64 running, the KV cache is full)"), (0.4, "(24 of 64 running)")],
    ids=["full", "half"],
)
def test_a_queue_grows_in_front_of_a_batch_that_stays_below_its_declared_limit(
    ramp: Measurement, kv_cache: float, says: str
) -> None:
    server = tuple(replace(reading, kv_cache_usage=kv_cache) for reading in ramp.server)
    found = judge(replace(ramp, server=server, facts={MAX_NUM_SEQS: 64}), [Objective("ttft_p90_ms", 2000)])[1]
    assert found.outcome is Outcome.FAIL
    assert found.why.startswith("not steady: the queue grows by ")
    assert says in found.why
    assert "a batch of 24 with 5 s per answer allows 4.8 requests/s at most" in found.why


def test_a_queue_that_grows_does_not_end_the_step_early() -> None:
    made = growing(decide_early=True)
    decision = EarlyDecision(made.step, [GENEROUS])
    assert {decision(one) for one in made.samples} == {None}
    assert judge(made, [GENEROUS])[1].outcome is not Outcome.PASS


def test_steady_steps_end_early() -> None:
    made = queued(open_step(5, 60, decide_early=True), 10, lambda _dice: 1.0)
    decision = EarlyDecision(made.step, [GENEROUS])
    assert "pass" in [decision(one) for one in made.samples]


def test_random_walk_without_drift_is_not_a_trend() -> None:
    """The level of a random walk has a significant slope nearly always; its changes do not."""
    called = 0
    for seed in range(200):
        dice, at = random.Random(seed), 5.0
        rows = []
        for i in range(300):
            at = max(0.1, at + dice.gauss(0, 0.05))
            rows.append(sample(i, float(i), ttft_s=at, itl_s=0.0))
        trend = find_trends(rows).trend("ttft")
        assert trend is not None
        called += trend.rises
    assert called <= 4


@pytest.mark.parametrize("load", [0.5, 0.9])
def test_stationary_queues_are_rarely_called_not_steady(load: float) -> None:
    called = 0
    for seed in range(60):
        made = queued(open_step(16 * load, 40, arrivals=POISSON, seed=seed), 16, lambda dice: dice.expovariate(1), seed)
        found = judge(made, [Objective("ttft_p90_ms", 3000)])[1]
        called += "not steady" in found.why or "past capacity" in found.why
    assert called <= 2


def test_answers_of_unequal_length_fill_the_engine_later() -> None:
    equal = [sample(i, float(i), ttft_s=0.0, itl_s=1.0, tokens=2) for i in range(20)]
    assert find_fill_time(equal) == pytest.approx(0.95)
    lengths = [-math.log(1 - (i + 0.5) / 1000) for i in range(1000)]
    exponential = [sample(i, float(i), ttft_s=0.0, itl_s=length, tokens=2) for i, length in enumerate(lengths)]
    assert find_fill_time(exponential) == pytest.approx(3.0, abs=0.1)
    assert find_fill_time([]) == 0


def test_an_engine_that_fills_is_not_called_not_steady() -> None:
    """Exponential answers fill it in three of their lengths, most of these steps."""
    called = 0
    for seed in range(100):
        step = open_step(14.4, 4.2, arrivals=POISSON, seed=seed)
        found = judge(queued(step, 16, lambda dice: dice.expovariate(1), seed), [Objective("ttft_p90_ms", 3000)])[1]
        called += "not steady" in found.why or "past capacity" in found.why
    assert called <= 1


def test_a_short_step_far_past_capacity_is_past_capacity() -> None:
    made = queued(open_step(5, 6), 1, lambda _dice: 1.0)
    assert not find_trends(made.samples).trends
    assert "past capacity" in judge(made, [Objective("ttft_p90_ms", 60_000)])[1].why


@pytest.mark.parametrize("rate", [11, 20, 40])
def test_the_batch_limit_does_not_count_time_in_the_queue(rate: float) -> None:
    """A batch of ten with answers of one second allows ten requests a second, however long the queue is."""
    load = find_engine_load(queued(open_step(rate, 60), 10, lambda _dice: 1.0))
    assert load.capacity_requests_per_s is not None
    assert load.ceiling_requests_per_s is not None
    assert load.ceiling_requests_per_s == pytest.approx(10, rel=0.03)
    assert load.ceiling_requests_per_s >= load.capacity_requests_per_s
    assert load.answer_s == pytest.approx(1, rel=0.03)


def test_a_server_that_reaches_more_than_its_seeming_batch_allows_has_no_ceiling() -> None:
    made = queued(open_step(20, 60), 10, lambda _dice: 1.0)
    missed = [replace(one, running=min(one.running or 0.0, 5.0)) for one in made.server]
    assert find_engine_load(replace(made, server=tuple(missed))).ceiling_requests_per_s is None


def test_too_few_requests_show_no_trend() -> None:
    assert find_trends([sample(i, i / 10, ttft_s=0.1 + i) for i in range(20)]).trends == ()
    assert find_trends([]).trends == ()


def test_a_promised_rate_above_the_batch_limit_is_reported_by_a_step_below_it(ramp: Measurement) -> None:
    slow = queued(open_step(2, 60), 10, lambda _dice: 1.0)
    declared = replace(slow, facts={MAX_NUM_SEQS: 4})

    def ceilings(made: Measurement, promised_rate: float | None) -> list[str]:
        found = judge(made, [GENEROUS], promised_rate=promised_rate)[1]
        return [finding.text for finding in found.findings if finding.name == "ceiling"]

    (text,) = ceilings(declared, 10)
    assert text.startswith("the promised 10 requests/s is above the batch limit: a batch of 4 with 1 s per answer")
    assert text in judge(declared, [GENEROUS], promised_rate=10)[1].why
    assert ceilings(declared, 3) == ceilings(declared, None) == []
    assert ceilings(slow, 100) == []
    assert ceilings(ramp, 10)[0].startswith("5 requests/s and the promised 10 requests/s are above the batch limit")
    assert ceilings(ramp, 5)[0].startswith("the promised 5 requests/s is above the batch limit")

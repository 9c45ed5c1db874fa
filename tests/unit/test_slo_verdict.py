"""Verdicts over made measurements: what decides, what invalidates, and that saturation is known."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from pytest_vllm_stage.measurement.samples import (
    PORT_FORWARD,
    SEVERAL_ENGINES,
    EarlyStop,
    Measurement,
    Sample,
    ServerReading,
)
from pytest_vllm_stage.measurement.step import POISSON
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.gates import misses_of
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.saturation import kendall_tau, saturation
from pytest_vllm_stage.slo.validity import lacks_generated_tokens
from pytest_vllm_stage.slo.verdict import StepVerdict, judge
from tests.unit.made_samples import abandoned, closed_step, failed, measurement, open_step, queued, sample, with_ttfts

P99 = Objective("ttft_p99_ms", 500)
P90 = Objective("ttft_p90_ms", 500)
ERRORS = Objective("error_rate", 0.01)


def verdict(made: Measurement, *objectives: Objective, **options: Any) -> StepVerdict:
    return judge(made, objectives, **options)[1]


def ttfts(n: int, misses: int) -> list[float]:
    """Misses spread over the step."""
    slow = {int((i + 0.5) * n / misses) for i in range(misses)} if misses else set()
    return [0.6 if i in slow else 0.1 for i in range(n)]


@pytest.mark.parametrize(
    ("n", "misses", "outcome", "why"),
    [
        (299, 0, "pass", "1 of 1 objectives kept"),
        (298, 0, "inconclusive", "0 misses of 298 requests; too few samples: a pass needs at least 299"),
        (472, 1, "inconclusive", "1 misses of 472 requests; too close to call, about"),
        (473, 1, "pass", ""),
        (600, 11, "fail", "ttft_p99_ms <= 500: 600, 11 misses of 600 requests"),
        (600, 10, "inconclusive", "too close to call"),
        (60, 60, "fail", "60 misses of 60 requests"),
    ],
)
def test_the_binomial_rule_judges_a_percentile(n: int, misses: int, outcome: str, why: str) -> None:
    found = verdict(with_ttfts(ttfts(n, misses)), P99)
    assert (found.outcome, found.gates[0].n, found.gates[0].misses) == (outcome, n, misses)
    assert why in found.why


def test_a_step_passes_only_with_every_objective_and_fails_with_any() -> None:
    made = with_ttfts(ttfts(600, 0))
    slow = Objective("e2e_latency_p50_s", 0.2)
    assert verdict(made, P99, ERRORS).outcome is Outcome.PASS
    failing = verdict(made, P99, slow)
    assert failing.outcome is Outcome.FAIL
    assert "e2e_latency_p50_s <= 0.2" in failing.why
    assert "ttft" not in failing.why
    unsure = verdict(made, P99, Objective("error_rate", 0.001))
    assert unsure.outcome is Outcome.INCONCLUSIVE


def test_without_an_objective_a_step_is_measured_and_not_judged() -> None:
    found = verdict(with_ttfts(ttfts(60, 0)))
    assert (found.outcome, found.why) == (Outcome.INCONCLUSIVE, "no objective is set for this step")


def test_more_gates_in_the_run_make_a_false_fail_rarer() -> None:
    made = with_ttfts(ttfts(600, 11))
    assert verdict(made, P99).outcome is Outcome.FAIL
    assert verdict(made, P99, gates=21).outcome is Outcome.INCONCLUSIVE


def test_token_gaps_are_judged_by_the_share_of_each_request() -> None:
    def slow_gaps(count: int) -> tuple[float, ...]:
        return tuple(0.1 + i * 0.01 + (0.3 if i > 15 - count else 0) * (i - 15 + count) for i in range(16))

    samples = [sample(i, i / 10) for i in range(300)]
    samples[50] = replace(samples[50], token_times_s=tuple(5 + at for at in slow_gaps(3)), end_s=7.0)
    objective = Objective("itl_p90_ms", 100)
    shares = misses_of(objective, samples)
    assert len(shares) == 300
    assert sum(shares) == pytest.approx(3 / 15)
    gate = verdict(measurement(open_step(10, 30), samples), objective).gates[0]
    assert (gate.outcome, gate.n) == (Outcome.PASS, 300)
    assert gate.misses == pytest.approx(0.2)


def test_a_failed_request_misses_every_latency() -> None:
    samples = [sample(i, i / 10) if i % 20 else failed(i, i / 10) for i in range(600)]
    for key in ("ttft_p99_ms", "itl_p99_ms", "tpot_p99_ms", "e2e_latency_p99_s"):
        gate = verdict(measurement(open_step(), samples), Objective(key, 9999)).gates[0]
        assert (gate.outcome, gate.misses) == (Outcome.FAIL, 30)


def test_failures_are_named_in_the_reason() -> None:
    samples = [sample(i, i / 10) if i % 20 else failed(i, i / 10) for i in range(600)]
    assert "failed requests: 30 http_status" in verdict(measurement(open_step(), samples), ERRORS).why


def test_a_vacuous_run_never_passes() -> None:
    empty = verdict(measurement(open_step(), [failed(i, i / 10, "no_tokens") for i in range(600)]), P99)
    assert empty.outcome is Outcome.FAIL
    assert empty.why.startswith("vacuous: not one token came from 600 requests (600 no_tokens)")
    nothing = verdict(measurement(open_step(), []), P99)
    assert (nothing.outcome, nothing.why) == (Outcome.INVALID, "no request was sent")


def test_a_floor_is_judged_over_blocks_of_time() -> None:
    steady = with_ttfts([0.1] * 600)
    floor = "output_tokens_per_s_min"
    observed = judge(steady, [])[0].output_tokens_per_s
    assert verdict(steady, Objective(floor, observed * 0.95)).outcome is Outcome.PASS
    assert verdict(steady, Objective(floor, observed * 1.05)).outcome is Outcome.FAIL
    dice = random.Random(1)
    noisy = with_ttfts([dice.expovariate(2.0) for _ in range(60)])
    close = judge(noisy, [])[0].output_tokens_per_s * 1.001
    assert verdict(noisy, Objective(floor, close)).outcome is Outcome.INCONCLUSIVE
    short = verdict(with_ttfts([0.1]), Objective(floor, 1))
    assert "too short for an error estimate" in short.gates[0].why


def test_goodput_counts_requests_within_every_limit() -> None:
    made = with_ttfts([0.6 if i % 2 else 0.1 for i in range(600)])
    floor = Objective("goodput_requests_per_s_min", 8)
    metrics, found = judge(made, [P99, floor])
    assert metrics.goodput_requests_per_s == pytest.approx(5, rel=0.02)
    assert {gate.objective.key: gate.outcome for gate in found.gates}[floor.key] is Outcome.FAIL


def late(lag_s: float) -> Callable[[int], Sample]:
    return lambda i: sample(i, i / 10, sent_s=i / 10 + lag_s)


def invalid(name: str, made: Measurement, *objectives: Objective) -> str:
    found = verdict(made, *(objectives or (P99,)))
    assert found.outcome is Outcome.INVALID
    assert name in [finding.name for finding in found.findings if finding.invalidates]
    return found.why


def many(make: Callable[[int], Sample] = lambda i: sample(i, i / 10), n: int = 600) -> list[Sample]:
    return [make(i) for i in range(n)]


def test_late_client_makes_the_step_invalid() -> None:
    made = measurement(open_step(), many(late(0.03)), cpu_s=55, wall_s=60)
    why = invalid("client_late", made)
    assert "the client was overloaded: P99 send lag 30.0 ms, limit 25 ms; its process used 92 % of a core" in why
    generous = Objective("ttft_p99_ms", 700)
    assert verdict(made, generous).outcome is Outcome.PASS, "5 % of the TTFT objective are allowed"
    invalid("client_late", made, Objective("e2e_latency_p99_s", 700))


@pytest.mark.parametrize(("n", "late_sends"), [(8, 1), (15, 1), (16, 2), (60, 2), (200, 2), (600, 6)])
def test_single_late_requests_do_not_make_a_step_invalid(n: int, late_sends: int) -> None:
    """Also the last ones, which lower the rate that was sent: 30 requests at 10/s last three seconds."""
    rows = [sample(i, i / 10, ttft_s=0.3, sent_s=i / 10 + 0.2 * (i >= n - late_sends)) for i in range(n)]
    found = verdict(measurement(open_step(10, n / 10), rows), Objective("ttft_p50_ms", 500))
    assert found.outcome is not Outcome.INVALID
    noted = [finding.text for finding in found.findings if finding.name == "sent_late"]
    assert noted == ([f"{late_sends} of {n} requests were sent up to 200.0 ms late"] if late_sends > n / 100 else [])


@pytest.mark.parametrize(("n", "late_sends"), [(6, 1), (15, 2), (60, 3), (200, 3), (600, 7)])
def test_driver_that_fell_behind_makes_a_short_step_invalid(n: int, late_sends: int) -> None:
    rows = [sample(i, i / 10, ttft_s=0.3, sent_s=i / 10 + 0.2 * (i >= n - late_sends)) for i in range(n)]
    made = measurement(open_step(10, n / 10), rows)
    why = invalid("client_late", made, Objective("ttft_p50_ms", 500))
    assert "P99 send lag 200.0 ms, limit 25 ms" in why
    assert ("of the planned rate" in why) == (n <= 60)


def test_client_that_reads_late_makes_the_step_invalid() -> None:
    assert "up to 80.0 ms late" in invalid("client_slow", measurement(open_step(), many(), loop_lag_p99_ms=80.0))


def test_rate_below_the_planned_one_makes_the_step_invalid() -> None:
    made = measurement(open_step(), many(lambda i: sample(i, i / 10, sent_s=i / 10 * 1.02, ttft_s=2.0)))
    assert "98.0 % of the planned rate" in invalid("rate_not_sent", made)


def test_prompts_shorter_than_planned_make_the_step_invalid() -> None:
    why = invalid(
        "prompt_tokens", measurement(open_step(), many(lambda i: failed(i, i / 10, "prompt_tokens", prompt_tokens=32)))
    )
    expected = "600 of 600 prompts did not have the planned length: expected 64 tokens, the server counted 32"
    assert expected in why


def test_repeated_prompts_make_the_step_invalid() -> None:
    made = measurement(open_step(), many(lambda i: sample(i, i / 10, prompt_digest=str(i % 100))))
    assert "500 of 600 prompts had been sent before" in invalid("repeated_prompts", made)


def burst(i: int, **changes: Any) -> Sample:
    return sample(i, i / 10, ttft_s=0.003, itl_s=0.00001, **changes)


@pytest.mark.parametrize(
    ("samples", "server", "evidence"),
    [
        (many(lambda i: sample(i, i / 10, response_id=f"id-{i // 2}")), None, "600 of 600 answers share their id"),
        (many(lambda i: burst(i, output_digest="x")), None, "600 of 600 different prompts got the same answer at once"),
        (
            [burst(i) if i % 10 == 0 else sample(i, i / 10) for i in range(600)],
            None,
            "60 of 600 answers were complete in under 0.06 s; the median is 0.25 s",
        ),
        (
            many(),
            [ServerReading(0, 1, 0, generation_tokens=1000), ServerReading(60, 1, 0, generation_tokens=2000)],
            "9600 tokens were received and the engine generated 1000",
        ),
    ],
    ids=["ids", "same-at-once", "too-fast", "not-generated"],
)
def test_answers_from_a_cache_make_the_step_invalid(
    samples: list[Sample], server: list[ServerReading] | None, evidence: str
) -> None:
    why = invalid("served_from_cache", measurement(open_step(), samples, server))
    assert evidence in why


def test_early_answers_that_a_busy_client_took_in_one_piece_are_not_from_a_cache() -> None:
    def answer(i: int) -> Sample:
        if i in (3, 5, 8):
            return sample(i, i / 10, ttft_s=0.3, itl_s=0.00001)
        return sample(i, i / 10, ttft_s=0.1 if i < 10 else 3.0)

    found = verdict(measurement(open_step(10, 6), [answer(i) for i in range(60)]), P99)
    assert "served_from_cache" not in [finding.name for finding in found.findings]


def test_unplanned_prefix_cache_hits_make_the_step_invalid_and_a_planned_prefix_does_not() -> None:
    def reading(at_s: float, queries: float, hits: float) -> ServerReading:
        return ServerReading(at_s, 1, 0, prefix_cache_queries=queries, prefix_cache_hits=hits)

    hot = [reading(0, 1000, 0), reading(60, 401_000, 300_000)]
    long = [replace(one, expected_prompt_tokens=512, prompt_tokens=512) for one in many()]
    plain = measurement(open_step(prompt_tokens=512), long, hot)
    assert "it held 75 % of the prompt tokens" in invalid("prefix_cache", plain)
    planned = measurement(open_step(prompt_tokens=512, shared_prefix_tokens=400), long, hot)
    assert verdict(planned, P99).outcome is Outcome.PASS
    cold = replace(planned, server=(reading(0, 1000, 0), reading(60, 401_000, 8_000)))
    assert "prefix_cache_cold" in [finding.name for finding in verdict(cold, P99).findings]


def test_findings_that_do_not_invalidate_do_not_change_the_outcome() -> None:
    buffered = measurement(open_step(), many(lambda i: sample(i, i / 10, ttft_s=0.25, itl_s=0.00001)), [])
    found = verdict(buffered, P99)
    assert found.outcome is Outcome.PASS
    assert {finding.name for finding in found.findings} == {"buffered", "no_server_metrics"}
    assert "a proxy or the server buffers the stream" in found.why


def test_engine_restarts_and_preemptions_are_findings() -> None:
    server = [
        ServerReading(0, 1, 0, generation_tokens=50_000, preemptions=0),
        ServerReading(30, 1, 0, generation_tokens=10, preemptions=0),
        ServerReading(60, 1, 0, generation_tokens=60_000, preemptions=3),
    ]
    names = {finding.name for finding in verdict(measurement(open_step(), many(), server), P99).findings}
    assert names == {"engine_restarted", "preemptions"}


def readings_of(*counts: float) -> list[ServerReading]:
    """One reading per second; the caches of a server that has served longer hold more."""
    return [
        ServerReading(float(at), 1, 0, generation_tokens=count, prefix_cache_queries=count, prefix_cache_hits=count / 9)
        for at, count in enumerate(counts)
    ]


@pytest.mark.parametrize(
    ("counts", "name"),
    [
        ((50_000, 10, 2_000), "engine_restarted"),
        ((50_000, 51_000, 10, 500, 20, 700), "engine_restarted"),
        ((50_000, 9_000, 51_000, 10_000, 52_000), "several_servers"),
        ((9_000, 50_000, 10_000, 51_000, 11_000), "several_servers"),
        ((10_000, 20_000, 30_000), None),
    ],
)
def test_counters_that_fall_are_of_a_restart_or_of_several_servers_and_of_no_cache(
    counts: tuple[float, ...], name: str | None
) -> None:
    found = verdict(measurement(open_step(), many(), readings_of(*counts)), P99)
    assert [one.name for one in found.findings] == ([name] if name else [])
    assert found.outcome is Outcome.PASS
    assert (name is None) == ("counters fell" not in found.why)


@pytest.mark.parametrize("several", [True, False])
def test_tokens_that_another_engine_sent_are_not_taken_for_a_caches(several: bool) -> None:
    """Of two engines, the one that is read has generated half of what was received."""
    facts = {SEVERAL_ENGINES: True} if several else {}
    half = sum(one.tokens for one in many()) / 2
    made = replace(measurement(open_step(), many(), readings_of(0, half / 2, half)), facts=facts)
    found = verdict(made, P99)
    assert [one.name for one in found.findings] == (["several_servers"] if several else ["served_from_cache"])
    assert found.outcome is (Outcome.PASS if several else Outcome.INVALID)
    assert lacks_generated_tokens(made) is not several


def test_stalls_are_reported_with_their_interval() -> None:
    samples = many()
    for start in (100, 250, 400):
        for i in range(start, start + 20):
            samples[i] = sample(i, i / 10, ttft_s=2.0 - (i - start) / 10 + 0.1)
    found = verdict(measurement(open_step(), samples), P99)
    assert found.outcome is Outcome.FAIL
    assert "3 stalls of up to 2.0 s, about every 15.0 s" in found.why


def overloaded(rate: float = 5, duration_s: float = 60) -> Measurement:
    step = open_step(rate, duration_s, prompt_tokens=64, output_tokens=16)
    return queued(step, 4, lambda _dice: 5.0)


def test_saturation_is_reported_with_the_capacity_and_advice() -> None:
    found = verdict(overloaded(), P90)
    assert found.outcome is Outcome.FAIL
    assert len(found.saturation.signs) >= 2
    assert found.saturation.capacity_requests_per_s == pytest.approx(0.8, rel=0.05)
    assert found.why.startswith(
        "5 requests/s is past capacity, about 0.8 at this length (64/16 tokens): "
        "one rate step down, or fewer output tokens"
    )


def test_saturated_step_fails_even_if_its_objectives_are_kept() -> None:
    assert verdict(overloaded(), Objective("e2e_latency_p90_s", 9999)).outcome is Outcome.FAIL


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_a_busy_server_within_capacity_is_hardly_ever_called_saturated(load: float) -> None:
    """A queue with exponential service times, near its limit, 100 seeds: its latency varies without saturation."""
    called = 0
    for seed in range(100):
        step = open_step(8 * load, 60, arrivals=POISSON, seed=seed)
        called += saturation(queued(step, 8, lambda dice: dice.expovariate(1.0), seed)).saturated
    assert called <= 2


@pytest.mark.parametrize("load", [1.5, 3.0])
def test_an_overloaded_server_is_hardly_ever_missed(load: float) -> None:
    found = []
    for seed in range(40):
        step = open_step(8 * load, 60, arrivals=POISSON, seed=seed)
        found.append(saturation(queued(step, 8, lambda dice: dice.expovariate(1.0), seed)))
    assert sum(state.saturated for state in found) >= 38
    shown = [state.capacity_requests_per_s or 0 for state in found if state.saturated]
    assert sum(shown) / len(shown) == pytest.approx(8, rel=0.15)


def test_a_closed_loop_that_keeps_requests_waiting_gets_the_advice() -> None:
    server = [ServerReading(float(at), 16, 9) for at in range(1, 60)]
    server = [ServerReading(-0.1, 0, 0), *server, *[ServerReading(60.0 + at, 0, 0) for at in range(90)]]
    samples = [sample(i, i / 10) for i in range(600)]
    state = saturation(measurement(closed_step(25), samples, server))
    assert not state.saturated
    assert state.message == (
        "9 requests always waited: the engine runs 16 at a time (concurrency 25); "
        "one rate step down, or fewer output tokens"
    )


def test_kendalls_tau_knows_its_ends() -> None:
    assert (kendall_tau([1, 2, 3]), kendall_tau([3, 2, 1]), kendall_tau([1]), kendall_tau([1, 1])) == (1, -1, 0, 0)


def early(samples: list[Sample], *objectives: Objective, order: int = 1) -> tuple[str | None, int]:
    """Feed samples, shuffled in groups, until it is certain."""
    step = open_step(10, len(samples) / 10, decide_early=True)
    decision = EarlyDecision(step, objectives)
    dice = random.Random(1)
    queue = sorted(samples, key=lambda one: one.index // order + dice.random() / 2)
    for seen, one in enumerate(queue, start=1):
        reason = decision(one)
        if reason:
            return reason, seen
    return None, len(samples)


@pytest.mark.parametrize(("misses", "outcome", "most"), [(0, "pass", 0.5), (300, "fail", 0.15), (6, None, 1.0)])
def test_the_verdict_after_an_early_end_is_the_one_that_was_certain(
    misses: int, outcome: str | None, most: float
) -> None:
    n = 1000
    made = with_ttfts(ttfts(n, misses), decide_early=True)
    reason, seen = early(list(made.samples), P99, ERRORS)
    assert reason == outcome
    assert seen <= most * n
    stop = EarlyStop(seen / 10, seen + 5, reason or "", (n - seen) / 10) if reason else None
    shorter = replace(made, samples=made.samples[: seen + 5], early_stop=stop)
    found = verdict(shorter, P99, ERRORS)
    assert found.outcome == (outcome or "inconclusive")
    if outcome:
        assert found.saved_s == (n - seen) / 10
        assert verdict(made, P99, ERRORS).outcome == outcome, "the whole step would have said the same"


def test_answers_that_end_first_are_not_counted_first() -> None:
    """Slow requests end last: counted by their end, a broken step would look kept for a while."""
    samples = [sample(i, i / 10, ttft_s=0.1 if i % 10 else 60.0) for i in range(1000)]
    decision = EarlyDecision(open_step(10, 100, decide_early=True), [P99])
    reasons = [decision(one) for one in sorted(samples, key=lambda one: one.end_s)]
    assert next(reason for reason in reasons if reason) == "fail"


def test_output_rate_is_never_passed_early() -> None:
    """Only the whole step can keep it."""
    samples = [sample(i, i / 10) for i in range(1000)]
    assert early(samples, P99, Objective("output_tokens_per_s_min", 1))[0] is None


def test_one_failure_ends_a_step_that_allows_none() -> None:
    samples = [sample(i, i / 10) if i != 7 else failed(7, 0.7) for i in range(600)]
    assert early(samples, Objective("error_rate", 0.0)) == ("fail", 8)


def test_a_step_that_is_not_to_end_early_does_not() -> None:
    decision = EarlyDecision(open_step(), [P99])
    assert [decision(sample(i, i / 10, ttft_s=9)) for i in range(600)] == [None] * 600


def test_a_verdict_is_plain_data() -> None:
    data = verdict(overloaded(), P90, ERRORS, Objective("output_tokens_per_s_min", 1)).to_json()
    text = json.loads(json.dumps(data, allow_nan=False))
    assert text["schema_version"] == 1
    assert text["outcome"] == "fail"
    assert {gate["objective"] for gate in text["gates"]} == {"ttft_p90_ms", "error_rate", "output_tokens_per_s_min"}


def test_no_step_passes_before_its_middle() -> None:
    """However clear it looks: a queue that grows slowly takes a while to show."""
    reason, seen = early([sample(i, i / 10) for i in range(600)], Objective("ttft_p50_ms", 500))
    assert (reason, seen) == ("pass", 300)


def forwarded(rate: float, broken: str = "") -> Measurement:
    made = with_ttfts([0.1] * 600, rate=rate)
    return replace(made, facts={PORT_FORWARD: {"service": "service/m", "broken": broken}})


def test_a_slow_step_through_a_port_forward_says_so_and_keeps_its_verdict() -> None:
    found = verdict(forwarded(2.0), P99)
    assert found.outcome is Outcome.PASS
    text = "the requests went through a port-forward to service/m: the latencies include it"
    assert [one.text for one in found.findings if one.name == "port_forward"] == [text]


def test_load_through_a_port_forward_is_invalid_and_names_other_ways() -> None:
    why = invalid("port_forward_load", forwarded(10.0))
    assert "not measured above 3 requests/s, and these were 10; measure in a pod of the cluster" in why


def test_failures_of_a_port_forward_are_not_the_models() -> None:
    why = invalid("port_forward_broken", forwarded(2.0, "the port-forward to service/m broke: pod/a was deleted"))
    assert why.startswith("the port-forward to service/m broke: pod/a was deleted")


@pytest.mark.parametrize(
    ("objective", "errors", "outcome"),
    [
        (Objective("ttft_p50_ms", 90_000), 0, Outcome.INCONCLUSIVE),
        (Objective("error_rate", 0.05), 0, Outcome.INCONCLUSIVE),
        (Objective("error_rate", 0), 0, Outcome.INCONCLUSIVE),
        (Objective("error_rate", 0), 1, Outcome.FAIL),  # even if all others had been answered
        (Objective("output_tokens_per_s_min", 1), 0, Outcome.INCONCLUSIVE),
    ],
)
def test_objective_is_decided_only_where_abandoned_requests_cannot_change_it(
    objective: Objective, errors: int, outcome: Outcome
) -> None:
    """Of 200 requests the last 150 are given up after one to sixteen seconds."""
    rows = [sample(i, i / 10) if i < 50 else abandoned(sample(i, i / 10, ttft_s=90), 21.0) for i in range(200)]
    rows[:errors] = [failed(i, i / 10) for i in range(errors)]
    metrics, verdict = judge(measurement(open_step(10, 20), rows), [objective])
    assert verdict.gates[0].outcome is outcome, verdict.gates[0].why
    assert "150 of 200 requests were abandoned" in verdict.why
    assert sum(metrics.failed.values()) == errors

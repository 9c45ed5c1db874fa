"""The window around a disruption: what counts as recovered, and what follows from the samples."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.measurement.samples import EarlyStop, Measurement, Sample
from pytest_vllm_stage.resilience.window import Marks, Promise, find_recovery, judge_window, measure_window
from pytest_vllm_stage.slo.decision import Outcome
from tests.unit.made_samples import failed, measurement, open_step, sample

RATE = 5.0
MARKS = Marks(5.0, 10.0)
PROMISE = Promise(recovery_s=15, failed_requests_max=20, window_error_rate=0.5, ttft_p99_ms=1000, settle_s=3)


def traffic(bad: set[int], count: int = 150, *, slow: bool = False) -> list[Sample]:
    """A sample every 0.2 s, of which those in ``bad`` failed or were slow."""
    made = []
    for index in range(count):
        at_s = index / RATE
        broken = sample(index, at_s, ttft_s=3.0) if slow else failed(index, at_s, "connection")
        made.append(broken if index in bad else sample(index, at_s))
    return made


def measured(samples: list[Sample], loop_lag_p99_ms: float | None = None) -> Measurement:
    return measurement(open_step(RATE, len(samples) / RATE), samples, loop_lag_p99_ms=loop_lag_p99_ms)


def between(first_s: float, last_s: float) -> set[int]:
    return {index for index in range(400) if first_s <= index / RATE <= last_s}


def test_recovery_is_the_first_request_after_the_last_bad_one() -> None:
    numbers = measure_window(traffic(between(6, 12)), MARKS, PROMISE)
    assert numbers.recovery_s == pytest.approx(12.2 - 5)
    assert [numbers.first_bad_s, numbers.last_bad_s] == pytest.approx([1.0, 7.0])
    assert numbers.failed == 31
    assert numbers.kinds == {"connection": 31}
    assert (numbers.bad_before, numbers.bad_after) == (0, 0)


def test_a_stage_that_never_fails_recovers_at_once() -> None:
    verdict = judge_window(measured(traffic(set())), MARKS, PROMISE)
    assert verdict.outcome is Outcome.PASS
    assert verdict.numbers.recovery_s == 0
    assert verdict.why.startswith("none of ")


def test_a_pause_before_the_end_of_the_disruption_does_not_count_as_recovery() -> None:
    """A rollout fails requests when the old pod goes, long after its start."""
    numbers = measure_window(traffic(between(9.0, 9.4)), Marks(5.0, 9.2), PROMISE)
    assert numbers.recovery_s == pytest.approx(4.6)
    assert numbers.failed == 3


def test_failures_after_a_whole_settle_period_are_outside_the_window() -> None:
    verdict = judge_window(measured(traffic(between(6, 7) | between(20, 20.4))), MARKS, PROMISE)
    assert verdict.outcome is Outcome.FAIL
    assert verdict.numbers.recovery_s == pytest.approx(2.2)
    assert verdict.numbers.bad_after == 3
    assert "3 requests failed or were slow after the recovery" in verdict.why


def test_failures_before_the_disruption_fail() -> None:
    verdict = judge_window(measured(traffic({3})), MARKS, PROMISE)
    assert verdict.outcome is Outcome.FAIL
    assert "1 of 24 requests failed or were slow before the disruption" in verdict.why


def test_a_request_in_flight_at_the_start_belongs_to_the_window() -> None:
    samples = traffic(set())
    samples[24] = replace(failed(24, 4.8, "truncated"), end_s=5.1)
    numbers = measure_window(samples, MARKS, PROMISE)
    assert (numbers.failed, numbers.bad_before) == (1, 0)


def test_slow_requests_delay_the_recovery_and_are_not_failed() -> None:
    verdict = judge_window(measured(traffic(between(6, 12), slow=True)), MARKS, PROMISE)
    assert verdict.numbers.failed == 0
    assert verdict.numbers.recovery_s == pytest.approx(7.2)
    assert verdict.broken == ("TTFT P99 3000 ms, limit 1000 ms",)


@pytest.mark.parametrize(
    ("promise", "line"),
    [
        (Promise(failed_requests_max=30, settle_s=3), "31 requests failed (connection 31), at most 30 may"),
        (Promise(window_error_rate=0.1, settle_s=3), "requests failed, at most 10.0% may"),
        (Promise(recovery_s=7, settle_s=3), "recovered after 7.2 s, limit 7 s"),
    ],
)
def test_each_promise_is_broken_by_itself(promise: Promise, line: str) -> None:
    verdict = judge_window(measured(traffic(between(6, 12))), MARKS, promise)
    assert verdict.outcome is Outcome.FAIL
    assert len(verdict.broken) == 1
    assert line in verdict.broken[0]


def test_the_same_window_passes_what_allows_it() -> None:
    promise = Promise(recovery_s=8, failed_requests_max=31, window_error_rate=0.7, settle_s=3)
    assert judge_window(measured(traffic(between(6, 12))), MARKS, promise).outcome is Outcome.PASS


def test_a_stage_that_stays_broken_beyond_its_limit_fails() -> None:
    verdict = judge_window(measured(traffic(between(6, 99))), MARKS, Promise(recovery_s=15, settle_s=3))
    assert verdict.outcome is Outcome.FAIL
    assert verdict.numbers.recovery_s is None
    assert verdict.why == "not recovered 24.8 s after the start, limit 15 s"


def test_traffic_that_ended_before_the_settle_period_was_over_is_inconclusive() -> None:
    samples = traffic(between(6, 12), count=70)
    verdict = judge_window(measured(samples), MARKS, Promise(recovery_s=15, settle_s=3))
    assert verdict.outcome is Outcome.INCONCLUSIVE
    assert "before 3 s without a bad request were seen" in verdict.why


def test_thin_traffic_is_inconclusive_unless_a_promise_is_broken() -> None:
    thin = [sample(index, index * 3.0) for index in range(8)]
    made = measurement(open_step(1 / 3, 24), thin)
    assert judge_window(made, MARKS, PROMISE).outcome is Outcome.INCONCLUSIVE
    thin[2] = failed(2, 6.0)
    made = measurement(open_step(1 / 3, 24), thin)
    assert judge_window(made, MARKS, Promise(failed_requests_max=0, settle_s=3)).outcome is Outcome.FAIL


def test_a_driver_that_fell_behind_is_inconclusive_whatever_failed() -> None:
    late = judge_window(measured(traffic(between(6, 99)), loop_lag_p99_ms=250.0), MARKS, PROMISE)
    assert late.outcome is Outcome.INCONCLUSIVE
    assert "its event loop was 250 ms late (P99), limit 100" in late.why
    short = replace(measured(traffic(set())), samples=tuple(traffic(set(), count=100)))
    assert judge_window(short, MARKS, PROMISE).outcome is Outcome.INCONCLUSIVE


def test_traffic_that_was_ended_early_is_not_a_driver_that_fell_behind() -> None:
    made = replace(measured(traffic(set(), count=100)), step=open_step(RATE, 300))
    assert judge_window(made, MARKS, PROMISE).outcome is Outcome.INCONCLUSIVE
    ended = replace(made, early_stop=EarlyStop(19.8, 100, "the window is over", 280.2))
    assert judge_window(ended, MARKS, PROMISE).outcome is Outcome.PASS


BAD = st.sets(st.integers(0, 149), max_size=60)
ENDS = st.floats(5.0, 25.0)


@given(BAD, ENDS)
def test_no_request_fails_between_recovery_and_settled(bad: set[int], ended_s: float) -> None:
    samples, marks = traffic(bad), Marks(5.0, ended_s)
    recovered_s = find_recovery(samples, marks, PROMISE)
    if recovered_s is not None:
        settled_s = max(recovered_s, ended_s) + PROMISE.settle_s
        assert recovered_s >= marks.began_s
        assert not [one for one in samples if recovered_s <= one.scheduled_s <= settled_s and one.failure]
        assert samples[-1].scheduled_s >= settled_s


@given(BAD, ENDS)
def test_every_failed_request_is_before_in_or_after_the_window(bad: set[int], ended_s: float) -> None:
    numbers = measure_window(traffic(bad), Marks(5.0, ended_s), PROMISE)
    assert numbers.bad_before + numbers.failed + numbers.bad_after == len(bad)
    assert numbers.failed <= numbers.requests
    assert sum(numbers.kinds.values()) == numbers.failed


@given(BAD, ENDS)
def test_where_nothing_may_fail_any_failed_request_fails_the_window(bad: set[int], ended_s: float) -> None:
    verdict = judge_window(measured(traffic(bad)), Marks(5.0, ended_s), Promise(failed_requests_max=0, settle_s=3))
    assert (verdict.outcome is Outcome.FAIL) == bool(bad)


@given(BAD, ENDS)
def test_more_traffic_without_failures_only_completes_a_recovery(bad: set[int], ended_s: float) -> None:
    """What was seen as recovered while the traffic still ran is what the whole traffic shows."""
    marks, early = Marks(5.0, ended_s), find_recovery(traffic(bad), Marks(5.0, ended_s), PROMISE)
    later = find_recovery(traffic(bad, count=400), marks, PROMISE)
    assert later is not None
    assert early in (None, later)

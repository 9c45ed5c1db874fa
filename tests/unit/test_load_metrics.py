"""From samples to metrics: every number against one computed by hand, and failures as misses everywhere."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.measurement.metrics import LATENCIES, PERCENTS, summarise
from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.stalls import find_stalls
from pytest_vllm_stage.measurement.statistics import interval_needs
from tests.unit.made_samples import abandoned, closed_step, failed, open_step, sample


def hundred(**changes: Any) -> list[Sample]:
    """TTFT 1 to 100 ms, ITL 10 ms, 16 tokens, 10 requests a second."""
    return [sample(i, i / 10, ttft_s=(i + 1) / 1000, **changes) for i in range(100)]


def test_every_metric_of_a_known_step() -> None:
    metrics = summarise(hundred(), open_step(10, 10), limits_s={"ttft": 0.050})
    flat = metrics.flat()
    assert flat["ttft_p50_ms"] == pytest.approx(50)
    assert flat["ttft_p99_ms"] == pytest.approx(99)
    assert flat["ttft_max_ms"] == pytest.approx(100)
    assert flat["ttft_mean_ms"] == pytest.approx(50.5)
    assert flat["itl_p99_ms"] == pytest.approx(10)
    assert flat["tpot_p50_ms"] == pytest.approx(10)
    assert flat["e2e_latency_p90_s"] == pytest.approx(0.090 + 0.150)
    span_s = 9.9 + 0.100 + 0.150
    assert metrics.span_s == pytest.approx(span_s)
    assert flat["output_tokens_per_s"] == pytest.approx(1600 / span_s)
    assert flat["total_tokens_per_s"] == pytest.approx((1600 + 6400) / span_s)
    assert flat["requests_per_s"] == pytest.approx(100 / span_s)
    assert flat["goodput_requests_per_s"] == pytest.approx(50 / span_s)
    assert flat["error_rate"] == 0
    assert flat["achieved_over_offered"] == pytest.approx(1, abs=1e-4)
    assert flat["lag_p99_ms"] == pytest.approx(0.2)
    assert flat["arrival_cv"] == pytest.approx(0, abs=1e-9)
    assert flat["stalls"] == 0
    assert flat["tokens_per_event"] == 1
    assert not metrics.vacuous


def test_a_percentile_carries_n_and_its_interval_or_what_that_needs() -> None:
    latency = summarise(hundred(), open_step()).latencies["ttft"]
    median = latency.percentiles[50]
    assert median.n == 100
    assert (median.low or 0, median.high or 0) == pytest.approx((40, 61))
    assert latency.percentiles[99].interval_text() == f"n/a (needs {interval_needs(99)})"
    assert latency.percentiles[90].interval_text() == "84.0 to 96.0"


def test_a_failure_is_a_miss_in_every_percentile() -> None:
    samples = hundred()
    for i in (10, 20):
        samples[i] = failed(i, i / 10, "timeout")
    metrics = summarise(samples, open_step())
    assert metrics.failed == {"timeout": 2}
    assert metrics.error_rate == 0.02
    for name, (unit, _) in LATENCIES.items():
        assert metrics.flat()[f"{name}_p99_{unit}"] == math.inf
        assert metrics.latencies[name].percentiles[95].value < math.inf
        assert metrics.latencies[name].n == 100
    assert metrics.flat()["ttft_mean_ms"] == pytest.approx(50.5, rel=0.05)


def test_a_failed_request_that_gave_tokens_is_still_a_miss_and_gives_no_throughput() -> None:
    samples = [sample(i, i / 10) for i in range(9)] + [failed(9, 0.9, "truncated", tokens=8)]
    metrics = summarise(samples, open_step())
    assert metrics.flat()["ttft_p99_ms"] == math.inf
    assert metrics.output_tokens_per_s == pytest.approx(9 * 16 / metrics.span_s)


def test_percentile_that_depends_on_abandoned_requests_is_only_a_lower_bound() -> None:
    """Each request takes longer than the one before; from 4 s on, the last of 100 are given up at 6 s.

    60 requests are known whole; of the other 40 the first tokens of 5 came. The smallest time that a request without
    one had waited is 20 ms, so that the P50 of 100 lies among requests of which not all are known.
    """
    rows = [sample(i, i / 20, ttft_s=0.9 + i / 100, itl_s=0.02) for i in range(100)]
    given_up = [one if one.end_s <= 4.9 else abandoned(one, 4.96) for one in rows]
    metrics = summarise(given_up, open_step(20, 5))
    whole = sum(one.failure is None for one in given_up)
    assert (metrics.abandoned, metrics.failed, metrics.error_rate) == (100 - whole, {}, 0.0)
    p50 = metrics.latencies["ttft"].percentiles[50]
    true = summarise(rows, open_step(20, 5)).latencies["ttft"].percentiles[50].value
    assert p50.at_least
    assert p50.value <= true
    assert metrics.flat()["ttft_p50_ms"] is metrics.flat()["ttft_mean_ms"] is metrics.flat()["ttft_max_ms"] is None
    assert metrics.to_json()["percentiles"]["ttft_p50_ms"]["at_least"] is True
    assert metrics.latencies["tpot"].n == whole


def test_percentile_below_all_abandoned_requests_is_exact() -> None:
    rows = [*(sample(i, i / 10) for i in range(18)), *(abandoned(sample(i, 1.8, ttft_s=9), 4.0) for i in (18, 19))]
    found = summarise(rows, open_step(10, 2)).latencies["ttft"].percentiles
    assert [(percent, one.at_least) for percent, one in found.items()] == [
        (50, False),
        (90, False),
        (95, True),
        (99, True),
    ]
    assert found[90].value == pytest.approx(100)
    assert found[99].value == pytest.approx(2200)


def test_tokens_of_abandoned_requests_count_into_the_throughput() -> None:
    half = abandoned(sample(1, 0.0, ttft_s=0.1, itl_s=0.1), 0.85)
    metrics = summarise([sample(0, 0.0, ttft_s=0.1, itl_s=0.05), half], open_step(10, 2))
    assert metrics.output_tokens_per_s == pytest.approx((16 + 8) / 0.85)
    assert metrics.requests_per_s == pytest.approx(1.5 / 0.85)


def test_a_run_without_tokens_is_vacuous_and_has_no_latencies() -> None:
    metrics = summarise([failed(i, i / 10) for i in range(10)], open_step())
    assert metrics.vacuous
    assert metrics.latencies == {}
    assert metrics.flat()["ttft_p99_ms"] is None
    assert metrics.output_tokens_per_s == 0
    json.dumps(metrics.to_json(), allow_nan=False)


def test_nothing_at_all_has_metrics_too() -> None:
    metrics = summarise([], open_step())
    assert metrics.vacuous
    assert metrics.requests == 0


def test_infinity_becomes_a_text_in_json() -> None:
    data = summarise([failed(0, 0), sample(1, 0.1)], open_step()).to_json()
    text = json.dumps(data, allow_nan=False)
    assert data["metrics"]["ttft_p99_ms"] == "inf"
    assert "Infinity" not in text


def test_latency_counts_from_the_schedule_not_from_the_send() -> None:
    late = sample(0, 1.0, ttft_s=0.5, sent_s=1.4)
    metrics = summarise([late], open_step())
    assert metrics.flat()["ttft_p50_ms"] == pytest.approx(500)
    assert metrics.lag_p99_ms == pytest.approx(400)


def test_late_sending_lowers_the_achieved_rate() -> None:
    samples = [sample(i, i / 10, sent_s=i / 10 * 1.25) for i in range(101)]
    assert summarise(samples, open_step()).achieved_over_offered == pytest.approx(0.8)


def test_a_refused_connection_does_not_lower_the_achieved_rate() -> None:
    samples = [failed(i, i / 10, "connection", sent_s=None) if i % 2 else sample(i, i / 10) for i in range(100)]
    assert summarise(samples, open_step()).achieved_over_offered == pytest.approx(1, abs=1e-3)


def test_a_closed_loop_offers_no_rate() -> None:
    metrics = summarise([sample(i, i / 10) for i in range(5)], closed_step())
    assert metrics.achieved_over_offered is None
    assert metrics.arrival_cv is None


def test_one_token_has_no_gap_and_two_tokens_in_an_event_are_said() -> None:
    single = summarise([sample(0, 0, tokens=1)], open_step())
    assert set(single.latencies) == {"ttft", "e2e_latency"}
    double = sample(0, 0, tokens=8, output_tokens=16)
    assert summarise([double], open_step()).tokens_per_event == 2
    assert summarise([double], open_step()).flat()["tpot_p50_ms"] == pytest.approx(70 / 15)


def test_gaps_are_pooled_and_their_confidence_comes_from_the_requests() -> None:
    samples = [sample(i, i / 10) for i in range(30)]
    itl = summarise(samples, open_step()).latencies["itl"].percentiles
    assert itl[90].n == 30
    assert itl[90].low is None
    assert itl[50].low == pytest.approx(10)


@settings(derandomize=True, deadline=None, max_examples=60)
@given(
    ttfts_s=st.lists(st.floats(0.001, 5), min_size=1, max_size=120),
    failures=st.sets(st.integers(0, 119)),
)
def test_percentiles_rise_and_failures_never_improve_them(ttfts_s: list[float], failures: set[int]) -> None:
    right = [sample(i, i / 10, ttft_s=ttft_s) for i, ttft_s in enumerate(ttfts_s)]
    mixed = [failed(s.index, s.scheduled_s) if s.index in failures else s for s in right]
    good, bad = summarise(right, open_step()), summarise(mixed, open_step())
    for name, (unit, _) in LATENCIES.items():
        values = [good.flat()[f"{name}_p{percent}_{unit}"] or 0 for percent in PERCENTS]
        assert values == sorted(values)
        for percent in PERCENTS if name in bad.latencies else ():
            key = f"{name}_p{percent}_{unit}"
            assert (bad.flat()[key] or 0) >= (good.flat()[key] or 0) - 1e-9


def test_a_freeze_of_all_streams_is_one_stall() -> None:
    frozen = [
        sample(i, i / 10, token_times_s=(i / 10 + 0.1, i / 10 + 2.1 + i / 1000), end_s=i / 10 + 2.2) for i in range(5)
    ]
    around = [sample(5 + i, 3 + i / 10) for i in range(20)]
    (stall,) = find_stalls([*frozen, *around])
    assert stall.duration_s == pytest.approx(1.6, abs=0.1)
    metrics = summarise([*frozen, *around], open_step())
    assert metrics.stalls == 1
    assert metrics.stalled_at_s == pytest.approx((0.5,))


def batch(pauses: Sequence[tuple[float, float]], answers: int = 8, *, alone: bool = False) -> list[Sample]:
    """Answers of 20 s with a token every 50 ms that pause at these times; with ``alone`` only every second answer."""
    rows = []
    for i in range(answers):
        times, at_s = [], 0.4 + i / 1000
        while at_s < 20:
            end_s = next((end_s for start_s, end_s in pauses if start_s <= at_s < end_s), None)
            at_s = at_s if end_s is None or (alone and i % 2) else end_s + i / 1000
            times.append(round(at_s, 6))
            at_s += 0.05
        rows.append(sample(i, 0.0, token_times_s=tuple(times), end_s=times[-1]))
    return rows


def prompt_before(pauses: Sequence[tuple[float, float]], *, sent_before_s: float = 3.0) -> list[Sample]:
    return [
        sample(100 + i, start_s - sent_before_s, ttft_s=end_s - start_s + sent_before_s)
        for i, (start_s, end_s) in enumerate(pauses)
    ]


#: Irregular and regular pauses of 0.8 s.
PAUSES = [(4.0, 4.8), (6.5, 7.3), (8.1, 8.9), (12.0, 12.8), (13.7, 14.5), (17.0, 17.8)]
PERIODIC = [(float(at_s), at_s + 0.8) for at_s in range(3, 19, 3)]


def test_silence_of_a_full_batch_while_prompts_are_computed_is_not_a_stall() -> None:
    assert find_stalls([*batch(PAUSES), *prompt_before(PAUSES)]) == ()


def test_silence_of_a_full_batch_without_a_prompt_is_a_stall() -> None:
    assert [stall.start_s for stall in find_stalls(batch(PAUSES))] == pytest.approx([at for at, _ in PAUSES], abs=0.1)


def test_requests_sent_during_a_freeze_do_not_explain_it() -> None:
    late = prompt_before(PAUSES, sent_before_s=-0.4)
    assert len(find_stalls([*batch(PAUSES), *late])) == len(PAUSES)


def test_silence_longer_than_its_prompts_take_is_a_stall() -> None:
    quick = [sample(200, 0.0, ttft_s=0.1)]
    assert len(find_stalls([*batch(PAUSES), *prompt_before(PAUSES), *quick])) == len(PAUSES)


def test_answers_that_pause_while_others_go_on_stall_only_in_a_rhythm() -> None:
    assert find_stalls(batch(PAUSES, alone=True)) == ()
    assert len(find_stalls(batch(PERIODIC, alone=True))) == len(PERIODIC)
    assert find_stalls(batch(PERIODIC[:4], alone=True)) == ()


def test_a_freeze_between_answers_is_seen_as_silence() -> None:
    """Requests that come during the freeze all get their first token at its end: no gap between tokens shows it."""
    samples = [sample(i, i / 10, ttft_s=0.02, itl_s=0.001) for i in range(100)]
    samples += [sample(100 + i, 10 + i / 10, ttft_s=2.0 - i / 10, itl_s=0.001) for i in range(20)]
    samples += [sample(120 + i, 12 + i / 10, ttft_s=0.02, itl_s=0.001) for i in range(100)]
    (stall,) = find_stalls(samples)
    assert (stall.start_s, stall.end_s) == pytest.approx((10.0, 12.0), abs=0.1)


def test_an_idle_server_does_not_stall() -> None:
    assert find_stalls([sample(i, i * 5.0) for i in range(20)]) == ()


def test_a_slow_but_steady_server_does_not_stall() -> None:
    assert find_stalls([sample(i, i * 2.0, ttft_s=1.5, itl_s=0.2) for i in range(20)]) == ()

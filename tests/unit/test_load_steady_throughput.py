"""The throughput of a closed loop does not depend on how its last answers end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.measurement.metrics import summarise
from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.step import LoadStep
from tests.unit.made_samples import closed_step, failed, open_step, sample


def closed_loop(answers_s: Sequence[float], ttft_s: float, tokens: int, until_s: float) -> list[Sample]:
    """A user for each answer time; all send at 0, and again when an answer ends, until sending ends."""
    made: list[Sample] = []
    for answer_s in answers_s:
        itl_s, at_s = (answer_s - ttft_s) / (tokens - 1), 0.0
        while at_s < until_s:
            made.append(sample(len(made), at_s, ttft_s=ttft_s, itl_s=itl_s, tokens=tokens, sent_s=at_s))
            at_s = made[-1].end_s
    return [replace(one, index=i) for i, one in enumerate(sorted(made, key=lambda one: one.scheduled_s))]


@settings(max_examples=100, deadline=None)
@given(
    users=st.integers(1, 20),
    answer_s=st.floats(0.5, 10),
    ttft_share=st.floats(0.01, 0.5),
    tokens=st.integers(2, 64),
    answers=st.floats(2, 6),
)
def test_throughput_is_that_of_the_answer_time_for_any_duration(
    users: int, answer_s: float, ttft_share: float, tokens: int, answers: float
) -> None:
    samples = closed_loop([answer_s] * users, ttft_share * answer_s, tokens, answers * answer_s)
    metrics = summarise(samples, closed_step(users))
    assert metrics.steady_output_tokens_per_s == pytest.approx(users * tokens / answer_s, rel=1e-3)


@settings(max_examples=100, deadline=None)
@given(
    answers_s=st.lists(st.floats(1, 2), min_size=2, max_size=20),
    ttft_s=st.floats(0.01, 0.5),
    tokens=st.integers(2, 64),
    until_s=st.floats(4, 12),
)
def test_at_most_a_first_token_of_each_user_is_missing(
    answers_s: list[float], ttft_s: float, tokens: int, until_s: float
) -> None:
    """Users whose answers end at different times: one is in progress for each when the last request is sent."""
    samples = closed_loop(answers_s, ttft_s, tokens, until_s)
    busy_s = max(one.scheduled_s for one in samples)
    missing = sum(max(1.0, tokens * ttft_s / answer_s) for answer_s in answers_s)
    expected = sum(tokens / answer_s for answer_s in answers_s)
    metrics = summarise(samples, closed_step(len(answers_s)))
    assert metrics.steady_output_tokens_per_s == pytest.approx(expected, abs=1.01 * missing / busy_s)


def early_ended() -> list[Sample]:
    """10 users, about 4.8 s and 256 tokens per answer, as on an H100, ended early after 14 s."""
    return closed_loop([4.4 + 0.08 * user for user in range(10)], 0.1, 256, 14.0)


def test_early_ended_step_keeps_the_rate_that_its_users_had() -> None:
    rate = sum(256 / (4.4 + 0.08 * user) for user in range(10))
    metrics = summarise(early_ended(), closed_step(10))
    assert metrics.steady_output_tokens_per_s == pytest.approx(rate, rel=0.02)
    assert metrics.output_tokens_per_s < 0.9 * rate, "over the whole span, with the last answers' end"
    assert metrics.to_json()["metrics"]["steady_output_tokens_per_s"] == pytest.approx(rate, rel=0.02)


def test_two_token_times_give_nearly_the_same() -> None:
    """GuideLLM keeps the times of the first and the last token only."""
    every = summarise(early_ended(), closed_step(10)).steady_output_tokens_per_s
    ends = [
        replace(one, token_times_s=(one.token_times_s[0], one.token_times_s[-1]), every_token_timed=False)
        for one in early_ended()
    ]
    assert summarise(ends, closed_step(10)).steady_output_tokens_per_s == pytest.approx(every, rel=0.005)


def test_events_with_several_tokens_count_them_all() -> None:
    samples = [replace(one, output_tokens=3 * 256) for one in early_ended()]
    one = summarise(early_ended(), closed_step(10)).steady_output_tokens_per_s
    assert one is not None
    assert summarise(samples, closed_step(10)).steady_output_tokens_per_s == pytest.approx(3 * one)


def test_failed_requests_give_no_tokens() -> None:
    samples = closed_loop([1.0], 0.1, 10, 4.5)
    samples[1] = failed(1, 1.0, "truncated", tokens=9, end_s=2.0)
    assert summarise(samples, closed_step(1)).steady_output_tokens_per_s == pytest.approx(30 / 4, rel=1e-3)


@pytest.mark.parametrize(
    ("samples", "step"),
    [
        ([sample(i, i / 10) for i in range(100)], open_step(10, 10)),
        ([sample(i, 0.0, sent_s=0.001 * i) for i in range(5)], closed_step(5)),
        ([failed(i, 0.1 * i, "connection", sent_s=None) for i in range(9)], closed_step(5)),
        ([], closed_step(5)),
    ],
    ids=["open loop", "no second request", "nothing sent", "no sample"],
)
def test_there_is_none_for(samples: list[Sample], step: LoadStep) -> None:
    assert summarise(samples, step).steady_output_tokens_per_s is None

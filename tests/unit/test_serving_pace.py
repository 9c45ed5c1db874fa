"""When a stream counts as buffered: by proportions alone, whatever the machine's speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.checks.inference.pace import are_time_slices, pace_of
from pytest_vllm_stage.serving.answers import DONE, Delta, StreamedAnswer
from pytest_vllm_stage.serving.sse import ServerSentEvent


def streamed(arrivals: Sequence[float], ended_at: float | None = None) -> StreamedAnswer:
    deltas = [Delta("x", at) for at in arrivals]
    return StreamedAnswer([], [], deltas, ["length"], sent_at=0.0, ended_at=ended_at or arrivals[-1])


@given(st.floats(0.001, 10), st.floats(0.0005, 5), st.integers(20, 200))
def test_a_steady_stream_is_incremental_at_any_speed(itl_s: float, prefill_in_itls: float, deltas: int) -> None:
    first_s = prefill_in_itls * itl_s
    assert pace_of(streamed([first_s + place * itl_s for place in range(deltas)])).incremental


@given(st.floats(0.01, 100), st.integers(4, 200))
def test_a_stream_that_comes_at_the_end_is_buffered_at_any_speed(duration_s: float, deltas: int) -> None:
    arrivals = [duration_s * (1 + 1e-5 * place) for place in range(deltas)]
    assert pace_of(streamed(arrivals)).symptom.startswith(
        f"the stream was buffered: all {deltas} deltas arrived within"
    )


def test_the_symptom_is_named() -> None:
    pace = pace_of(streamed([3.1 + place * 0.002 / 39 for place in range(40)]))
    assert pace.symptom == "the stream was buffered: all 40 deltas arrived within 2 ms after 3.1 s"


def test_a_response_that_stays_open_after_its_last_event_is_not_buffered() -> None:
    arrivals = [1.0 + place * 0.1 for place in range(20)]
    done = ServerSentEvent(DONE, "message", "", f"data: {DONE}", arrivals[-1])
    answer = StreamedAnswer([done], [], [Delta("x", at) for at in arrivals], ["length"], 0.0, arrivals[-1] + 30)
    assert pace_of(answer).incremental


def test_a_stream_sent_in_blocks_is_recognised() -> None:
    blocks = [block + place * 1e-4 for block in (1.0, 2.0, 3.0) for place in range(16)]
    assert "48 deltas arrived in 3 bursts over 2 s" in pace_of(streamed(blocks)).symptom


def blocks(*sizes: int, block_s: float = 0.037) -> list[float]:
    return [0.01 + block * block_s + place * 1e-4 for block, size in enumerate(sizes) for place in range(size)]


def test_blocks_that_a_busy_machine_makes_are_other_ones_each_time() -> None:
    slices = [pace_of(streamed(blocks(*sizes)), 0.1) for sizes in ((10, 10, 20), (12, 9, 19), (7, 14, 19))]
    assert all(pace.symptom for pace in slices)
    assert are_time_slices(slices)
    idle = [replace(pace, busy=False) for pace in slices]
    assert not are_time_slices([*slices[:2], idle[2]]), "nothing waited during one of the streams"
    long = [pace_of(streamed(blocks(*sizes, block_s=0.3)), 1) for sizes in ((10, 10, 20), (12, 9, 19), (7, 14, 19))]
    assert not are_time_slices(long), "no scheduler holds a process up for so long again and again"
    at_once = pace_of(streamed([1.0 + 1e-4 * place for place in range(40)]), 1)
    assert not are_time_slices([*slices[:2], at_once]), "one stream came at its end"


def test_blocks_of_a_buffer_are_the_same_each_time_even_on_a_busy_machine() -> None:
    """Of the three blocks of 16 the reader was held up at one or another."""
    seen = [pace_of(streamed(blocks(*sizes)), 0.1) for sizes in ((16, 16, 8), (16, 24), (9, 7, 16, 8))]
    assert not are_time_slices(seen)


def test_occasional_pauses_of_the_reader_are_not_buffering() -> None:
    """Two of three tokens arrive with the next one, as when another process had the CPU."""
    arrivals = [1.0 + 0.1 * (place // 3 * 3 + 2) + 1e-4 * (place % 3) for place in range(60)]
    assert pace_of(streamed(arrivals)).incremental


@pytest.mark.parametrize("arrivals", [[1.0], [1.0, 2.0, 3.0]])
def test_an_answer_of_a_few_pieces_is_not_a_stream(arrivals: list[float]) -> None:
    assert f"its text came in {len(arrivals)} pieces" in pace_of(streamed(arrivals)).symptom


def test_an_answer_without_text_is_not_a_stream() -> None:
    assert "in 0 pieces" in pace_of(streamed([], ended_at=2.0)).symptom

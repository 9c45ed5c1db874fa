"""The checks' small helpers: patterns that differ, requests together, waiting, tool calls put together."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest
from hypothesis import given

from pytest_vllm_stage.checks.inference.patterns import pattern
from pytest_vllm_stage.checks.inference.properties import any_text, examples
from pytest_vllm_stage.checks.inference.together import settled, together
from pytest_vllm_stage.checks.inference.tools import ToolCall, read_calls, read_streamed_calls
from pytest_vllm_stage.serving.answers import Answer, StreamedAnswer


def test_every_pattern_has_an_answer_of_its_own() -> None:
    shown = [pattern(place) for place in range(2000)]
    assert len({one.answer for one in shown}) == len(shown)
    assert all(len(one.answer) == 5 for one in shown)
    assert shown[0].prompt(2) == f"{shown[0].line}\n{shown[0].line}\n{shown[0].word}"


def test_requests_run_together_and_keep_their_order() -> None:
    meet = threading.Barrier(4, timeout=30)

    def do(item: int) -> int:
        meet.wait()
        return item * 2

    assert together(do, range(8), at_once=4) == [0, 2, 4, 6, 8, 10, 12, 14]


def test_the_first_failure_is_raised() -> None:
    with pytest.raises(ZeroDivisionError):
        together(lambda item: 1 // item, [1, 0, 2], at_once=2)


def test_waiting_ends_when_it_is_so_and_not_before_its_time() -> None:
    looks = iter([False, False, True])
    assert settled(lambda: next(looks), 30.0)
    started = time.monotonic()
    assert not settled(lambda: False, 0.2)
    assert time.monotonic() - started >= 0.2


def test_calls_are_read_whole_and_put_together_from_a_stream() -> None:
    function = {"name": "f", "arguments": '{"a": 1}'}
    body: dict[str, Any] = {
        "choices": [
            {"message": {"content": None, "tool_calls": [{"id": "1", "type": "function", "function": function}]}}
        ]
    }
    assert read_calls(Answer.of(body).choice) == [ToolCall("1", "f", '{"a": 1}')]
    pieces: list[dict[str, Any]] = [
        {"index": 0, "id": "1", "function": {"name": "f"}},
        {"index": 1, "id": "2", "function": {"name": "g", "arguments": "{}"}},
        {"index": 0, "function": {"arguments": '{"a"'}},
        {"index": 0, "function": {"arguments": ": 1}"}},
    ]
    chunks = [{"choices": [{"delta": {"tool_calls": [piece]}}]} for piece in pieces]
    streamed = StreamedAnswer([], [*chunks, {"choices": []}], [], [], 0.0, 1.0)
    assert read_streamed_calls(streamed.chunks) == [ToolCall("1", "f", '{"a": 1}'), ToolCall("2", "g", "{}")]


def test_a_property_sees_the_same_examples_every_time_and_shrinks() -> None:
    seen: list[list[str]] = [[], []]
    for run in seen:
        append = run.append

        @examples(12)
        @given(any_text())
        def collects(text: str) -> None:
            append(text)  # noqa: B023 - called before the loop goes on

        collects()
    assert seen[0] == seen[1]
    assert len(seen[0]) >= 12

    @examples(60)
    @given(any_text())
    def fails(text: str) -> None:
        assert len(text) < 3, f"the text {text!r}"

    with pytest.raises(AssertionError, match="the text '000'"):
        fails()

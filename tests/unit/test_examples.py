"""Property tests whose examples are asked for side by side."""

from __future__ import annotations

import threading

import pytest
from hypothesis import strategies as st

from pytest_vllm_stage.checks.inference.properties import check_examples

NUMBERS = st.integers(0, 10_000)


def test_examples_differ_are_counted_and_repeat() -> None:
    runs: list[list[int]] = []
    for _ in range(2):
        seen: list[int] = []
        check_examples(NUMBERS, 12, seen.append, at_once=1)
        runs.append(seen)
    assert runs[0] == runs[1]
    assert len(set(runs[0])) == 12


def test_examples_are_checked_at_the_same_time() -> None:
    barrier = threading.Barrier(4)
    check_examples(NUMBERS, 4, lambda example: barrier.wait(timeout=30), at_once=4)


@pytest.mark.parametrize("failure", [AssertionError, pytest.fail.Exception])
def test_failure_is_shrunk(failure: type[BaseException]) -> None:
    def check(number: int) -> None:
        if number >= 100:
            raise failure(f"{number} is too large")

    with pytest.raises(failure, match=r"^100 is too large"):
        check_examples(NUMBERS, 12, check)


def test_only_what_has_failed_is_asked_again() -> None:
    asked: list[int] = []

    def check(number: int) -> None:
        asked.append(number)
        assert threading.current_thread() is threading.main_thread() or number < 2_000, "wrong"

    with pytest.raises(AssertionError) as raised:
        check_examples(NUMBERS, 12, check)
    assert raised.value.__notes__ == [
        "It came only among 8 requests at the same time: each example passes alone.",
    ]
    again = asked[12:]
    assert again
    assert set(again) == {number for number in asked[:12] if number >= 2_000}

"""The statistics against exact arithmetic and published numbers."""

from __future__ import annotations

import random
from fractions import Fraction
from math import comb, exp, inf, isclose, log, log1p

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.measurement.statistics import (
    binomial_at_least,
    binomial_at_most,
    deviation,
    interval_needs,
    interval_ranks,
    nearest_rank,
    readable_number,
    student_at_least,
)

exact = settings(derandomize=True, deadline=None, max_examples=150)


@exact
@given(n=st.integers(1, 80), k=st.integers(-1, 81), p=st.sampled_from([0.001, 0.01, 0.05, 0.1, 0.37, 0.5, 0.9, 0.999]))
def test_binomial_tails_equal_exact_fractions(n: int, k: int, p: float) -> None:
    share = Fraction(p)
    terms = [comb(n, i) * share**i * (1 - share) ** (n - i) for i in range(n + 1)]
    assert isclose(binomial_at_most(n, k, p), float(sum(terms[: max(0, k + 1)])), rel_tol=1e-9, abs_tol=1e-14)
    assert isclose(binomial_at_least(n, k, p), float(sum(terms[max(0, k) :])), rel_tol=1e-9, abs_tol=1e-14)


@pytest.mark.parametrize(("n", "k", "p", "tail"), [(600, 11, 0.01, 0.0417931583), (100_000, 1_050, 0.01, 0.0586)])
def test_upper_tails_of_many_requests(n: int, k: int, p: float, tail: float) -> None:
    by_logs = sum(_term(n, i, p) for i in range(k, min(n, k + 600) + 1))
    assert isclose(binomial_at_least(n, k, p), by_logs, rel_tol=1e-7)
    assert isclose(by_logs, tail, rel_tol=2e-2)


def _term(n: int, k: int, p: float) -> float:
    return exp(sum(log(n - i) - log(k - i) for i in range(k)) + k * log(p) + (n - k) * log1p(-p))


@pytest.mark.parametrize(("percent", "needs"), [(50, 6), (90, 36), (95, 72), (99, 368)])
def test_intervals_need_what_is_published(percent: int, needs: int) -> None:
    assert interval_needs(percent) == needs
    assert interval_ranks(needs - 1, percent) is None
    assert interval_ranks(needs, percent) is not None


@exact
@given(n=st.integers(6, 3000), percent=st.sampled_from([50, 90, 95, 99]))
def test_intervals_cover_with_the_stated_probability_and_are_not_wider_than_they_must(n: int, percent: int) -> None:
    ranks = interval_ranks(n, percent)
    if ranks is None:
        assert n < interval_needs(percent)
        return
    low, high = ranks
    q = percent / 100
    assert 1 <= low < high <= n
    assert binomial_at_most(n, high - 1, q) - binomial_at_most(n, low - 1, q) >= 0.95
    assert binomial_at_most(n, low, q) > 0.025
    assert binomial_at_least(n, high - 1, q) > 0.025


@exact
@given(values=st.lists(st.floats(0, 100), min_size=1, max_size=300), percent=st.integers(1, 100))
def test_nearest_rank_is_the_smallest_value_that_enough_others_do_not_exceed(values: list[float], percent: int) -> None:
    ordered = sorted(values)
    found = nearest_rank(ordered, percent)
    assert 100 * sum(value <= found for value in ordered) >= percent * len(ordered)
    assert 100 * sum(value < found for value in ordered) < percent * len(ordered)


def test_no_rank_is_off_by_one_through_rounding() -> None:
    assert [nearest_rank(range(1, 101), percent) for percent in range(1, 101)] == list(range(1, 101))


def test_nothing_has_no_percentile() -> None:
    with pytest.raises(ValueError, match="no values"):
        nearest_rank([], 50)


@pytest.mark.parametrize(
    ("t", "degrees", "tail"),
    [(6.3138, 1, 0.05), (1.8331, 9, 0.05), (2.2622, 9, 0.025), (2.8214, 9, 0.01), (1.6449, 100_000, 0.05)],
)
def test_students_tails_are_the_tables(t: float, degrees: int, tail: float) -> None:
    assert isclose(student_at_least(t, degrees), tail, rel_tol=1e-3)
    assert isclose(student_at_least(-t, degrees), 1 - tail, rel_tol=1e-3)


def test_deviation_is_the_samples() -> None:
    dice = random.Random(1)
    assert isclose(deviation([dice.gauss(10, 2) for _ in range(20_000)]), 2, rel_tol=0.02)
    assert deviation([3.0]) == 0.0


@pytest.mark.parametrize(
    ("value", "text"), [(15674.2, "15674"), (0.08533, "0.08533"), (119.0, "119"), (9999.96, "10000"), (inf, "inf")]
)
def test_large_number_is_readable(value: float, text: str) -> None:
    assert readable_number(value) == text

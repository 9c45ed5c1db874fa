"""The binomial rule, Holm's, and the sequential one: their errors, computed exactly and by simulation."""

from __future__ import annotations

import math
import random
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.measurement.statistics import binomial_at_least, binomial_at_most
from pytest_vllm_stage.slo.decision import Outcome, decide, holm, needed, p_values, smallest_pass
from pytest_vllm_stage.slo.sequential import FIRST_LOOK_SHARE, boundaries, spent

ALPHA = 0.05
thorough = settings(derandomize=True, deadline=None, max_examples=100)


@pytest.mark.parametrize(
    ("percent", "without_a_miss", "with_one"), [(50, 5, 8), (90, 29, 46), (95, 59, 93), (99, 299, 473)]
)
def test_smallest_n_that_passes_equals_the_published_one(percent: int, without_a_miss: int, with_one: int) -> None:
    allowed = (100 - percent) / 100
    for misses, n in ((0, without_a_miss), (1, with_one)):
        assert smallest_pass(allowed, misses) == n
        assert decide(n, misses, allowed).outcome is Outcome.PASS
        assert decide(n - 1, misses, allowed).outcome is Outcome.INCONCLUSIVE


@thorough
@given(n=st.integers(1, 500), allowed=st.sampled_from([0.01, 0.05, 0.1, 0.5]))
def test_both_errors_of_the_rule_are_at_most_alpha(n: int, allowed: float) -> None:
    """The exact probability of the wrong answer with the true share just on the objective."""
    passes = [t for t in range(n + 1) if p_values(n, t, allowed)[0] <= ALPHA]
    fails = [t for t in range(n + 1) if p_values(n, t, allowed)[1] <= ALPHA]
    assert passes == list(range(len(passes)))
    assert fails == list(range(n + 1 - len(fails), n + 1))
    assert binomial_at_most(n, len(passes) - 1, allowed) <= ALPHA
    assert binomial_at_least(n, n + 1 - len(fails), allowed) <= ALPHA
    assert not set(passes) & set(fails)


@thorough
@given(n=st.integers(1, 400), data=st.data(), allowed=st.sampled_from([0.01, 0.1]))
def test_more_misses_never_help_and_fractions_are_rounded_against_the_decision(
    n: int, data: st.DataObject, allowed: float
) -> None:
    misses = data.draw(st.integers(0, 4 * n)) / 4
    kept, broken = p_values(n, misses, allowed)
    assert p_values(n, math.ceil(misses), allowed)[0] == kept
    assert p_values(n, math.floor(misses), allowed)[1] == broken
    more = data.draw(st.integers(int(4 * misses), 4 * n)) / 4
    assert p_values(n, more, allowed)[0] >= kept
    assert p_values(n, more, allowed)[1] <= broken


@pytest.mark.parametrize(("misses", "n", "outcome"), [(0, 1, "pass"), (1, 100_000, "fail"), (0, 0, "inconclusive")])
def test_allowed_share_of_zero_is_decided_by_one_miss(misses: int, n: int, outcome: str) -> None:
    assert decide(n, misses, 0.0).outcome == outcome


@thorough
@given(n=st.integers(1, 500), data=st.data(), allowed=st.sampled_from([0.01, 0.05, 0.1]))
def test_needed_is_the_number_that_decides(n: int, data: st.DataObject, allowed: float) -> None:
    misses = data.draw(st.integers(0, n))
    decision = decide(n, misses, allowed)
    if decision.outcome is not Outcome.INCONCLUSIVE:
        assert decision.needs is None
        return
    if decision.needs is None:
        assert misses / n == pytest.approx(allowed, rel=0.05)
        return
    assert decision.needs > n
    assert decide(decision.needs, decision.needs * misses / n, allowed).outcome is not Outcome.INCONCLUSIVE


def test_needed_without_misses_is_the_smallest_pass() -> None:
    assert needed(60, 0, 0.01) == 299
    assert needed(100, 1, 0.01) is None


def test_holm_steps_down() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == [True, False, False, True]
    assert holm([]) == []
    assert holm([0.02] * 3) == [False] * 3


def test_holm_keeps_the_risk_of_a_healthy_build_at_alpha() -> None:
    dice = random.Random(7)
    false_alarms = sum(any(holm([dice.random() for _ in range(21)])) for _ in range(4000))
    assert false_alarms / 4000 < 0.06


def crossing_probability(bounds: tuple[int, ...], share: Fraction, kept: bool) -> Fraction:
    """By walking every path: an independent count of what the boundaries promise."""
    total = Fraction(0)
    for path in product((0, 1), repeat=len(bounds) - 1):
        misses = 0
        for n, miss in enumerate(path, start=1):
            misses += miss
            if (misses <= bounds[n]) if kept else (misses >= bounds[n]):
                total += share ** sum(path) * (1 - share) ** (len(path) - sum(path))
                break
    return total


@pytest.mark.parametrize("allowed", [Fraction(1, 2), Fraction(1, 4)])
@pytest.mark.parametrize("planned", [6, 11])
def test_boundaries_spend_at_most_alpha_over_all_paths(planned: int, allowed: Fraction) -> None:
    plan = boundaries(planned, float(allowed))
    kept = crossing_probability(plan.kept, allowed, True)
    broken = crossing_probability(plan.broken, allowed, False)
    assert 0 <= kept <= Fraction(5, 100)
    assert (kept > 0) == (planned == 11 or allowed == Fraction(1, 2)), "six requests cannot show a share of a quarter"
    assert 0 < broken <= Fraction(5, 100)
    for nudge in (Fraction(1, 20), Fraction(1, 5)):
        assert crossing_probability(plan.kept, allowed + nudge, True) <= kept
        assert crossing_probability(plan.broken, allowed - nudge, False) <= broken


@thorough
@given(planned=st.integers(1, 1500), allowed=st.sampled_from([0.01, 0.05, 0.1, 0.5]))
def test_boundaries_are_ordered_and_as_strict_as_the_fixed_rule(planned: int, allowed: float) -> None:
    plan = boundaries(planned, allowed)
    assert list(plan.kept) == sorted(plan.kept)
    assert all(a < b for a, b in zip(plan.kept, plan.broken, strict=True))
    for n in {1, planned // 2, planned}:
        if plan.kept[n] >= 0:
            assert binomial_at_most(n, plan.kept[n], allowed) <= ALPHA
        if plan.broken[n] <= n:
            assert binomial_at_least(n, plan.broken[n], allowed) <= ALPHA
    too_early = math.ceil(FIRST_LOOK_SHARE * planned) - 1
    assert max(plan.kept[: too_early + 1]) == -1
    assert all(plan.broken[n] > n for n in range(too_early + 1))


def test_alpha_is_spent_once() -> None:
    assert spent(1.0, ALPHA) == pytest.approx(ALPHA)
    assert spent(0.09, ALPHA) == 0.0
    shares = [i / 100 for i in range(101)]
    assert [spent(share, ALPHA) for share in shares] == sorted(spent(share, ALPHA) for share in shares)


def walk(plan_n: int, allowed: float, share: float, runs: int, seed: int) -> tuple[dict[Outcome, int], float]:
    dice = random.Random(seed)
    plan = boundaries(plan_n, allowed)
    counts = dict.fromkeys(Outcome, 0)
    looked = 0
    for _ in range(runs):
        outcome, n = plan.first_crossing(float(dice.random() < share) for _ in range(plan_n))
        counts[outcome] += 1
        looked += n
    return counts, looked / runs / plan_n


@pytest.mark.parametrize(("allowed", "planned"), [(0.01, 600), (0.1, 300)])
def test_repeated_looks_keep_the_error_and_save_time_on_clear_cases(allowed: float, planned: int) -> None:
    """1500 seeded steps each; the tolerance is three standard errors above 5 %."""
    runs = 1500
    on_the_line, _ = walk(planned, allowed, allowed, runs, seed=1)
    assert on_the_line[Outcome.PASS] / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert on_the_line[Outcome.FAIL] / runs < 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    clearly_broken, used = walk(planned, allowed, 5 * allowed, runs, seed=2)
    assert clearly_broken[Outcome.FAIL] / runs > 0.98
    assert used < 0.5
    clearly_kept, used = walk(planned, allowed, allowed / 50, runs, seed=3)
    assert clearly_kept[Outcome.PASS] / runs > 0.9
    assert used < 0.65


def test_testing_every_request_at_full_alpha_would_often_be_wrong() -> None:
    """Why there are boundaries at all: the fixed rule, looked at after every request."""
    dice = random.Random(1)
    wrong = 0
    for _ in range(300):
        misses = 0
        for n in range(1, 601):
            misses += dice.random() < 0.1
            if binomial_at_least(n, misses, 0.1) <= ALPHA:
                wrong += 1
                break
    assert wrong / 300 > 0.15

"""The binomial rule: whether the objective "a share p of the requests stays within the limit" is kept or broken.

With t misses among n requests and an allowed share of misses q: kept if P(Bin(n, q) <= t) <= alpha, broken if
P(Bin(n, q) >= t) <= alpha, else undecided. Both errors are at most alpha for independent requests.

Misses may be fractions (the share of one answer's token gaps over the limit). The sum of such fractions has a smaller
variance than a binomial count of the same mean (Hoeffding 1963, theorem 3), and is rounded against the decision.

Correlated requests carry less information: with a design effect D, n requests with t misses are judged as n / D
with t / D (Korn & Graubard 1998; see `dependence`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache

from pytest_vllm_stage.measurement.statistics import binomial_at_least, binomial_at_most, binomial_at_most_effective

ALPHA = 0.05
#: What a second measurement of an undecided step may spend of it, on top; see `again`.
SECOND_SHARE_OF_ALPHA = 0.2
#: No plan has more requests than this; beyond it an undecided objective is as good as met exactly.
MOST_REQUESTS = 1_000_000


class Outcome(StrEnum):
    """The outcome of an objective or a step."""

    PASS = "pass"  # noqa: S105
    FAIL = "fail"
    INCONCLUSIVE = "inconclusive"
    INVALID = "invalid"


@dataclass(frozen=True)
class Decision:
    """The binomial rule applied to the misses of a step for one objective.

    Attributes:
        outcome: Pass, fail or inconclusive.
        n: Requests.
        misses: Requests over the limit; a fraction where each request has several values.
        p_kept: Probability of at most so many misses if the objective were just broken.
        p_broken: Probability of at least so many misses if the objective were just kept.
        design_effect: How many correlated requests carry the information of one independent request.
        needs: Requests that would decide if the share of misses stayed the same; None where the outcome is decided, or
            where no number would be enough.
    """

    outcome: Outcome
    n: int
    misses: float
    p_kept: float
    p_broken: float
    design_effect: float
    needs: int | None

    @property
    def effective_n(self) -> int:
        """``n`` divided by the design effect, rounded down."""
        return max(min(self.n, 1), int(self.n / self.design_effect + 1e-9))


def decide(
    n: int,
    misses: float,
    allowed: float,
    *,
    alpha_pass: float = ALPHA,
    alpha_fail: float = ALPHA,
    design_effects: tuple[float, float] = (1.0, 1.0),
    least_n: int = 1,
    least_n_broken: int = 1,
) -> Decision:
    """Apply the rule.

    Args:
        n: Requests.
        misses: Requests over the limit.
        allowed: Share of misses that the objective allows; 0 means that one miss fails and no misses pass.
        alpha_pass: Highest probability of calling a broken objective kept.
        alpha_fail: Highest probability of calling a kept objective broken.
        design_effects: The design effect for calling the objective kept, and for calling it broken.
        least_n: With fewer requests no objective passes.
        least_n_broken: With fewer requests no objective fails.
    """
    if allowed <= 0:
        outcome = Outcome.FAIL if misses > 0 else (Outcome.PASS if n else Outcome.INCONCLUSIVE)
        return Decision(outcome, n, misses, float(misses > 0), float(misses == 0), 1.0, None if n else 1)
    effect, effect_broken = design_effects
    p_kept, p_broken = p_values(n, misses, allowed, design_effects)
    if p_kept <= alpha_pass and n >= least_n:
        return Decision(Outcome.PASS, n, misses, p_kept, p_broken, effect, None)
    if p_broken <= alpha_fail:
        outcome, needs = (Outcome.FAIL, None) if n >= least_n_broken else (Outcome.INCONCLUSIVE, least_n_broken)
        return Decision(outcome, n, misses, p_kept, p_broken, effect_broken, needs)
    if p_kept <= alpha_pass:
        return Decision(Outcome.INCONCLUSIVE, n, misses, p_kept, p_broken, effect, least_n)
    needs = needed(n, misses, allowed, alpha_pass, alpha_fail, design_effects)
    return Decision(Outcome.INCONCLUSIVE, n, misses, p_kept, p_broken, effect, needs and max(needs, least_n))


def p_values(
    n: int, misses: float, allowed: float, design_effects: tuple[float, float] = (1.0, 1.0)
) -> tuple[float, float]:
    """The probabilities of at most and of at least so many misses with the allowed share as the true one."""
    at_most = _at_most(n, min(n, _up(misses)), allowed, design_effects[0])
    effect = design_effects[1]
    least = _down(misses)
    if effect <= 1:
        return at_most, binomial_at_least(n, least, allowed)
    few = binomial_at_most_effective(n / effect, least / effect - 1, allowed) if least >= effect else 0.0
    return at_most, 1.0 - few


def _at_most(n: int, misses: int, allowed: float, effect: float) -> float:
    if effect <= 1:
        return binomial_at_most(n, misses, allowed)
    return binomial_at_most_effective(n / effect, misses / effect, allowed)


def _up(misses: float) -> int:
    return math.ceil(misses - 1e-9)


def _down(misses: float) -> int:
    return math.floor(misses + 1e-9)


def needed(
    n: int,
    misses: float,
    allowed: float,
    alpha_pass: float = ALPHA,
    alpha_fail: float = ALPHA,
    design_effects: tuple[float, float] = (1.0, 1.0),
) -> int | None:
    """The smallest number of requests that would decide at the same share of misses; None where no number would."""
    share = misses / n if n else 0.0

    def decided(m: int) -> bool:
        p_kept, p_broken = p_values(m, m * share, allowed, design_effects)
        return p_kept <= alpha_pass if share < allowed else p_broken <= alpha_fail

    if share == allowed:
        return None
    high = max(2 * n, 16)
    while not decided(high):
        high *= 2
        if high > MOST_REQUESTS:
            return None
    low = n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if decided(middle) else (middle, high)
    return high


@lru_cache(maxsize=256)
def smallest_pass(allowed: float, misses: int = 0, alpha: float = ALPHA) -> int:
    """The smallest n that can pass with so many misses: 299 for a P99 without any, 473 with one."""
    high = max(16, misses + 1)
    while binomial_at_most(high, misses, allowed) > alpha:
        high *= 2
    low = 0
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if binomial_at_most(middle, misses, allowed) <= alpha else (middle, high)
    return high


def holm(p_values: list[float], alpha: float = ALPHA) -> list[bool]:
    """Holm's step-down rule: which hypotheses are rejected, with a family-wise error rate of at most alpha."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for place, i in enumerate(order):
        if p_values[i] > alpha / (len(p_values) - place):
            break
        rejected[i] = True
    return rejected

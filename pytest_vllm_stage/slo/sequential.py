"""Early decisions at the same risk: exact group-sequential boundaries for a share of misses.

Testing after every request and stopping at the first p-value under alpha would be wrong far more often than alpha. Here
alpha is spent over the looks instead (Lan & DeMets, "Discrete sequential boundaries for clinical trials", Biometrika
70(3), 1983) by their Pocock-like function alpha * ln(1 + (e - 1) t), where t is the share of the planned requests seen.
Misses are counts, so the boundary needs no approximation: the distribution of the misses among paths that have not
stopped yet is carried from request to request, and a boundary includes the next value only while the probability of
ever having crossed, at exactly the allowed share, stays within what may be spent. The probability is monotone in the
true share, so the error is at most alpha for every share on the wrong side, whatever the stopping. Each side has its
own alpha.

Requests are processed in the order of the schedule, never in the order of their ends: fast answers end first.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

from pytest_vllm_stage.slo.decision import ALPHA, Outcome

#: No look before this share of the plan: the first seconds of a step are not the step.
FIRST_LOOK_SHARE = 0.1
#: Branches that are less likely than this are counted as crossed instead of being followed.
_TRIVIAL = 1e-15


@dataclass(frozen=True)
class Boundaries:
    """The numbers of misses at which a planned step may stop.

    Attributes:
        planned: Requests of the plan; the last look.
        kept: For each number of requests seen, the most misses that still pass; -1 where none does.
        broken: For each number of requests seen, the fewest misses that fail; above that number where none does.
    """

    planned: int
    kept: tuple[int, ...]
    broken: tuple[int, ...]

    def look(self, n: int, misses: float) -> Outcome:
        """The decision after ``n`` requests; fractions of misses are rounded against it."""
        if math.ceil(misses - 1e-9) <= self.kept[n]:
            return Outcome.PASS
        if math.floor(misses + 1e-9) >= self.broken[n]:
            return Outcome.FAIL
        return Outcome.INCONCLUSIVE

    def first_crossing(self, misses: Iterable[float]) -> tuple[Outcome, int]:
        """The decision over the requests in the schedule's order, and the number of requests that it needed."""
        total, n = 0.0, 0
        for n, miss in enumerate(misses, start=1):
            total += miss
            if n > self.planned:
                break
            outcome = self.look(n, total)
            if outcome is not Outcome.INCONCLUSIVE:
                return outcome, n
        return Outcome.INCONCLUSIVE, n


def spent(share: float, alpha: float) -> float:
    """The part of alpha that may be spent after this share of the plan."""
    if share < FIRST_LOOK_SHARE:
        return 0.0
    return alpha * math.log(1 + (math.e - 1) * min(share, 1.0))


@lru_cache(maxsize=64)
def boundaries(planned: int, allowed: float, *, alpha_pass: float = ALPHA, alpha_fail: float = ALPHA) -> Boundaries:
    """The boundaries of a plan, exact for independent requests.

    Args:
        planned: Requests of the plan.
        allowed: Share of misses that the objective allows; above 0.
        alpha_pass: Highest probability of ever calling a broken objective kept.
        alpha_fail: Highest probability of ever calling a kept objective broken.
    """
    return Boundaries(planned, _kept(planned, allowed, alpha_pass), _broken(planned, allowed, alpha_fail))


def _kept(planned: int, allowed: float, alpha: float) -> tuple[int, ...]:
    paths = _Paths(allowed)
    bounds = [-1]
    for n in range(1, planned + 1):
        paths.step()
        bounds.append(paths.take_lowest(spent(n / planned, alpha)))
    return tuple(bounds)


def _broken(planned: int, allowed: float, alpha: float) -> tuple[int, ...]:
    paths = _Paths(allowed)
    bounds = [1]
    for n in range(1, planned + 1):
        paths.step()
        bounds.append(paths.take_highest(spent(n / planned, alpha)))
    return tuple(bounds)


class _Paths:
    """The probability of each number of misses among the paths that have not stopped."""

    def __init__(self, allowed: float) -> None:
        self.p = allowed
        self.low = 0
        self.mass = [1.0]
        self.crossed = 0.0

    def step(self) -> None:
        """Add one request."""
        p, keep = self.p, 1 - self.p
        before = self.mass
        after = [mass * keep for mass in before]
        after.append(0.0)
        for k, mass in enumerate(before):
            after[k + 1] += mass * p
        self.mass = after

    def take_lowest(self, budget: float) -> int:
        """Let paths with the fewest misses stop while the budget allows it; return the most misses that stop."""
        while len(self.mass) > 2 and self.mass[-1] < _TRIVIAL:
            self.crossed += self.mass.pop()
        while self.mass and self.crossed + self.mass[0] <= budget:
            self.crossed += self.mass.pop(0)
            self.low += 1
        return self.low - 1

    def take_highest(self, budget: float) -> int:
        """Let paths with the most misses stop while the budget allows it; return the fewest misses that stop."""
        while self.mass and self.crossed + self.mass[-1] <= budget:
            self.crossed += self.mass.pop()
        while len(self.mass) > 2 and self.mass[0] < _TRIVIAL:
            self.crossed += self.mass.pop(0)
            self.low += 1
        return self.low + len(self.mass)

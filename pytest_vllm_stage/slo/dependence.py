"""How many independent requests a step is worth: in a queue a slow request has slow neighbours.

The binomial rule takes requests for independent. Where they are not, slow ones come in bursts; a step that meets no
burst looks better than the server is, one that meets a burst looks worse. What bursts do to a share is its design
effect: the variance of the share between blocks of time over the variance that independent requests would give it. A
step with design effect D is worth n / D independent requests.

It is 1 unless the blocks contradict independence (chi-squared, p < 0.001). Where they do, a verdict says so, and a step
does not end early by a decision that the fewer requests would not carry too.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_vllm_stage.measurement.statistics import nearest_rank
from pytest_vllm_stage.slo.decision import Outcome, decide

#: The step is cut into so many blocks; the second number sees longer bursts.
BLOCKS = (20, 10)
#: With fewer requests in a block, or fewer slow ones in the step, nothing can be seen.
LEAST_IN_BLOCK = 10
LEAST_SLOW = 10
#: Misses are too rare to show bursts; the slowest tenth of the requests shows them.
SLOW_PERCENT = 90
#: Of the standard normal distribution: exceeded once in a thousand.
_Z = 3.0902


def design_effect(slow: Sequence[bool]) -> float:
    """The design effect of a share, from its flags in the schedule's order; 1 where they may be independent."""
    n, count = len(slow), sum(slow)
    if not LEAST_SLOW <= count < n:
        return 1.0
    share = count / n
    return max([1.0, *(_dispersion(slow, share, blocks) for blocks in BLOCKS if n >= blocks * LEAST_IN_BLOCK)])


def _dispersion(slow: Sequence[bool], share: float, blocks: int) -> float:
    """Variance between blocks over what independence gives; 1 where chance explains it."""
    n = len(slow)
    chi_squared = 0.0
    for block in range(blocks):
        part = slow[block * n // blocks : (block + 1) * n // blocks]
        chi_squared += (sum(part) - len(part) * share) ** 2 / (len(part) * share * (1 - share))
    degrees = blocks - 1
    return chi_squared / degrees if chi_squared > _chi_squared_limit(degrees) else 1.0


def _chi_squared_limit(degrees: int) -> float:
    """What chi-squared exceeds once in a thousand (Wilson and Hilferty's approximation)."""
    spread = 2 / (9 * degrees)
    return float(degrees * (1 - spread + _Z * math.sqrt(spread)) ** 3)


def effects(values: Sequence[float], misses: Sequence[float]) -> tuple[float, float]:
    """The design effects for calling an objective kept, and for calling it broken.

    Args:
        values: What is slow when it is large, a number a request in the schedule's order.
        misses: How much of each missed.
    """
    if not values:
        return 1.0, 1.0
    threshold = nearest_rank(sorted(values), SLOW_PERCENT)
    kept = design_effect([value > threshold for value in values])
    missed = [miss > 0 for miss in misses]
    return kept, design_effect(missed) if sum(missed) >= LEAST_SLOW else kept


def confirmed(
    outcome: Outcome, values: Sequence[float], misses: Sequence[float], allowed: float, *, alpha: float
) -> bool:
    """Whether the requests that these are worth carry the same outcome."""
    kept, broken = effects(values, misses)
    effect = broken if outcome is Outcome.FAIL else kept
    if effect <= 1:
        return True
    worth = max(1, int(len(misses) / effect))
    decision = decide(worth, math.fsum(misses) / effect, allowed, alpha_pass=alpha, alpha_fail=alpha)
    return decision.outcome is outcome

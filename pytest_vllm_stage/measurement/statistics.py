"""The statistics that metrics and verdicts need, exact and without a numerical library.

Percentiles are whole per cents (99, not 0.99), so that ranks are computed in integers and no rank is off by one through
rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

#: Terms of a tail that change nothing any more end its sum.
_NEGLIGIBLE = 1e-18
#: A continued fraction has converged when two more terms change less than this share of it.
_NEGLIGIBLE_CHANGE = 1e-15
_MOST_TERMS = 2000


def _log_pmf(n: int, k: int, p: float) -> float:
    choose = math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
    return choose + k * math.log(p) + (n - k) * math.log1p(-p)


def _lower_sum(n: int, k: int, p: float) -> float:
    """P(Bin(n, p) <= k), summed from k downwards, where the terms fall."""
    term = total = math.exp(_log_pmf(n, k, p))
    odds = (1 - p) / p
    for i in range(k, 0, -1):
        term *= i / (n - i + 1) * odds
        total += term
        if term < total * _NEGLIGIBLE:
            break
    return min(total, 1.0)


@lru_cache(maxsize=65536)
def binomial_at_most(n: int, k: int, p: float) -> float:
    """P(Bin(n, p) <= k)."""
    if k < 0:
        return 0.0
    if k >= n or p <= 0:
        return 1.0
    if p >= 1:
        return 0.0
    if k <= n * p:
        return _lower_sum(n, k, p)
    return 1.0 - _lower_sum(n, n - k - 1, 1 - p)


def binomial_at_least(n: int, k: int, p: float) -> float:
    """P(Bin(n, p) >= k)."""
    return binomial_at_most(n, n - k, 1 - p)


def binomial_at_most_effective(n: float, k: float, p: float) -> float:
    """P(Bin(n, p) <= k) for an effective sample size and its misses, which need not be whole numbers.

    The incomplete beta function continues the binomial distribution between the whole numbers (Korn & Graubard 1998,
    "Confidence intervals for proportions with small expected number of positive counts estimated from survey data",
    Survey Methodology 24).
    """
    if k < 0:
        return 0.0
    return 1.0 if k >= n else _incomplete_beta(n - k, k + 1, 1 - p)


def nearest_rank(ordered: Sequence[float], percent: int) -> float:
    """The percentile by nearest rank: the smallest value that at least ``percent`` per cent of all do not exceed.

    Args:
        ordered: The values, ascending; +inf stands for a request that failed.
        percent: 1 to 100.

    Raises:
        ValueError: there are no values.
    """
    if not ordered:
        raise ValueError("no values, no percentile")
    return ordered[rank_of(percent, len(ordered)) - 1]


def rank_of(percent: int, n: int) -> int:
    """The 1-based rank of a percentile among ``n``."""
    return max(1, -(-percent * n // 100))


def interval_ranks(n: int, percent: int, confidence: float = 0.95) -> tuple[int, int] | None:
    """Ranks of the two order statistics that enclose the true percentile with at least this confidence (equal tails).

    Returns:
        1-based ranks, or None where ``n`` is too small; see `interval_needs`.
    """
    tail, q = (1 - confidence) / 2, percent / 100
    if n < interval_needs(percent, confidence):
        return None
    low = _search(0, n, lambda rank: binomial_at_most(n, rank - 1, q) > tail) - 1
    high = _search(1, n, lambda rank: binomial_at_least(n, rank, q) <= tail)
    return low, high


def _search(start: int, stop: int, reached: Callable[[int], bool]) -> int:
    """The smallest number in [start, stop] for which a monotone condition holds; ``stop`` if it never does."""
    while start < stop:
        middle = (start + stop) // 2
        start, stop = (start, middle) if reached(middle) else (middle + 1, stop)
    return start


def interval_needs(percent: int, confidence: float = 0.95) -> int:
    """The smallest n that has a two-sided interval for the percentile: 368 for P99 at 95 %."""
    tail, q = (1 - confidence) / 2, percent / 100
    return max(_power_below(q, tail), _power_below(1 - q, tail))


def _power_below(base: float, limit: float) -> int:
    """The smallest n with ``base ** n <= limit``."""
    n = max(1, math.ceil(math.log(limit) / math.log(base)))
    return n if base**n <= limit else n + 1


def student_at_least(t: float, degrees: int) -> float:
    """P(T >= t) for Student's t."""
    half = 0.5 * _incomplete_beta(degrees / 2, 0.5, degrees / (degrees + t * t))
    return half if t >= 0 else 1 - half


def _incomplete_beta(a: float, b: float, x: float) -> float:
    """The regularised incomplete beta function, by its continued fraction."""
    if x <= 0 or x >= 1:
        return float(x >= 1)
    if x > (a + 1) / (a + b + 2):
        return 1 - _incomplete_beta(b, a, 1 - x)
    log_front = math.lgamma(a + b) - math.lgamma(a) - math.lgamma(b) + a * math.log(x) + b * math.log1p(-x)
    return math.exp(log_front) / a / _beta_fraction(a, b, x)


def _beta_fraction(a: float, b: float, x: float) -> float:
    """The denominator 1 + d1/(1 + d2/(1 + ...)), by Lentz's algorithm (1976, Applied Optics 15), until it converges."""
    upper, lower, value = 1.0, 0.0, 1.0
    for m in range(_MOST_TERMS):
        even = m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)) if m else 1.0
        odd = -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))
        before = value
        for term in (even, odd) if m else (odd,):
            lower = 1 / _not_zero(1 + term * lower)
            upper = _not_zero(1 + term / upper)
            value *= upper * lower
        if abs(value - before) <= _NEGLIGIBLE_CHANGE * abs(value):
            break
    return value


def _not_zero(value: float) -> float:
    return value if abs(value) > 1e-300 else 1e-300


def mean(values: Sequence[float]) -> float:
    """The arithmetic mean; `ValueError` for nothing."""
    if not values:
        raise ValueError("no values, no mean")
    return math.fsum(values) / len(values)


def deviation(values: Sequence[float]) -> float:
    """The sample standard deviation; 0 for fewer than two values."""
    if len(values) < 2:
        return 0.0
    centre = mean(values)
    return math.sqrt(math.fsum((value - centre) ** 2 for value in values) / (len(values) - 1))


def readable_number(value: float) -> str:
    """The value with four significant digits; a large one whole, not in scientific notation."""
    return f"{value:.0f}" if 9999.5 <= abs(value) < 1e15 else f"{value:.4g}"

"""The effective sample size of a step: in a queue a slow request has slow neighbours.

The binomial rule assumes independent requests. The requests of a step are correlated by the engine's load: those that
share a batch or a queue are slow together. So the correlation is measured on the number of requests in the engine at
each send, which also varies in a quiet step whose latencies do not vary yet:

    design effect  D = max(correlation time of the misses, 1 + k (correlation time of the number in the engine - 1))
    effective sample size = n / D                                            (Kish 1965, Survey Sampling, 8.2)

The correlation time is 1 + 2 (r1 + r2 + ...), summed by Geyer's initial monotone positive sequence (Geyer 1992,
"Practical Markov chain Monte Carlo", Statistical Science 7). A miss remembers less than the number that causes it: k is
`REMEMBERED_SHARE`.

One step of 30 correlation times knows its correlation time only within a factor of about two. Taken as it is, quiet
steps count too much and busy ones too little, although both are from the same queue. A pass therefore uses the estimate
pooled with what is known beforehand, by their precision (see `pool`). The known value is the mean number in the engine:
the correlation time of equal answers with random arrivals that never wait (M/D/infinity), and the least of any queue.

A step that is short compared with its correlation time underestimates it (Sokal 1997, "Monte Carlo methods in
statistical mechanics: foundations and new algorithms"), so no objective passes before the step has `LEAST_TIMES`
correlation times, and far more where requests wait much of the time.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from operator import mul

from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.statistics import interval_needs, nearest_rank

#: How much of the number's correlation time is left in "this request missed". For a Gaussian number and a threshold at
#: its median it is ln 2 = 0.69 (the integral of the arcsine law of indicators). A queue above its batch limit shrinks
#: more slowly than it forgets below: for "this request waited" the simulated engine at a load of 0.7 has 0.83 to 0.87.
REMEMBERED_SHARE = 0.85
#: The relative variance of a correlation time t over n values is this times t / n: 2 (2 M + 1) / n by Madras & Sokal
#: (1988, Journal of Statistical Physics 50), with a window M of six integrated times, which are t / 2 each.
_RELATIVE_VARIANCE = 12.0
#: By how much (as a logarithm) a queue's correlation time is usually above the mean number in the engine: by a factor
#: of 1.1 at a load of 0.5, 1.5 at 0.7, 2 at 0.8.
_KNOWN_WITHIN = 0.5
#: A step has to last this many correlation times before a pass can rest on them.
LEAST_TIMES = 18.0
#: The same where requests wait more than `BUSY_SHARE` of the time: near capacity the time grows without bound.
LEAST_TIMES_BUSY = 100.0
BUSY_SHARE = 0.25
#: A fail that a busy period of the queue can explain needs a step of so many correlation times.
LEAST_TIMES_BROKEN = 10.0
#: With fewer values no correlation is estimated.
_LEAST_VALUES = 20
#: A correlation time below this is taken as 1: one slow request in 500 must not reduce the sample size.
_NOTICEABLE = 1.05
#: Times are saved in microseconds.
_ROUNDING = 5e-7
#: Longer series are first averaged in so many blocks: early decisions are made while tokens are being timed.
_MOST_VALUES = 400


def correlation_time(values: Sequence[float]) -> float:
    """How many neighbouring values count as one; 1 for independent, constant or alternating ones."""
    width = -(-len(values) // _MOST_VALUES)
    if len(values) < _LEAST_VALUES:
        return 1.0
    if width == 1:
        return _initial_sequence(values)
    blocks = [math.fsum(values[i : i + width]) / width for i in range(0, len(values) - width + 1, width)]
    whole = _variance(values)
    return max(1.0, width * _variance(blocks) / whole * _initial_sequence(blocks)) if whole > 0 else 1.0


def _variance(values: Sequence[float]) -> float:
    centre = math.fsum(values) / len(values)
    return math.fsum((value - centre) ** 2 for value in values) / len(values)


def _initial_sequence(values: Sequence[float]) -> float:
    n = len(values)
    centre = math.fsum(values) / n
    rest = [value - centre for value in values]
    variance = math.fsum(value * value for value in rest)
    if variance <= 1e-12 * max(1.0, centre * centre) * n:
        return 1.0

    def correlation(lag: int) -> float:
        return math.fsum(map(mul, rest, islice(rest, lag, None))) / variance

    total, last = -1.0, math.inf
    for lag in range(0, n // 2, 2):
        pair = correlation(lag) + correlation(lag + 1)
        if pair <= 0:
            break
        last = min(last, pair)
        total += 2 * last
    return max(1.0, total)


def pool(estimate: float, known: float, n: int) -> float:
    """The mean of an estimated and a known correlation time by their precision, on the logarithmic scale.

    The longer the series is compared with the correlation time, the more the estimate counts (empirical Bayes; Efron &
    Morris 1973, JASA 68).
    """
    variance = _RELATIVE_VARIANCE * estimate / max(1, n)
    weight = variance / (variance + _KNOWN_WITHIN**2)
    return math.exp(weight * math.log(known) + (1 - weight) * math.log(estimate))


def requests_in_engine(samples: Sequence[Sample]) -> list[int]:
    """For each request: how many sent before it had not ended when it was sent."""
    ends = sorted(sample.end_s for sample in samples)
    return [max(0, i - bisect_right(ends, sample.scheduled_s)) for i, sample in enumerate(samples)]


@dataclass(frozen=True)
class Dependence:
    """What ties the requests of a step together.

    Attributes:
        n: Requests.
        in_engine_time: Correlation time of the number of requests in the engine, in requests; cautious.
        pooled_time: The same, pooled with what is known beforehand; None where nothing is.
        idle_share: Share of the requests that found the engine empty, and so depend on none before them.
        waiting_share: Share of the step in which requests waited; 0 where that is not known.
        fixed_load: A closed loop: the number of requests in the engine is the plan's, not the queue's.
    """

    n: int
    in_engine_time: float = 1.0
    pooled_time: float | None = None
    idle_share: float = 0.0
    waiting_share: float = 0.0
    fixed_load: bool = False

    @property
    def least_n(self) -> int:
        """Requests that a step needs before a pass can rest on its correlation time."""
        if self.fixed_load or self.in_engine_time <= 1:
            return 1
        times = LEAST_TIMES_BUSY if self.waiting_share > BUSY_SHARE else LEAST_TIMES
        return math.ceil(times * self.in_engine_time)

    @property
    def busy(self) -> bool:
        """Requests wait much of the time, in a queue that can grow."""
        return not self.fixed_load and self.in_engine_time > 1 and self.waiting_share > BUSY_SHARE

    @property
    def least_n_broken(self) -> int:
        """Requests that a step needs before a fail can rest on how long its requests waited."""
        return math.ceil(LEAST_TIMES_BROKEN * self.in_engine_time)

    @property
    def _least_effective(self) -> float:
        """Requests that found the engine empty start afresh; (1 - load)^2 is the share of clusters in an M/M/1 queue.

        Rootzen 1988, "Maxima and exceedances of stationary Markov chains", Advances in Applied Probability 20.
        """
        return self.n * self.idle_share**2

    def design_effects(
        self, values: Sequence[float], misses: Sequence[float], allowed: float, *, busy_period: bool = False
    ) -> tuple[float, float]:
        """The design effects for calling an objective kept, and for calling it broken.

        Bursts in the step's own values count for both. The number in the engine counts only for a pass: it indicates
        bursts that a longer step would show, and an objective is kept only once these are ruled out; and for a fail
        that one busy period of the queue may explain. In a closed loop the plan fixes that number, no queue can grow,
        and only the misses themselves count.

        Args:
            values: One number per request in the schedule's order; the larger, the worse.
            misses: The share of each request that missed, 0 to 1.
            allowed: The share of misses that the objective allows.
            busy_period: One busy period may explain the misses; see `waiting`.
        """
        n = len(values)
        if not n or not 0 < allowed < 1:
            return 1.0, 1.0
        shown = correlation_time(misses)
        if self.fixed_load:
            return shown, cautious_effect(shown, n)
        slow = correlation_time(_beyond(values, max(1, math.floor(100 * (1 - allowed)))))
        broken = cautious_effect(max(shown, slow), n)
        if busy_period:
            broken = max(broken, min(n, self._most_effect(n), _remembered(self.in_engine_time)))
        return self._kept_effect(shown, slow, n), broken

    def _most_effect(self, n: int) -> float:
        return n / max(1.0, self._least_effective)

    def _kept_effect(self, shown: float, slow: float, n: int) -> float:
        """The design effect for a pass: the misses' own bursts, those of slow requests, and those of the load."""
        most = self._most_effect(n)
        hidden = min(most, _remembered(self.pooled_time or self.in_engine_time))
        burst = pool(slow, hidden, n) if slow > hidden > 1 else slow
        return min(max(shown, burst, hidden), most)

    def effective_size(self, values: Sequence[float], percent: int) -> int:
        """The effective sample size of a percentile; all values where they are too few for an interval anyway."""
        n = len(values)
        if n < interval_needs(percent):
            return n
        slow = correlation_time(_beyond(values, percent))
        return int(n / (slow if self.fixed_load else self._kept_effect(1.0, slow, n)) + 1e-9)


def _beyond(values: Sequence[float], percent: int) -> list[float]:
    """Which values lie above their own percentile."""
    bound = nearest_rank(sorted(values), percent) + _ROUNDING
    return [float(value > bound) for value in values]


def _remembered(time: float) -> float:
    return 1 + REMEMBERED_SHARE * (time - 1)


def cautious_effect(effect: float, n: int) -> float:
    """The effect plus about half its standard error; 1 stays 1."""
    return min(float(n), effect * (1 + math.sqrt(effect / n))) if effect > 1 else 1.0


def find_dependence(
    samples: Sequence[Sample], *, open_loop: bool, random_arrivals: bool = False, waiting_share: float = 0.0
) -> Dependence:
    """Measure how strongly the requests of a step are correlated.

    Args:
        samples: In the schedule's order.
        open_loop: In a closed loop the number of requests in the engine is fixed.
        random_arrivals: Requests arrive by a Poisson process.
        waiting_share: Share of the engine's readings in which requests waited.
    """
    if not open_loop or not samples:
        return Dependence(len(samples), fixed_load=not open_loop)
    count = requests_in_engine(samples)
    idle = sum(number == 0 for number in count) / len(count)
    seen = max(waiting_share, _waited_share(samples))
    time, pooled = _in_engine_times(samples, count, random_arrivals=random_arrivals)
    return Dependence(len(count), time, pooled, idle, seen)


def _in_engine_times(
    samples: Sequence[Sample], count: Sequence[int], *, random_arrivals: bool
) -> tuple[float, float | None]:
    """The correlation time of the number in the engine, once the first answers have ended, and the pooled one.

    It is at least the mean number itself, as for equal answers that never wait (M/D/infinity): a short step shows less.
    A number that varies less than with random arrivals (where the variance equals the mean) correlates the requests
    proportionally less: under a constant rate of equal answers it stays the same.
    """
    start = next((i for i, one in enumerate(samples) if one.scheduled_s >= samples[0].end_s), 0)
    after = [float(number) for number in count[start:]]
    centre = math.fsum(after) / len(after)
    if centre <= 0:
        return 1.0, None
    dispersion = 1.0 if random_arrivals else min(1.0, _variance(after) / centre)
    known = max(1.0, centre)
    estimate = max(known, correlation_time(after))
    time = 1 + dispersion * (estimate - 1)
    if time <= _NOTICEABLE:
        return 1.0, None
    return time, 1 + dispersion * (pool(estimate, known, len(after)) - 1)


def _waited_share(samples: Sequence[Sample]) -> float:
    """Share of the requests whose first token took more than twice the P10 of all."""
    ttfts = sorted(s.first_token_s - s.scheduled_s for s in samples if s.first_token_s is not None)
    if not ttfts:
        return 0.0
    quick = nearest_rank(ttfts, 10)
    return sum(ttft > 2 * quick for ttft in ttfts) / len(ttfts)

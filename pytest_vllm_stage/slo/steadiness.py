"""Trends over a step: a growing queue keeps its objectives only for a while, so a pass needs a step without a trend.

The part of the step after the engine is filled is cut into blocks, and the changes from block to block are tested by
Student's t. Changes are tested instead of levels because near capacity a queue varies like a random walk, where a test
of the slope reports every excursion as a trend (Granger & Newbold 1974, "Spurious regressions in econometrics"). The
changes between block means of a random walk have a correlation of 1/4 (Working 1960, "Note on the
correlation of first differences of averages in a random chain", Econometrica 28), which widens the standard error by
`_WIDER`; in a queue that returns to its mean the changes cancel out, and the test is conservative.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_vllm_stage.measurement.metrics import latency_s
from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.statistics import deviation, mean, student_at_least
from pytest_vllm_stage.slo.dependence import requests_in_engine

BLOCKS = 10
#: With fewer requests after the start no trend is estimated.
LEAST_REQUESTS = 30
#: With fewer requests, or in a shorter time, no trend of a closed loop is estimated.
LEAST_CLOSED, LEAST_CLOSED_S = 100, 25.0
#: A trend is significant below this: three series are tested, and one step in a hundred may show a false trend.
SIGNIFICANCE = 0.002
#: No early pass while a trend is this likely.
DOUBT = 0.2
_WIDER = math.sqrt(1.5)
#: The engine counts as filled once it holds this share of the requests that it holds without a queue.
_FILLED_SHARE = 0.95
#: The slope's lower bound is this many standard errors below it: the 95 % quantile of Student's t with 8 degrees.
_SAFE_ERRORS = 1.86


@dataclass(frozen=True)
class Trend:
    """How a series changes over a step.

    Attributes:
        name: ``ttft``, ``e2e_latency`` or ``requests in the engine``.
        p: Probability of such a rise without a trend.
        slope: Change per second.
        least_slope: The slope's lower 95 % confidence bound.
        at_s: The middle of the last block, from the step's start.
        last: The mean of the last block.
    """

    name: str
    p: float
    slope: float
    least_slope: float
    at_s: float
    last: float

    @property
    def rises(self) -> bool:
        """Whether the rise is significant."""
        return self.p < SIGNIFICANCE


@dataclass(frozen=True)
class Steadiness:
    """The trends of a step; without any the step is too short to show one.

    Attributes:
        trends: By name.
    """

    trends: tuple[Trend, ...] = ()

    @property
    def rising(self) -> bool:
        """Whether the latency or the number of requests in the engine rises."""
        return any(trend.rises for trend in self.trends)

    @property
    def doubtful(self) -> bool:
        """Whether a rise is too likely to end the step early."""
        return any(trend.p < DOUBT for trend in self.trends)

    def trend(self, name: str) -> Trend | None:
        """The trend of a series; None where it has none."""
        return next((trend for trend in self.trends if trend.name == name), None)


IN_ENGINE = "requests in the engine"


def find_trends(samples: Sequence[Sample]) -> Steadiness:
    """The trends of an open loop's samples, in the schedule's order, after the start."""
    answered = [sample for sample in samples if sample.failure is None and sample.first_token_s is not None]
    if not answered:
        return Steadiness()
    start_s = _start_s(samples, answered)
    times = [sample.scheduled_s for sample in samples]
    series: dict[str, Sequence[float | None]] = {
        "ttft": [_value("ttft", sample) for sample in samples],
        "e2e_latency": [_value("e2e_latency", sample) for sample in samples],
        IN_ENGINE: [float(count) for count in requests_in_engine(samples)],
    }
    found = (_trend(name, times, values, start_s) for name, values in series.items())
    return Steadiness(tuple(trend for trend in found if trend is not None))


def find_closed_trends(samples: Sequence[Sample]) -> Steadiness:
    """The latencies of a closed loop that certainly rise: no queue can grow, so that the engine itself slows down.

    Waves of answers that end together vary from block to block, and a busy machine slows down for seconds. So a step
    shorter than `LEAST_CLOSED_S`, or with few requests, shows nothing, and a rise has to double the latency and to go
    through nearly all blocks.
    """
    answered = [sample for sample in samples if sample.failure is None and sample.first_token_s is not None]
    if len(answered) < LEAST_CLOSED or answered[-1].scheduled_s - answered[0].scheduled_s < LEAST_CLOSED_S:
        return Steadiness()
    found = []
    for name in ("ttft", "e2e_latency", "tpot"):
        values = [_value(name, sample) for sample in answered]
        trend = _trend(name, [sample.scheduled_s for sample in answered], values, _start_s(samples, answered))
        if trend is not None and trend.rises and _doubles(values):
            found.append(trend)
    return Steadiness(tuple(found))


def _doubles(values: Sequence[float | None]) -> bool:
    known = [value for value in values if value is not None]
    n = len(known)
    blocks = [statistics.median(known[i * n // BLOCKS : (i + 1) * n // BLOCKS]) for i in range(BLOCKS)]
    rises = sum(after > before for before, after in pairwise(blocks))
    return rises >= BLOCKS - 2 and blocks[-1] >= 2 * blocks[0]


def _start_s(samples: Sequence[Sample], answered: Sequence[Sample]) -> float:
    """When the engine is filled and the first answers, which may be slower, have ended."""
    first = answered[: max(1, len(answered) // 10)]
    length_s = statistics.median(sample.end_s - sample.scheduled_s for sample in first)
    return samples[0].scheduled_s + max(length_s, find_fill_time(answered))


def find_answer_lengths(samples: Sequence[Sample]) -> list[float]:
    """The time of each answer without the queue, ascending: the quickest first token, and the rest of the answer."""
    answered = [s for s in samples if s.failure is None and s.first_token_s is not None]
    quickest_s = min(((s.first_token_s or 0.0) - s.scheduled_s for s in answered), default=0.0)
    return sorted(quickest_s + s.end_s - (s.first_token_s or 0.0) for s in answered)


def find_fill_time(samples: Sequence[Sample]) -> float:
    """How long a step takes to fill an empty engine, in seconds; longer than an answer where answers vary.

    After a time t the engine holds the rate times the mean of min(S, t), where S is an answer's length: equal answers
    fill it within one of them, exponential ones within three.
    """
    lengths = find_answer_lengths(samples)
    rest = _FILLED_SHARE * math.fsum(lengths)
    at_s = 0.0
    for i, length_s in enumerate(lengths):
        step = (length_s - at_s) * (len(lengths) - i)
        if step >= rest:
            return at_s + rest / (len(lengths) - i)
        rest -= step
        at_s = length_s
    return at_s


def _value(name: str, sample: Sample) -> float | None:
    value = latency_s(name, sample)
    return value if value is not None and math.isfinite(value) else None


def _trend(name: str, times: Sequence[float], values: Sequence[float | None], start_s: float) -> Trend | None:
    rows = [(at, value) for at, value in zip(times, values, strict=True) if value is not None and at >= start_s]
    if len(rows) < LEAST_REQUESTS:
        return None
    n = len(rows)
    blocks = [rows[i * n // BLOCKS : (i + 1) * n // BLOCKS] for i in range(BLOCKS)]
    means = [mean([value for _, value in block]) for block in blocks]
    middles = [mean([at for at, _ in block]) for block in blocks]
    width_s = (middles[-1] - middles[0]) / (BLOCKS - 1)
    changes = [after - before for before, after in pairwise(means)]
    error = _WIDER * deviation(changes) / math.sqrt(len(changes))
    change = mean(changes)
    if width_s <= 0:
        return None
    if error <= 1e-9 * max(1.0, abs(means[0])):
        p = float(change <= 1e-9 * max(1.0, abs(means[0])))
    else:
        p = student_at_least(change / error, len(changes) - 1)
    least = (change - _SAFE_ERRORS * error) / width_s
    return Trend(name, p, change / width_s, least, middles[-1], means[-1])


def seconds_until(trend: Trend, limit: float, margin: float, *, least: bool = False) -> float | None:
    """When the series would exceed a limit, in seconds from the step's start; None if it does not rise.

    Args:
        trend: The series' trend.
        limit: The limit in the series' unit.
        margin: How far the judged percentile is above the mean.
        least: Use the slope's lower bound instead of the slope.
    """
    slope = trend.least_slope if least else trend.slope
    if slope <= 0:
        return None
    return trend.at_s + max(0.0, (limit - margin - trend.last) / slope)

"""Objectives with a lower bound: their noise is estimated between blocks of time, not between requests."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from pytest_vllm_stage.measurement.metrics import GOODPUT_LATENCIES, latency_s
from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.statistics import deviation, mean, student_at_least

BLOCKS = 10
Weight = Callable[[Sample], float]


@dataclass(frozen=True)
class FloorTest:
    """How certain it is that a rate is above or below its floor.

    Attributes:
        p_kept: Probability of at least such a rate if the true one were just under the floor.
        p_broken: Probability of at most such a rate if the true one were exactly the floor.
        error: Standard error of the rate; None where the step is too short for `BLOCKS` blocks.
    """

    p_kept: float
    p_broken: float
    error: float | None


def judge_floor(
    samples: Sequence[Sample], metric: str, observed: float, floor: float, limits_s: Mapping[str, float]
) -> FloorTest:
    """Student's t over the rates of `BLOCKS` blocks of the time in which the load was steady."""
    rates = block_rates(samples, metric, limits_s)
    if len(rates) < BLOCKS or mean(rates) <= 0:
        return FloorTest(1.0, 1.0, None)
    error = deviation(rates) / math.sqrt(len(rates))
    if error == 0:
        return FloorTest(float(observed < floor), float(observed >= floor), 0.0)
    above = student_at_least((observed - floor) / error, len(rates) - 1)
    return FloorTest(above, 1 - above, error)


def block_rates(samples: Sequence[Sample], metric: str, limits_s: Mapping[str, float]) -> list[float]:
    """The rate per second of each block of the steady time; empty where there is no steady time."""
    right = [sample for sample in samples if sample.failure is None]
    if not right:
        return []
    start_s = right[0].scheduled_s + statistics.median(sample.end_s - sample.scheduled_s for sample in right)
    width_s = (max(sample.scheduled_s for sample in samples) - start_s) / BLOCKS
    if width_s <= 0:
        return []
    totals = [0.0] * BLOCKS
    for sample in right:
        for at_s, amount in _amounts(sample, metric, limits_s):
            block = math.floor((at_s - start_s) / width_s)
            if 0 <= block < BLOCKS:
                totals[block] += amount
    return [total / width_s for total in totals]


def _amounts(sample: Sample, metric: str, limits_s: Mapping[str, float]) -> list[tuple[float, float]]:
    """The times at which a sample contributed to the metric, each with the amount."""
    if metric == "requests_per_s":
        return [(sample.end_s, 1.0)]
    if metric == "goodput_requests_per_s":
        values = ((latency_s(name, sample), limits_s[name]) for name in GOODPUT_LATENCIES if name in limits_s)
        return [(sample.end_s, float(all(value is None or value <= limit for value, limit in values)))]
    each = sample.tokens / max(1, len(sample.token_times_s))
    tokens = [(at_s, each) for at_s in sample.token_times_s]
    if metric == "total_tokens_per_s" and tokens:
        tokens.append((tokens[0][0], float(sample.prompt_tokens or sample.expected_prompt_tokens)))
    return tokens

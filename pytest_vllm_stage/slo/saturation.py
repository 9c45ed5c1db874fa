"""Past capacity or not: a latency beyond capacity measures the queue, so a verdict has to know.

Three signs, and two of them are proof: the engine's waiting queue grows, fewer requests end than arrive, and the
latency rises over the step. One alone also happens to a healthy server.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_vllm_stage.measurement.samples import Measurement, Sample, ServerReading
from pytest_vllm_stage.measurement.statistics import rank_of

ADVICE = "one rate step down, or fewer output tokens"
#: The step is cut into this many blocks to see whether the latency rises.
_BLOCKS = 10
#: Kendall's tau of the blocks from which they rise; by chance less than once in a hundred.
_RISING_TAU = 0.6
_RISING_RATIO = 1.5
_COMPLETED_SHARE = 0.9


@dataclass(frozen=True)
class Saturation:
    """What a step shows of the server's capacity.

    Attributes:
        saturated: The offered load is past capacity.
        signs: Each sign that was seen, with its numbers.
        capacity_requests_per_s: What the server did while it was past capacity; None where it was not.
        message: The runbook's sentence; empty where there is nothing to say.
    """

    saturated: bool
    signs: tuple[str, ...]
    capacity_requests_per_s: float | None
    message: str


def saturation(measurement: Measurement) -> Saturation:
    """Look for the signs; a closed loop cannot be past capacity, but can keep requests waiting."""
    if not measurement.step.open_loop:
        return _closed_loop(measurement)
    sent_until_s = max((sample.scheduled_s for sample in measurement.samples), default=0.0)
    signs = tuple(
        sign
        for sign in (
            _waiting_grows(measurement.server, sent_until_s),
            _fewer_end(measurement.samples, sent_until_s),
            _latency_rises(measurement.samples),
        )
        if sign
    )
    if len(signs) < 2:
        return Saturation(False, signs, None, "")
    capacity = _capacity(measurement, sent_until_s)
    step = measurement.step
    message = (
        f"{step.request_rate:g} requests/s is past capacity, about {capacity:.2g} at this length "
        f"({step.prompt_tokens}/{step.output_tokens} tokens): {ADVICE}"
    )
    return Saturation(True, signs, capacity, message)


def _closed_loop(measurement: Measurement) -> Saturation:
    until_s = max((sample.scheduled_s for sample in measurement.samples), default=0.0)
    waiting = _waiting(measurement.server, until_s)
    usual = statistics.median(waiting) if waiting else 0.0
    if usual < 1:
        return Saturation(False, (), None, "")
    level = measurement.step.concurrency
    message = f"concurrency {level} is more than the engine's batch, {usual:g} requests wait: {ADVICE}"
    return Saturation(False, (f"{usual:g} requests wait (median)",), None, message)


def _waiting_grows(server: Sequence[ServerReading], until_s: float) -> str:
    waiting = _waiting(server, until_s)
    if len(waiting) < 4:
        return ""
    quarters = _blocks(waiting, 4, statistics.fmean)
    grows = quarters[1] < quarters[2] < quarters[3] and quarters[3] >= max(1.0, 2 * quarters[1])
    return f"the waiting queue grows (mean {quarters[1]:.1f}, {quarters[2]:.1f}, {quarters[3]:.1f})" if grows else ""


def _waiting(server: Sequence[ServerReading], until_s: float) -> list[float]:
    """The queue's length at each reading while requests were being sent."""
    return [reading.waiting for reading in server if reading.waiting is not None and 0 < reading.at_s <= until_s]


def _fewer_end(samples: Sequence[Sample], until_s: float) -> str:
    """Compare ends in the second half with the arrivals of a time as long, earlier by what an answer takes at least."""
    latencies = sorted(sample.end_s - sample.scheduled_s for sample in samples)
    if len(latencies) < 4:
        return ""
    shift_s = latencies[rank_of(10, len(latencies)) - 1]
    half_s = until_s / 2
    if shift_s > half_s:
        return ""
    arrived = sum(half_s - shift_s < sample.scheduled_s <= until_s - shift_s for sample in samples)
    ended = sum(half_s < sample.end_s <= until_s for sample in samples)
    fewer = ended < _COMPLETED_SHARE * arrived and arrived - ended > 2
    return f"{ended} requests ended while {arrived} arrived" if fewer else ""


def _latency_rises(samples: Sequence[Sample]) -> str:
    latencies = [sample.end_s - sample.scheduled_s for sample in samples]
    if len(latencies) < _BLOCKS:
        return ""
    blocks = _blocks(latencies, _BLOCKS, statistics.median)
    first, last = statistics.median(blocks[:3]), statistics.median(blocks[-3:])
    if kendall_tau(blocks) < _RISING_TAU or last < _RISING_RATIO * first:
        return ""
    return f"the latency rises over the step, from {first:.2f} s to {last:.2f} s"


def _blocks(values: Sequence[float], count: int, middle: Callable[[Sequence[float]], float]) -> list[float]:
    n = len(values)
    return [middle(values[i * n // count : (i + 1) * n // count]) for i in range(count)]


def kendall_tau(values: Sequence[float]) -> float:
    """How well the values are ordered in time: 1 always rising, -1 always falling."""
    pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
    return sum((b > a) - (b < a) for a, b in pairs) / len(pairs) if pairs else 0.0


def _capacity(measurement: Measurement, until_s: float) -> float:
    """Requests a second that the tokens of the second half amount to; smoother than counting ends."""
    half_s = until_s / 2
    tokens = sum(
        sample.tokens / len(sample.token_times_s)
        for sample in measurement.samples
        for at in sample.token_times_s
        if half_s < at <= until_s
    )
    return tokens / half_s / measurement.step.output_tokens if half_s > 0 else 0.0

"""Saturation: beyond capacity a latency measures the queue, so a verdict has to take it into account.

There are three signs, and two of them are proof: the engine's waiting queue grows, fewer requests end than arrive, and
the latency rises over the step. A healthy server can show one of them.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_vllm_stage.measurement.samples import PAST_CAPACITY, Measurement, Sample, ServerReading
from pytest_vllm_stage.measurement.statistics import rank_of
from pytest_vllm_stage.slo.engine_load import ALWAYS_SHARE, MAX_NUM_SEQS, EngineLoad, find_engine_load
from pytest_vllm_stage.slo.steadiness import Steadiness, find_answer_lengths, find_fill_time, find_trends

ADVICE = "one rate step down, or fewer output tokens"
#: The step is cut into this many blocks to see whether the latency rises.
_BLOCKS = 10
#: The blocks rise from this value of Kendall's tau; by chance it is reached less than once in a hundred.
_RISING_TAU = 0.6
_RISING_RATIO = 1.5
_COMPLETED_SHARE = 0.9
#: The signs count where a trend is significant at this level; see `growth` for how trends are judged.
TREND = 0.01


@dataclass(frozen=True)
class Saturation:
    """Whether a step saturated the server, and at which rate.

    Attributes:
        saturated: The offered load exceeds the capacity.
        signs: Each observed sign with its numbers.
        capacity_requests_per_s: The rate that the server reached while it was saturated; None where it was not.
        message: What to do about it; empty where requests did not wait.
    """

    saturated: bool
    signs: tuple[str, ...]
    capacity_requests_per_s: float | None
    message: str


def saturation(
    measurement: Measurement, load: EngineLoad | None = None, steadiness: Steadiness | None = None
) -> Saturation:
    """Look for the signs; a closed loop cannot exceed the capacity, but its requests can wait.

    Near capacity a queue varies widely without growing, so the signs count only together with a trend. A step that is
    too short for a trend needs all three. The backlog that ended an observation is proof by itself: a short step of
    answers that end in batches has too few readings for the signs.
    """
    load = load or find_engine_load(measurement)
    if not measurement.step.open_loop:
        return _closed_loop(measurement, load)
    steadiness = steadiness or find_trends(measurement.samples)
    sent_until_s = max((sample.scheduled_s for sample in measurement.samples), default=0.0)
    signs = tuple(
        sign
        for sign in (
            _waiting_grows(measurement.server, sent_until_s),
            _fewer_end(measurement.samples, sent_until_s),
            _latency_rises(measurement.samples),
            _backlog_grew(measurement),
        )
        if sign
    )
    rises = any(trend.p < TREND for trend in steadiness.trends)
    proven = _ended_past_capacity(measurement) or (len(signs) >= 2 and rises if steadiness.trends else len(signs) == 3)
    if not proven:
        return Saturation(False, signs, None, "")
    capacity = load.capacity_requests_per_s or 0.0
    step = measurement.step
    message = (
        f"{step.request_rate:g} requests/s is past capacity, about {capacity:.2g} at this length "
        f"({step.prompt_tokens}/{step.output_tokens} tokens): {ADVICE}"
    )
    return Saturation(True, signs, capacity, message)


def _closed_loop(measurement: Measurement, load: EngineLoad) -> Saturation:
    level = measurement.step.concurrency or 0
    if load.waiting is None or load.waiting < 1:
        return Saturation(False, (), None, _wait_unseen(measurement, load, level))
    often = "always" if load.waiting_share >= ALWAYS_SHARE else "mostly"
    message = f"{load.waiting:g} requests {often} waited: {load.limit_text()} (concurrency {level}); {ADVICE}"
    return Saturation(False, (f"{load.waiting:g} requests wait (median)",), None, message)


def _wait_unseen(measurement: Measurement, load: EngineLoad, level: int) -> str:
    """What a declared limit makes certain where the engine has no readings; empty where it does nothing."""
    declared = measurement.facts.get(MAX_NUM_SEQS)
    if load.running is not None or not declared or declared >= level:
        return ""
    return (
        f"{level - declared} requests always wait: the engine is declared to run {declared} at a time "
        f"(concurrency {level}); {ADVICE}"
    )


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
    """Compare the ends in the second half with the arrivals in an equally long time, one short answer (P10) earlier.

    An engine that is still filling at half of the step ends fewer than arrive, whatever its capacity is.
    """
    lengths = find_answer_lengths(samples)
    if len(lengths) < 4:
        return ""
    shift_s = lengths[rank_of(10, len(lengths)) - 1]
    half_s = until_s / 2
    if max(shift_s, find_fill_time(samples)) > half_s:
        return ""
    arrived = sum(half_s - shift_s < sample.scheduled_s <= until_s - shift_s for sample in samples)
    ended = sum(half_s < sample.end_s <= until_s for sample in samples if not sample.abandoned)
    fewer = ended < _COMPLETED_SHARE * arrived and arrived - ended > 2
    return f"{ended} requests ended while {arrived} arrived" if fewer else ""


def _latency_rises(samples: Sequence[Sample]) -> str:
    latencies = [sample.end_s - sample.scheduled_s for sample in samples if not sample.abandoned]
    if len(latencies) < _BLOCKS:
        return ""
    blocks = _blocks(latencies, _BLOCKS, statistics.median)
    first, last = statistics.median(blocks[:3]), statistics.median(blocks[-3:])
    if kendall_tau(blocks) < _RISING_TAU or last < _RISING_RATIO * first:
        return ""
    return f"the latency rises over the step, from {first:.2f} s to {last:.2f} s"


def _ended_past_capacity(measurement: Measurement) -> bool:
    return measurement.early_stop is not None and measurement.early_stop.reason == PAST_CAPACITY


def _backlog_grew(measurement: Measurement) -> str:
    abandoned = sum(sample.abandoned for sample in measurement.samples)
    return f"{abandoned} requests were left of a growing backlog" if _ended_past_capacity(measurement) else ""


def _blocks(values: Sequence[float], count: int, middle: Callable[[Sequence[float]], float]) -> list[float]:
    n = len(values)
    return [middle(values[i * n // count : (i + 1) * n // count]) for i in range(count)]


def kendall_tau(values: Sequence[float]) -> float:
    """Kendall's tau of the values over time: 1 always rising, -1 always falling."""
    pairs = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
    return sum((b > a) - (b < a) for a, b in pairs) / len(pairs) if pairs else 0.0

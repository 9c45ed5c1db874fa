"""Whether a measurement can have happened: times in order, counts that agree, numbers within their range.

Every reader of a saved measurement calls this and refuses the file; every judgement calls it and makes the step
invalid. What is slow, late or failed is possible; what is impossible comes from a broken clock, driver or file.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise

from pytest_vllm_stage.measurement.samples import Measurement, Sample, ServerReading

#: Times are saved to the microsecond, so that two of them may each be half of one off.
ROUNDING_S = 2e-6
#: GuideLLM's processes wake up for a schedule by the wall clock, and may do so this much early.
EARLY_S = 0.005
#: Clocks of a cluster's nodes differ by less than this.
CLOCK_SKEW_S = 300.0
#: Nothing was measured before: a time of 0, or of a clock that was never set, is earlier.
EARLIEST = datetime(2020, 1, 1, tzinfo=UTC).timestamp()
#: An event may carry no token (a server that opens or closes its answer with an empty one), but not most of them.
EVENTS_PER_TOKEN = 2


@dataclass(frozen=True)
class Impossibility:
    """One thing about a measurement that cannot have happened.

    Attributes:
        part: ``header``, ``client``, ``early_stop``, ``sample`` or ``server``.
        position: Which sample or reading, from 0; None for the other parts.
        field: The field that is wrong.
        problem: What is wrong with it, after the field's name.
    """

    part: str
    position: int | None
    field: str
    problem: str

    def __str__(self) -> str:
        kinds = {"sample": "request", "server": "server reading"}
        where = kinds.get(self.part, self.part)
        return f"{where}{'' if self.position is None else f' {self.position}'}: {self.field} {self.problem}"


def find_impossible(measurement: Measurement, *, now: float | None = None) -> Iterator[Impossibility]:
    """Everything that cannot have happened.

    Args:
        measurement: Read from a file, or just made.
        now: Seconds since the epoch; nothing was measured later.
    """
    yield from _check_header(measurement, time.time() if now is None else now)
    step = measurement.step
    expected = (step.prompt_tokens, step.output_tokens)
    for position, sample in enumerate(measurement.samples):
        problem = next(problems_of_sample(sample), None)
        if problem is None and (sample.expected_prompt_tokens, sample.expected_output_tokens) != expected:
            problem = ("expected_output_tokens", "or expected_prompt_tokens is not the step's")
        if problem is None and sample.index != position:
            problem = ("index", f"expected {position}, got {sample.index}: requests are missing or repeated")
        if problem is None and sample.step != step.id:
            problem = ("step", f"expected {step.id!r}, got {sample.step!r}")
        if problem is not None:
            yield Impossibility("sample", position, *problem)
    for position, reading in enumerate(measurement.server):
        for field, text in _check_reading(reading):
            yield Impossibility("server", position, field, text)
    for position, (before, after) in enumerate(pairwise(measurement.server), start=1):
        if after.at_s < before.at_s:
            yield Impossibility("server", position, "at_s", f"({after.at_s:g} s) is before the reading in front of it")


def problems_of_sample(sample: Sample) -> Iterator[tuple[str, str]]:
    """Fields of one request that contradict each other, each with what is wrong."""
    times = (
        sample.scheduled_s,
        sample.end_s,
        *sample.token_times_s,
        *(() if sample.sent_s is None else (sample.sent_s,)),
    )
    if not all(map(math.isfinite, times)):
        yield "token_times_s", "or another time of the request is not a finite number"
        return
    if sample.scheduled_s < -ROUNDING_S:
        yield "scheduled_s", f"({sample.scheduled_s:g} s) is before the step's start"
    yield from _order(sample)
    yield from _counts(sample)
    if sample.failure is None:
        yield from _success(sample)


def _order(sample: Sample) -> Iterator[tuple[str, str]]:
    """The schedule, the sending, each token, the end."""
    first_s, sent_s = sample.first_token_s, sample.sent_s
    if sent_s is not None and sent_s < sample.scheduled_s - EARLY_S:
        yield "sent_s", f"({sent_s:.6f} s) is before scheduled_s ({sample.scheduled_s:.6f} s)"
    if first_s is not None:
        begun_s = sample.scheduled_s if sent_s is None else max(sent_s, sample.scheduled_s)
        if first_s <= begun_s - ROUNDING_S or first_s == begun_s:
            yield "token_times_s", f"begin at {first_s:.6f} s, and the request was sent at {begun_s:.6f} s"
        if any(after < before for before, after in pairwise(sample.token_times_s)):
            yield "token_times_s", "are not in ascending order"
        if sample.end_s < sample.token_times_s[-1] - ROUNDING_S:
            yield "end_s", f"({sample.end_s:.6f} s) is before the last token ({sample.token_times_s[-1]:.6f} s)"
    if sample.end_s < max(sample.scheduled_s, sent_s or sample.scheduled_s) - EARLY_S:
        yield "end_s", f"({sample.end_s:.6f} s) is before the request was sent"


def _counts(sample: Sample) -> Iterator[tuple[str, str]]:
    counts = ("prompt_tokens", "output_tokens", "cached_tokens", "expected_prompt_tokens", "expected_output_tokens")
    for name in counts:
        value = getattr(sample, name)
        if value is not None and value < 0:
            yield name, f"is {value}"
    prompt = sample.expected_prompt_tokens if sample.prompt_tokens is None else sample.prompt_tokens
    if sample.cached_tokens is not None and sample.cached_tokens > prompt:
        yield "cached_tokens", f"is {sample.cached_tokens}, and the prompt has {prompt}"


def _success(sample: Sample) -> Iterator[tuple[str, str]]:
    """What a whole and right answer has."""
    prompt = sample.expected_prompt_tokens if sample.prompt_tokens is None else sample.prompt_tokens
    if not sample.token_times_s:
        yield "token_times_s", "is empty, and the answer counts as whole"
    if sample.sent_s is None:
        yield "sent_s", "is null, and the answer counts as whole"
    if sample.status not in (None, 200):
        yield "status", f"is {sample.status}, and the answer counts as whole"
    if prompt != sample.expected_prompt_tokens:
        yield "prompt_tokens", f"is {prompt} instead of {sample.expected_prompt_tokens}, and the answer counts as right"
    known = sample.output_tokens is not None or sample.every_token_timed
    if known and sample.tokens != sample.expected_output_tokens:
        expected = sample.expected_output_tokens
        yield "output_tokens", f"is {sample.tokens} instead of {expected}, and the answer counts as right"
    if len(sample.token_times_s) > EVENTS_PER_TOKEN * sample.tokens + 1:
        yield "token_times_s", f"has {len(sample.token_times_s)} times for {sample.tokens} tokens"


def _check_header(measurement: Measurement, now: float) -> Iterator[Impossibility]:
    started_at, samples, step = measurement.started_at, measurement.samples, measurement.step
    last_s = max((sample.end_s for sample in samples), default=0.0)
    if not started_at >= EARLIEST:
        yield Impossibility("header", None, "started_at", f"({started_at:g}) is before {EARLIEST:g} (2020)")
    elif not started_at + last_s <= now + CLOCK_SKEW_S:
        yield Impossibility("header", None, "started_at", f"({started_at:.0f} and {last_s:.0f} s) is in the future")
    planned = step.planned_requests
    if planned is not None and len(samples) > planned:
        text = f"plans {planned} requests (rate x duration), and {len(samples)} are there"
        yield Impossibility("header", None, "step", text)
    client = measurement.client
    for name in ("cpu_s", "wall_s", "loop_lag_p99_ms", "connections", "resent"):
        value = getattr(client, name)
        if value is not None and not 0 <= value < math.inf:
            yield Impossibility("client", None, name, f"is {value}")
    yield from _check_early_stop(measurement)


def _check_early_stop(measurement: Measurement) -> Iterator[Impossibility]:
    stop, step = measurement.early_stop, measurement.step
    if stop is None:
        return
    if stop.requests != len(measurement.samples):
        text = f"is {stop.requests}, and {len(measurement.samples)} requests are there"
        yield Impossibility("early_stop", None, "requests", text)
    if not 0 <= stop.at_s < math.inf:
        yield Impossibility("early_stop", None, "at_s", f"is {stop.at_s}")
    if not 0 <= stop.saved_s <= step.duration_s + ROUNDING_S:
        yield Impossibility("early_stop", None, "saved_s", f"is {stop.saved_s} of a step of {step.duration_s:g} s")


def _check_reading(reading: ServerReading) -> Iterator[tuple[str, str]]:
    if not math.isfinite(reading.at_s):
        yield "at_s", "is not a finite number"
    for name in _READ:
        value = getattr(reading, name)
        if value is not None and not 0 <= value < math.inf:
            yield name, f"is {value}"
    for name in ("kv_cache_usage", "gpu_utilization"):
        value = getattr(reading, name)
        if value is not None and value > 1 + 1e-6:
            yield name, f"is {value:g}, and a share is at most 1"
    for gpu in reading.gpus:
        for name, value, most in (
            ("memory_used_bytes", gpu.memory_used_bytes, math.inf),
            ("utilization", gpu.utilization, 1 + 1e-6),
        ):
            if value is not None and not (0 <= value <= most and value < math.inf):
                yield "gpus", f"has GPU {gpu.gpu} with {name} {value}"
    queries, hits = reading.prefix_cache_queries, reading.prefix_cache_hits
    if queries is not None and hits is not None and hits > queries:
        yield "prefix_cache_hits", f"is {hits:g} of {queries:g} queries"


_READ = (
    "running",
    "waiting",
    "kv_cache_usage",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "generation_tokens",
    "prompt_tokens",
    "preemptions",
    "ttft_sum_s",
    "ttft_count",
    "token_gap_sum_s",
    "token_gap_count",
    "gpu_memory_used_bytes",
    "gpu_utilization",
)

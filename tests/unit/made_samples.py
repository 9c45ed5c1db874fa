"""Samples made by hand or by a simulated queue, for tests of what is computed from samples."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from pytest_vllm_stage.measurement.samples import ABANDONED, ClientFacts, Failure, Measurement, Sample, ServerReading
from pytest_vllm_stage.measurement.step import CLOSED, CONSTANT, LoadStep

#: 2026-09-21: a time that is over.
STARTED_AT = 1790000000.0


def open_step(rate: float = 10.0, duration_s: float = 60.0, **changes: Any) -> LoadStep:
    step = LoadStep("full", "m", CONSTANT, duration_s, 64, 16, request_rate=rate)
    return replace(step, **changes)


def closed_step(concurrency: int = 5, duration_s: float = 60.0, **changes: Any) -> LoadStep:
    return replace(LoadStep("full", "m", CLOSED, duration_s, 64, 16, concurrency=concurrency), **changes)


def sample(
    index: int, scheduled_s: float, *, ttft_s: float = 0.1, itl_s: float = 0.01, tokens: int = 16, **changes: Any
) -> Sample:
    times = tuple(round(scheduled_s + ttft_s + i * itl_s, 6) for i in range(tokens))
    values: dict[str, Any] = {
        "step": "full-rate-10",
        "index": index,
        "scheduled_s": scheduled_s,
        "sent_s": round(scheduled_s + 0.0002, 6),
        "token_times_s": times,
        "end_s": times[-1] if times else round(scheduled_s + ttft_s, 6),
        "expected_prompt_tokens": 64,
        "expected_output_tokens": 16,
        "prompt_tokens": 64,
        "output_tokens": tokens,
        "status": 200,
        "response_id": f"id-{index}",
        "prompt_digest": f"prompt-{index}",
        "output_digest": f"answer-{index}",
    }
    # Made once: the statistical tests make hundreds of thousands, and `replace` would make each a second time.
    return Sample(**values | changes)


def failed(index: int, scheduled_s: float, kind: str = "http_status", **changes: Any) -> Sample:
    nothing: dict[str, Any] = {"tokens": 0, "failure": Failure(kind, "503"), "output_tokens": None}
    return sample(index, scheduled_s, **(nothing | changes))


def abandoned(made: Sample, at_s: float) -> Sample:
    """The request as it is left of when it is given up at a time before its end."""
    times = tuple(one for one in made.token_times_s if one <= at_s)
    failure = Failure(ABANDONED, "given up")
    return replace(made, token_times_s=times, end_s=at_s, output_tokens=None, prompt_tokens=None, failure=failure)


def measurement(
    step: LoadStep, samples: Sequence[Sample], server: Sequence[ServerReading] | None = None, **client: Any
) -> Measurement:
    step_id = step.id
    rows = tuple(row if row.step == step_id else replace(row, step=step_id) for row in samples)
    readings = [ServerReading(0.0, 1, 0), ServerReading(60.0, 1, 0)] if server is None else server
    return Measurement(step, STARTED_AT, rows, ClientFacts("test 1", **client), tuple(readings))


def with_ttfts(ttfts_s: Sequence[float], rate: float = 10.0, **changes: Any) -> Measurement:
    """An open-loop measurement with these TTFTs."""
    step = open_step(rate, len(ttfts_s) / rate, **changes)
    return measurement(step, [sample(i, i / rate, ttft_s=ttft_s) for i, ttft_s in enumerate(ttfts_s)])


def queued(step: LoadStep, servers: int, service_s: Callable[[random.Random], float], seed: int = 1) -> Measurement:
    """An open loop against a FIFO queue with so many servers: TTFT is the wait and a tenth of the service."""
    dice = random.Random(seed)
    free = [0.0] * servers
    samples, waits = [], []
    for i, at_s in enumerate(step.schedule_s()):
        start_s = max(at_s, heapq.heappop(free))
        served_s = service_s(dice)
        heapq.heappush(free, start_s + served_s)
        waits.append((at_s, start_s, start_s + served_s))
        itl_s = 0.9 * served_s / (step.output_tokens - 1)
        ttft_s = start_s - at_s + 0.1 * served_s
        samples.append(sample(i, at_s, ttft_s=ttft_s, itl_s=itl_s, tokens=step.output_tokens))
    server = [_reading(float(second), waits) for second in range(int(step.duration_s) + 1)]
    return measurement(step, samples, server)


def _reading(at_s: float, waits: Sequence[tuple[float, float, float]]) -> ServerReading:
    waiting = sum(arrived <= at_s < started for arrived, started, _ in waits)
    running = sum(started <= at_s < ended for _, started, ended in waits)
    return ServerReading(at_s, float(running), float(waiting))

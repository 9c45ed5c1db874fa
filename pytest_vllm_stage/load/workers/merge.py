"""Merges the workers' measurements into one of the whole step; what is missing is named, never filled in."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pytest_vllm_stage.load.workers.clock import ClockOffset
from pytest_vllm_stage.load.workers.share import Share
from pytest_vllm_stage.measurement.samples import LOAD_WORKERS, ClientFacts, Measurement, Sample
from pytest_vllm_stage.measurement.step import LoadStep


@dataclass(frozen=True)
class LostWorker:
    """A worker without a result.

    Attributes:
        worker: Its number.
        name: Its pod, or its process.
        reason: What happened to it.
    """

    worker: int
    name: str
    reason: str


@dataclass(frozen=True)
class Gathered:
    """What the workers of a step gave back.

    Attributes:
        parts: Worker to its measurement; those without one are lost.
        lost: The lost workers, the first one first.
        clocks: Worker to its clock's offset from the reference.
        start_at: The common start, in seconds since the epoch by this machine's clock.
    """

    parts: Mapping[int, Measurement]
    lost: Sequence[LostWorker]
    clocks: Mapping[int, ClockOffset]
    start_at: float


def merge(step: LoadStep, workers: int, gathered: Gathered, facts: Mapping[str, Any]) -> Measurement:
    """One measurement from the workers' own.

    Args:
        step: The whole step.
        workers: How many workers shared it.
        gathered: What they gave back.
        facts: What labels the measurement.
    """
    parts = dict(sorted(gathered.parts.items()))
    placed = sorted(_placed(step, workers, parts), key=lambda one: (one[1].scheduled_s, one[0]))
    samples = tuple(replace(sample, index=index) for index, (_, sample) in enumerate(placed))
    ran_out = any(part.facts.get("prompts_ran_out") for part in parts.values())
    return Measurement(
        step=step,
        started_at=gathered.start_at,
        samples=samples,
        client=_client(workers, list(parts.values())),
        server=parts[0].server if 0 in parts else (),
        facts={
            **facts,
            LOAD_WORKERS: _facts(workers, gathered),
            **({"prompts_ran_out": True} if ran_out else {}),
        },
    )


def _placed(step: LoadStep, workers: int, parts: Mapping[int, Measurement]) -> list[tuple[int, Sample]]:
    """Every sample with its place in the whole step."""
    return [
        (Share(worker, workers).place(step, sample.index), sample)
        for worker, part in parts.items()
        for sample in part.samples
    ]


def _client(workers: int, parts: Sequence[Measurement]) -> ClientFacts:
    """The drivers as one: the busiest process, the slowest loop, and the sums of what is counted."""
    clients = [part.client for part in parts]
    driver = clients[0].driver if clients else "asyncio"
    lags_ms = [one.loop_lag_p99_ms for one in clients if one.loop_lag_p99_ms is not None]
    priorities = {one.priority for one in clients}
    return ClientFacts(
        driver=f"{driver} x{workers} in cluster",
        cpu_s=max((one.cpu_s for one in clients), default=0.0),
        wall_s=max((one.wall_s for one in clients), default=0.0),
        loop_lag_p99_ms=max(lags_ms, default=None),
        connections=sum(one.connections for one in clients),
        resent=sum(one.resent for one in clients),
        priority=priorities.pop() if len(priorities) == 1 else "normal",
    )


def _facts(workers: int, gathered: Gathered) -> dict[str, Any]:
    clocks = gathered.clocks
    return {
        "count": workers,
        "lost": [asdict(lost) for lost in gathered.lost],
        "clock_offset_ms": {str(worker): round(1000 * clocks[worker].offset_s, 3) for worker in sorted(clocks)},
        "clock_uncertainty_ms": round(max((1000 * one.uncertainty_s for one in clocks.values()), default=0.0), 3),
    }

"""What the engine and its GPUs did during a step, summarised from the readings that were taken once a second.

A number without a source is None, never 0: an engine that was not read did not run nothing.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from itertools import pairwise

from pytest_vllm_stage.measurement.samples import GpuReading, ServerReading
from pytest_vllm_stage.measurement.statistics import nearest_rank


@dataclass(frozen=True)
class GpuMetrics:
    """One GPU over a step.

    Attributes:
        gpu: Its number or UUID, as the exporter labels it.
        memory_peak_bytes: The most memory in use.
        utilization_mean: 0 to 1.
        utilization_p90: 0 to 1, nearest rank over the readings.
    """

    gpu: str
    memory_peak_bytes: float | None
    utilization_mean: float | None
    utilization_p90: float | None


@dataclass(frozen=True)
class ServerMetrics:
    """The engine and all GPUs over a step.

    Attributes:
        running_mean: Requests in the batch.
        running_max: The most of them.
        waiting_mean: Requests in the queue.
        waiting_max: The most of them.
        kv_cache_usage_mean: Share of the KV cache in use, 0 to 1.
        kv_cache_usage_max: The largest share.
        prefix_cache_hit_rate: Share of the prompt tokens that were in the prefix cache, 0 to 1; None without a query.
        preemptions: Requests pushed out of the batch.
        gpu_memory_peak_bytes: The most memory in use, over all GPUs together.
        gpu_utilization_mean: Mean over readings and GPUs, 0 to 1.
        gpu_utilization_p90: Nearest rank over the readings of the GPUs' mean, 0 to 1.
        gpus: Each GPU; empty where the source does not distinguish them.
    """

    running_mean: float | None
    running_max: float | None
    waiting_mean: float | None
    waiting_max: float | None
    kv_cache_usage_mean: float | None
    kv_cache_usage_max: float | None
    prefix_cache_hit_rate: float | None
    preemptions: float | None
    gpu_memory_peak_bytes: float | None
    gpu_utilization_mean: float | None
    gpu_utilization_p90: float | None
    gpus: tuple[GpuMetrics, ...] = ()

    def flat(self) -> dict[str, float | None]:
        """Every number by its name; those of single GPUs have the GPU in it where there are several."""
        numbers: dict[str, float | None] = {
            field.name: getattr(self, field.name) for field in fields(self) if field.name != "gpus"
        }
        for gpu in self.gpus if len(self.gpus) > 1 else ():
            for name in ("memory_peak_bytes", "utilization_mean", "utilization_p90"):
                numbers[f"gpu_{gpu.gpu}_{name}"] = getattr(gpu, name)
        return numbers


def summarise_server(readings: Sequence[ServerReading], span_s: float) -> ServerMetrics:
    """Summarise the readings of a step.

    Args:
        readings: In their order; the first may be from before the step, the last from after it. Gauges count within
            the step, counters from the first reading to the last.
        span_s: Seconds from the step's start to its last answer.
    """
    during = [reading for reading in readings if 0 <= reading.at_s <= span_s]
    running, waiting = _known(one.running for one in during), _known(one.waiting for one in during)
    usage = _known(one.kv_cache_usage for one in during)
    memory = _known(one.gpu_memory_used_bytes for one in during)
    utilization = _known(one.gpu_utilization for one in during)
    queries = increase([one.prefix_cache_queries for one in readings])
    hits = increase([one.prefix_cache_hits for one in readings])
    return ServerMetrics(
        running_mean=_mean(running),
        running_max=max(running, default=None),
        waiting_mean=_mean(waiting),
        waiting_max=max(waiting, default=None),
        kv_cache_usage_mean=_mean(usage),
        kv_cache_usage_max=max(usage, default=None),
        prefix_cache_hit_rate=None if hits is None or not queries else min(1.0, hits / queries),
        preemptions=increase([one.preemptions for one in readings]),
        gpu_memory_peak_bytes=max(memory, default=None),
        gpu_utilization_mean=_mean(utilization),
        gpu_utilization_p90=_p90(utilization),
        gpus=tuple(
            _summarise_gpu(gpu, during) for gpu in dict.fromkeys(one.gpu for each in during for one in each.gpus)
        ),
    )


def increase(counts: Sequence[float | None]) -> float | None:
    """How much a counter grew; after a restart it counts from 0 again. None with fewer than two readings of it."""
    known = _known(counts)
    if len(known) < 2:
        return None
    return sum(after - before if after >= before else after for before, after in pairwise(known))


def _summarise_gpu(gpu: str, during: Sequence[ServerReading]) -> GpuMetrics:
    mine: list[GpuReading] = [one for reading in during for one in reading.gpus if one.gpu == gpu]
    utilization = _known(one.utilization for one in mine)
    memory = max(_known(one.memory_used_bytes for one in mine), default=None)
    return GpuMetrics(gpu, memory, _mean(utilization), _p90(utilization))


def _known(values: Iterable[float | None]) -> list[float]:
    return [value for value in values if value is not None]


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _p90(values: Sequence[float]) -> float | None:
    return nearest_rank(sorted(values), 90) if values else None

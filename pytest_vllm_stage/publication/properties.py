"""The properties that a run publishes, by priority, and how they share the page with those of other clients.

The registry's page shows 24 properties of a version. Properties of other clients stay; a run's own properties of lower
priority are left out and are only in the artifact.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.publication.registry.values import Raw, Value, encode, same, to_send

BUDGET = 24
RUN = "benchmark_test_run"
TIMESTAMP = "benchmark_timestamp"
NAMESPACE = "benchmark_namespace"
SERVICE = "benchmark_inference_service"
REVISION = "benchmark_revision"
URI = "benchmark_artifact_uri"
#: The source of the numbers: without these no number is published.
PROVENANCE = (RUN, TIMESTAMP, NAMESPACE, SERVICE, REVISION, URI)
VERDICT = "verdict"
#: The properties of a step, most important first, with their metrics; the verdict has none.
PER_STEP = {
    "throughput": "output_tokens_per_s",
    "ttft_p99": "ttft_p99_ms",
    "latency_p99": "e2e_latency_p99_s",
    VERDICT: None,
    "ttft_mean": "ttft_mean_ms",
    "latency_mean": "e2e_latency_mean_s",
    "ttft_p50": "ttft_p50_ms",
    "ttft_p90": "ttft_p90_ms",
    "gpu_memory_peak": "gpu_memory_peak_bytes",
    "gpu_utilization": "gpu_utilization_mean",
    "kv_cache_usage": "kv_cache_usage_max",
}
UNITS = {"throughput": "output tokens/s", "ttft": "ms", "latency": "s", "gpu_memory": "bytes"}
_OURS = re.compile(rf"benchmark_(?:rate|concurrency)_[0-9.e+-]+_(?:{'|'.join(PER_STEP)})")


def step_property(load: str, level: float, name: str) -> str:
    """``benchmark_rate_5_ttft_p99``; ``load`` is ``rate`` or ``concurrency``."""
    return f"benchmark_{load}_{level:g}_{name}"


def is_ours(name: str) -> bool:
    """Whether publications own the property and replace it."""
    return name in PROVENANCE or _OURS.fullmatch(name) is not None


def others(properties: Mapping[str, Raw]) -> dict[str, Raw]:
    """The properties that are not ours."""
    return {name: raw for name, raw in properties.items() if not is_ours(name)}


def ours(properties: Mapping[str, Raw]) -> dict[str, Raw]:
    """The properties that are ours."""
    return {name: raw for name, raw in properties.items() if is_ours(name)}


def within_budget(wanted: Mapping[str, Value], foreign: Iterable[str], where: str) -> dict[str, Value]:
    """The first of a run's properties, as many as the budget leaves room for.

    Args:
        wanted: Provenance first, then numbers by priority.
        foreign: Names of the properties that stay.
        where: The version, for the error.

    Raises:
        StageFailure: the provenance and one number do not fit, or a name differs from one of ours only in case.
    """
    names = sorted(foreign)
    folded = {name.strip().casefold(): name for name in names}
    clashes = [f"{folded[name]!r} and {name!r}" for name in wanted if name in folded]
    if clashes:
        raise StageFailure(
            f"{where}: property names differ in case or spaces only, and some databases keep one of them: "
            f"{', '.join(clashes)}"
        )
    room = BUDGET - len(names)
    if room <= len(PROVENANCE):
        raise StageFailure(
            f"{where} has {len(names)} custom properties of others, and its page shows {BUDGET}: there is no room for "
            f"where results come from ({len(PROVENANCE)}) and one number\n  there are: {', '.join(names)}",
            hint="remove properties that are not needed, then run again: the results are kept in the bucket",
        )
    return dict(list(wanted.items())[:room])


def merged(properties: Mapping[str, Raw], wanted: Mapping[str, Value]) -> dict[str, Any]:
    """The properties to send, since a PATCH replaces all: those of others unchanged, and this run's."""
    return {name: to_send(raw) for name, raw in others(properties).items()} | {
        name: encode(value) for name, value in wanted.items()
    }


def unlike(before: Mapping[str, Raw], now: Mapping[str, Raw], names: Sequence[str] | None = None) -> list[str]:
    """The names (all, if none are given) whose properties differ between two readings."""
    return [name for name in names or sorted({*before, *now}) if not same(before.get(name), now.get(name))]

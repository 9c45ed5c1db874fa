"""The objectives (SLO) that a profile sets for a load step; `settings.slo_tables` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from pytest_vllm_stage.measurement.metrics import GOODPUT_LATENCIES, LATENCIES, PERCENTS

ERROR_RATE = "error_rate"
#: Bounds what gateways add to the time to first token; judged once per step, by the engine's own counters.
GATEWAY_ADDED_TTFT = "gateway_added_ttft_p50_ms"
#: Objectives with a lower bound, and the metric that they bound.
FLOORS = {
    "output_tokens_per_s_min": "output_tokens_per_s",
    "total_tokens_per_s_min": "total_tokens_per_s",
    "requests_per_s_min": "requests_per_s",
    "goodput_requests_per_s_min": "goodput_requests_per_s",
}
#: Latency objectives by key: the latency's name, the percentile, and the factor from seconds to the key's unit.
LATENCY_KEYS = {
    f"{name}_p{percent}_{unit}": (name, percent, factor)
    for name, (unit, factor) in LATENCIES.items()
    for percent in PERCENTS
}


@dataclass(frozen=True, order=True)
class Objective:
    """One objective.

    Attributes:
        key: Its name, which is also the metric's.
        limit: The bound, in the key's unit.
    """

    key: str
    limit: float

    @property
    def latency(self) -> str | None:
        """The latency that it bounds, for example ``ttft``; None for another kind of objective."""
        return LATENCY_KEYS[self.key][0] if self.key in LATENCY_KEYS else None

    @property
    def limit_s(self) -> float:
        """The limit of a latency objective in seconds."""
        return self.limit / LATENCY_KEYS[self.key][2]

    @property
    def is_floor(self) -> bool:
        """The limit is a lower bound; such an objective is judged over blocks of time instead of over requests."""
        return self.key in FLOORS

    @property
    def is_of_requests(self) -> bool:
        """It is judged by single requests: neither a floor nor what a gateway adds on average."""
        return not self.is_floor and self.key != GATEWAY_ADDED_TTFT

    @property
    def metric(self) -> str:
        """The metric that it bounds."""
        return FLOORS.get(self.key, self.key)

    @property
    def allowed_share(self) -> float:
        """The share of requests that may miss: 0.01 for a P99, the limit itself for ``error_rate``."""
        if self.key == ERROR_RATE:
            return self.limit
        return (100 - LATENCY_KEYS[self.key][1]) / 100

    def text(self) -> str:
        """For example ``ttft_p99_ms <= 500``."""
        return f"{self.metric} {'>=' if self.is_floor else '<='} {self.limit:g}"


def merge_objectives(*layers: Mapping[str, float | None]) -> tuple[Objective, ...]:
    """The objectives of one step; later layers (model, then step) override earlier ones key by key."""
    merged: dict[str, float | None] = {}
    for layer in layers:
        merged.update(layer)
    return tuple(Objective(key, limit) for key, limit in sorted(merged.items()) if limit is not None)


def goodput_limits_s(objectives: tuple[Objective, ...]) -> dict[str, float]:
    """The strictest limit of each latency that a single request has; goodput counts the requests within all of them."""
    limits: dict[str, float] = {}
    for objective in objectives:
        if objective.latency in GOODPUT_LATENCIES:
            limits[objective.latency] = min(limits.get(objective.latency, objective.limit_s), objective.limit_s)
    return limits

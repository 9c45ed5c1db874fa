"""What a growing queue means for the objectives: when each would be broken, and how certain that is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllm_stage.measurement.metrics import latency_s
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.statistics import nearest_rank
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.engine_load import EngineLoad
from pytest_vllm_stage.slo.objectives import LATENCY_KEYS, Objective
from pytest_vllm_stage.slo.steadiness import IN_ENGINE, Steadiness, Trend, seconds_until

#: The objectives have to hold for ten minutes unless the profile sets another time.
HORIZON_S = 600.0


@dataclass(frozen=True)
class Growth:
    """A step that is not steady and would break an objective within the horizon.

    Attributes:
        outcome: Fail where that is certain, otherwise inconclusive.
        why: The numbers in a sentence.
    """

    outcome: Outcome
    why: str


def judge_growth(
    measurement: Measurement,
    objectives: Sequence[Objective],
    steadiness: Steadiness,
    load: EngineLoad,
    horizon_s: float = HORIZON_S,
) -> Growth | None:
    """Judge a step's trends; None where no objective would be broken.

    A broken objective is certain where the latency's trend is significant, the lower bound of its slope also breaks
    the objective within the horizon, and the engine confirms it: its batch is always full and requests wait. In a
    closed loop it is never certain, since a machine may be slow for a while.
    """
    broken = []
    certain = False
    for objective in objectives:
        trend = steadiness.trend(objective.latency or "")
        if trend is None or not trend.rises:
            continue
        margin_s = _margin_s(measurement, objective, trend)
        at_s = seconds_until(trend, objective.limit_s, margin_s)
        if at_s is None or at_s > horizon_s:
            continue
        least_s = seconds_until(trend, objective.limit_s, margin_s, least=True)
        is_certain = load.always_full and least_s is not None and least_s <= horizon_s
        certain = certain or (measurement.step.open_loop and is_certain)
        name, percent, _ = LATENCY_KEYS[objective.key]
        unit = objective.key.rsplit("_", 1)[1]
        text = f"{_NAMES.get(name, name)} P{percent} would exceed {objective.limit:g} {unit} after about {at_s:.0f} s"
        broken.append(text)
    if not broken:
        return None
    parts = [_queue_text(measurement, steadiness, load), *broken]
    if load.capacity_requests_per_s is not None and load.ever_waited:
        parts.append(f"capacity about {load.capacity_requests_per_s:.2g} requests/s")
    return Growth(Outcome.FAIL if certain else Outcome.INCONCLUSIVE, "not steady: " + "; ".join(parts))


_NAMES = {"ttft": "TTFT", "tpot": "TPOT", "e2e_latency": "end-to-end latency"}


def _queue_text(measurement: Measurement, steadiness: Steadiness, load: EngineLoad) -> str:
    if not measurement.step.open_loop:
        return f"the latency rises at a constant concurrency of {measurement.step.concurrency}: the engine slows down"
    count = steadiness.trend(IN_ENGINE)
    if load.ever_waited and load.queue_growth_per_s is not None and load.queue_growth_per_s > 0:
        full = ", the KV cache is full" if load.kv_cache_full and load.batch != load.most_running else ""
        running = f" ({load.running:g} of {load.most_running:g} running{full})" if load.most_running else ""
        return f"the queue grows by {load.queue_growth_per_s:.2g} requests/s{running}"
    if count is not None and count.rises:
        return f"the requests in the engine grow by {count.slope:.2g} per second"
    return "the latency rises and the number of requests in the engine does not"


def _margin_s(measurement: Measurement, objective: Objective, trend: Trend) -> float:
    """How far the judged percentile is above the trend's line."""
    name, percent, _ = LATENCY_KEYS[objective.key]
    rest = []
    for sample in measurement.samples:
        value = latency_s(name, sample)
        if value is not None and sample.scheduled_s >= trend.at_s / 2:
            rest.append(value - trend.last - trend.slope * (sample.scheduled_s - trend.at_s))
    return max(0.0, nearest_rank(sorted(rest), percent)) if rest else 0.0

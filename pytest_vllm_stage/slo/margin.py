"""Far inside a limit: where no request took more than half of it, fewer independent requests are enough.

The correlation time of a short step is uncertain, so `dependence` asks for many of them before a pass. That protects
limits that a burst could reach. Far inside, the question can be asked at a nearer mark instead, the limit divided by
`MARGIN`: if the probability of a longer latency falls at least exponentially,

    P(X > L) <= P(X > L / m) ** m,

so that an objective which allows a share q over L is kept where at most q ** (1 / m) lie over L / m. That takes few
independent requests: 2 for a P50, 4 for a P90, 8 for a P99. The tail of rare slow requests is heavier: these are what
the ordinary rule for independent requests finds, which has to be satisfied too, and none may take more than half of the
limit. Near capacity the past says little about what follows, so the rule applies only where hardly any request waits
and nothing rises; with random arrivals a step also needs half the ordinary number of correlation times.

Where no request waited at all, a latency is the engine's own time and a small variation, which answers that overlap
share: a slow moment of half a millisecond makes the slowest tenth of them neighbours, whatever the limit is. There the
same question is asked of the variation, the time beyond the median, and the limit's distance from the median. It needs
the ordinary number of correlation times as well, and arrivals at a constant rate: with random arrivals a short step may
only have met no burst that finds the batch full.

Errors have no distance from a limit. A queue causes them only once requests wait, so where hardly any does and none
failed, an error rate is judged by the rule for independent requests alone.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from enum import IntEnum

from pytest_vllm_stage.measurement.statistics import binomial_at_most, binomial_at_most_effective, readable_number
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from pytest_vllm_stage.slo.dependence import BUSY_SHARE
from pytest_vllm_stage.slo.engine_load import EngineLoad
from pytest_vllm_stage.slo.objectives import ERROR_RATE, Objective
from pytest_vllm_stage.slo.saturation import TREND
from pytest_vllm_stage.slo.steadiness import Steadiness

#: The mark is the limit divided by this.
MARGIN = 4.0
#: No request took more than this share of the limit.
MOST_OF_LIMIT = 0.5
#: Of the requests that a pass without a margin needs: random arrivals may spare a shorter step a busy period.
MARGIN_TIMES_SHARE = 0.5


class Quiet(IntEnum):
    """How little the requests of a step disturb each other."""

    NOT = 0
    #: Hardly any request waits and nothing rises.
    CALM = 1
    #: Calm, requests arrive at a constant rate, and none waited at all.
    UNQUEUED = 2


def find_quiet(step: LoadStep, load: EngineLoad, steadiness: Steadiness, waited_share: float) -> Quiet:
    """Whether requests wait, and whether a latency or the number of requests in the engine rises.

    Args:
        step: The plan; in a closed loop no queue can grow, and no margin is needed.
        load: The engine's readings.
        steadiness: The step's trends.
        waited_share: Share of the requests that seem to have waited; counts where the engine has no readings.
    """
    waiting = waited_share if load.running is None else load.waiting_share
    if not step.open_loop or waiting > BUSY_SHARE or any(trend.p < TREND for trend in steadiness.trends):
        return Quiet.NOT
    return Quiet.UNQUEUED if waiting == 0 and step.arrivals == CONSTANT else Quiet.CALM


def is_kept_by_margin(
    objective: Objective, values: Sequence[float], design_effect: float, alpha: float, *, base_s: float = 0.0
) -> bool:
    """No request comes near the limit, and enough independent ones stay within the mark.

    Args:
        objective: On a latency.
        values: The latency of each request; infinite where it failed.
        design_effect: How many requests count as one.
        alpha: Highest probability of calling a broken objective kept.
        base_s: Latencies and the limit are measured from here.
    """
    n, share, room_s = len(values), objective.allowed_share, objective.limit_s - base_s
    if objective.latency is None or not n or max(values) - base_s > MOST_OF_LIMIT * room_s:
        return False
    above = sum(value - base_s > room_s / MARGIN for value in values)
    at_mark = binomial_at_most_effective(n / design_effect, above / design_effect, share ** (1 / MARGIN))
    return binomial_at_most(n, 0, share) <= alpha and at_mark <= alpha


def margin_reason(
    objective: Objective,
    values: Sequence[float],
    quiet: Quiet,
    design_effect: float,
    alpha: float,
    *,
    least_n: int = 1,
    random_arrivals: bool = False,
) -> str:
    """Why the objective is kept by its margin, as a clause of a message; empty where it is not.

    Args:
        objective: Any objective except a floor.
        values: The latency of each request; infinite where it failed.
        quiet: How little the requests disturb each other.
        design_effect: How many requests count as one.
        alpha: Highest probability of calling a broken objective kept.
        least_n: Requests that the correlation time of the number in the engine asks for.
        random_arrivals: Requests arrive by a Poisson process.
    """
    if quiet is Quiet.NOT or not values:
        return ""
    if objective.key == ERROR_RATE:
        kept = not any(values) and binomial_at_most(len(values), 0, objective.allowed_share) <= alpha
        return "none failed, and hardly any waited" if kept else ""
    enough = not random_arrivals or len(values) >= MARGIN_TIMES_SHARE * least_n
    if enough and is_kept_by_margin(objective, values, design_effect, alpha):
        return f"none above {100 * MOST_OF_LIMIT:g} % of the limit"
    base_s = statistics.median(values)
    if quiet is not Quiet.UNQUEUED or len(values) < least_n or base_s >= objective.limit_s:
        return ""
    if not is_kept_by_margin(objective, values, design_effect, alpha, base_s=base_s):
        return ""
    highest = max(values) * objective.limit / objective.limit_s
    return f"no request waited, none above {readable_number(highest)}"

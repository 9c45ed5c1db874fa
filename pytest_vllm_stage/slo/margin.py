"""Far inside a limit: where no request took more than half of it, fewer independent requests are enough.

The correlation time of a short step is uncertain, so `dependence` asks for many of them before a pass. That protects
limits that a burst could reach. Far inside, the question can be asked at a nearer mark instead, the limit divided by
`MARGIN`: if the probability of a longer latency falls at least exponentially,

    P(X > L) <= P(X > L / m) ** m,

so that an objective which allows a share q over L is kept where at most q ** (1 / m) lie over L / m. That takes few
independent requests: 2 for a P50, 4 for a P90, 8 for a P99. The tail of rare slow requests is heavier: these are what
the ordinary rule for independent requests finds, which has to be satisfied too, and none may take more than half of the
limit. Near capacity the past says little about what follows, so the rule applies only where hardly any request waits
and nothing rises.
"""

from __future__ import annotations

from collections.abc import Sequence

from pytest_vllm_stage.measurement.statistics import binomial_at_most, binomial_at_most_effective
from pytest_vllm_stage.slo.dependence import BUSY_SHARE
from pytest_vllm_stage.slo.engine_load import EngineLoad
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.saturation import TREND
from pytest_vllm_stage.slo.steadiness import Steadiness

#: The mark is the limit divided by this.
MARGIN = 4.0
#: No request took more than this share of the limit.
MOST_OF_LIMIT = 0.5


def is_calm(load: EngineLoad, steadiness: Steadiness, waited_share: float) -> bool:
    """Hardly any request waits, and neither a latency nor the number of requests in the engine rises.

    Args:
        load: The engine's readings.
        steadiness: The step's trends.
        waited_share: Share of the requests that seem to have waited; counts where the engine has no readings.
    """
    waiting = waited_share if load.running is None else load.waiting_share
    return waiting <= BUSY_SHARE and not any(trend.p < TREND for trend in steadiness.trends)


def is_kept_by_margin(objective: Objective, values: Sequence[float], design_effect: float, alpha: float) -> bool:
    """No request comes near the limit, and enough independent ones stay within the mark.

    Args:
        objective: On a latency.
        values: The latency of each request; infinite where it failed.
        design_effect: How many requests count as one.
        alpha: Highest probability of calling a broken objective kept.
    """
    n, share = len(values), objective.allowed_share
    if objective.latency is None or not n or max(values) > MOST_OF_LIMIT * objective.limit_s:
        return False
    above = sum(value > objective.limit_s / MARGIN for value in values)
    at_mark = binomial_at_most_effective(n / design_effect, above / design_effect, share ** (1 / MARGIN))
    return binomial_at_most(n, 0, share) <= alpha and at_mark <= alpha

"""Whether a queue alone can explain that an objective seems broken.

Near capacity a queue has busy periods that last longer than a step (Cohen 1982, "The single server queue", III.2): then
every request of the step waits, and a healthy server seems to break its objective. The step says little about the next
one. So where requests wait, a fail needs one of three things:

- a step of `dependence.LEAST_TIMES_BROKEN` correlation times and enough misses for the effective sample size,
- misses that stay misses without the wait: failed requests, and answers that take too long after their first token,
- a queue that grows, by its trend or because the offered rate is above the batch limit's: that is an overload.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from pytest_vllm_stage.measurement.metrics import latency_s
from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.slo.decision import Outcome, decide
from pytest_vllm_stage.slo.dependence import Dependence, cautious_effect, correlation_time
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.steadiness import find_trends

#: The latencies that include the time in the queue.
_WITH_WAIT = ("ttft", "e2e_latency")


def can_be_busy_period(
    objective: Objective,
    samples: Sequence[Sample],
    tied: Dependence,
    alpha: float,
    *,
    grows: bool | None = None,
) -> bool:
    """Whether one busy period of a queue that does not grow can explain the misses of an objective.

    Args:
        objective: Any objective except a floor.
        samples: In the schedule's order.
        tied: The correlation between the requests.
        alpha: Highest probability of calling a kept objective broken.
        grows: Whether the queue grows; found from the samples' trends where it is needed and not given.
    """
    if objective.latency not in _WITH_WAIT or not tied.busy or _is_broken_without_wait(objective, samples, alpha):
        return False
    return not (find_trends(samples).rising if grows is None else grows)


def _is_broken_without_wait(objective: Objective, samples: Sequence[Sample], alpha: float) -> bool:
    misses = []
    for sample in samples:
        value = latency_s(objective.latency or "", sample)
        if value is not None:
            waited_s = 0.0 if math.isinf(value) else (sample.first_token_s or 0.0) - sample.scheduled_s
            misses.append(float(value - waited_s > objective.limit_s))
    effect = cautious_effect(correlation_time(misses), len(misses))
    total = math.fsum(misses)
    found = decide(len(misses), total, objective.allowed_share, alpha_fail=alpha, design_effects=(effect, effect))
    return found.outcome is Outcome.FAIL

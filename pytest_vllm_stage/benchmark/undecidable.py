"""What the plan says before the run: load steps that are too short for any verdict on an objective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from pytest_vllm_stage.benchmark.plans import PlannedStep
from pytest_vllm_stage.slo.decision import smallest_pass
from pytest_vllm_stage.slo.objectives import Objective

#: A closed loop's number of requests is the server's to decide; one that needs a user to get more tokens per second
#: than this is named.
FAST_TOKENS_PER_S = 100.0


def find_undecidable(planned: Iterable[PlannedStep]) -> Iterator[str]:
    """A line for each step that can never pass as planned, with the duration that it needs."""
    for one in planned:
        least, objective = max(((_least(item), item.text()) for item in one.objectives), default=(0, ""))
        if one.observation or not least:
            continue
        step = one.step
        if step.planned_requests is not None and step.planned_requests < least:
            yield (
                f"{step.id} can never pass: {step.planned_requests} requests in {step.duration_s:g} s, and {objective} "
                f"needs {least} without a miss: duration_s = {math.ceil(least / step.level)} at least"
            )
        answer_s = step.duration_s * step.level / least
        if step.planned_requests is None and step.output_tokens > FAST_TOKENS_PER_S * answer_s:
            yield (
                f"{step.id} can hardly pass: {objective} needs {least} requests without a miss, so that answers of "
                f"{step.output_tokens} tokens must take under {answer_s:.2g} s in a step of {step.duration_s:g} s; at "
                f"{FAST_TOKENS_PER_S:g} tokens/s duration_s = "
                f"{math.ceil(least * step.output_tokens / FAST_TOKENS_PER_S / step.level)} at least"
            )


def _least(objective: Objective) -> int:
    """The fewest requests that can pass; an error rate of 0 and a floor are judged by whatever is there."""
    return 0 if not objective.is_of_requests or objective.allowed_share <= 0 else smallest_pass(objective.allowed_share)

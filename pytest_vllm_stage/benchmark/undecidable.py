"""What the plan says before the run: load steps that are too short for any verdict on an objective."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

from pytest_vllm_stage.benchmark.plans import PlannedStep
from pytest_vllm_stage.measurement.step import POISSON, LoadStep
from pytest_vllm_stage.slo.decision import smallest_pass
from pytest_vllm_stage.slo.dependence import LEAST_TIMES
from pytest_vllm_stage.slo.margin import MARGIN_TIMES_SHARE
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
        yield from _too_few_answers(step)
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


def _too_few_answers(step: LoadStep) -> Iterator[str]:
    """With random arrivals a pass rests on how the number of requests in the engine varies, over many answers.

    Far inside its limits a shorter step can pass too, down to `MARGIN_TIMES_SHARE` of it; so can requests that hardly
    ever meet another one.
    """
    answer_s = step.output_tokens / FAST_TOKENS_PER_S
    meet = step.arrivals == POISSON and (step.request_rate or 0) * answer_s > 1
    if meet and step.duration_s < MARGIN_TIMES_SHARE * LEAST_TIMES * answer_s:
        yield (
            f"{step.id} can hardly pass: with random arrivals a pass needs a step of {LEAST_TIMES:g} answers, and one "
            f"of {step.output_tokens} tokens takes {answer_s:.2g} s at {FAST_TOKENS_PER_S:g} tokens/s: duration_s = "
            f"{math.ceil(LEAST_TIMES * answer_s)} at least"
        )


def _least(objective: Objective) -> int:
    """The fewest requests that can pass; an error rate of 0 and a floor are judged by whatever is there."""
    return 0 if not objective.is_of_requests or objective.allowed_share <= 0 else smallest_pass(objective.allowed_share)

"""Watches a step under way and says when its verdict is certain, by the same boundaries that judge it afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllm_stage.load.plan import Step
from pytest_vllm_stage.load.samples import Sample
from pytest_vllm_stage.slo.decision import ALPHA, Outcome
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.sequential import Boundaries, boundaries
from pytest_vllm_stage.slo.verdict import misses_of, sequential


@dataclass
class _Gate:
    """One objective's count so far."""

    objective: Objective
    plan: Boundaries | None
    n: int = 0
    misses: float = 0.0
    outcome: Outcome = Outcome.INCONCLUSIVE

    def take(self, sample: Sample) -> None:
        """One more request, in the schedule's order."""
        if self.outcome is not Outcome.INCONCLUSIVE or self.objective.is_floor:
            return
        for miss in misses_of(self.objective, [sample]):
            self.n += 1
            self.misses += miss
            if self.plan is None:
                self.outcome = Outcome.FAIL if self.misses else Outcome.INCONCLUSIVE
            elif self.n <= self.plan.planned:
                self.outcome = self.plan.look(self.n, self.misses)


class EarlyDecision:
    """A watcher for the driver; see `load.driver.Watcher`.

    A step ends early when one objective is broken, or all are kept. Objectives on a rate of output, and an error rate
    of 0, can only be kept over the whole step, so that with one of these a step never passes early.

    Args:
        step: The plan.
        objectives: What is promised of it.
        alpha: As `judge` will be given.
        gates: As `judge` will be given.
    """

    def __init__(
        self, step: Step, objectives: Sequence[Objective], *, alpha: float = ALPHA, gates: int | None = None
    ) -> None:
        alpha_fail = alpha / max(1, gates or len(objectives))
        self._waiting: dict[int, Sample] = {}
        self._next = 0
        self._gates = [_Gate(objective, _plan(step, objective, alpha, alpha_fail)) for objective in objectives]
        self._enabled = step.decide_early and step.open_loop and bool(objectives)

    def __call__(self, sample: Sample) -> str | None:
        """Take a sample, in any order; ``fail`` or ``pass`` once that is certain."""
        if not self._enabled:
            return None
        self._waiting[sample.index] = sample
        while self._next in self._waiting:
            seen = self._waiting.pop(self._next)
            self._next += 1
            for gate in self._gates:
                gate.take(seen)
        return self._certain()

    def _certain(self) -> str | None:
        outcomes = [gate.outcome for gate in self._gates]
        if Outcome.FAIL in outcomes:
            return Outcome.FAIL.value
        return Outcome.PASS.value if all(outcome is Outcome.PASS for outcome in outcomes) else None


def _plan(step: Step, objective: Objective, alpha: float, alpha_fail: float) -> Boundaries | None:
    if not sequential(step, objective):
        return None
    return boundaries(step.planned_requests or 1, objective.allowed_share, alpha_pass=alpha, alpha_fail=alpha_fail)

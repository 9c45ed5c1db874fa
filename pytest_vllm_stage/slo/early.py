"""Watches a running step and reports when its verdict is certain, by the same boundaries that judge it afterwards."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.slo.decision import ALPHA, Outcome
from pytest_vllm_stage.slo.gates import PASS_NOT_BEFORE, Risks, SequentialGate, is_sequential, misses_of
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.steadiness import find_trends

#: A step that does not look steady is looked at again after this share of the plan.
LOOK_AGAIN_SHARE = 0.05


class EarlyDecision:
    """A watcher for the driver; see `load.driver.Watcher`.

    A step ends early when one objective is broken, or, in its second half, when all are kept and neither the latency
    nor the number of requests in the engine seems to rise. Objectives on an output rate, and an error rate of 0, can
    only be kept over the whole step: with one of these a step never passes early.

    Args:
        step: The plan.
        objectives: The step's objectives.
        alpha: The same value as for `judge`.
        gates: The same value as for `judge`.
    """

    def __init__(
        self, step: LoadStep, objectives: Sequence[Objective], *, alpha: float = ALPHA, gates: int | None = None
    ) -> None:
        risks = Risks.shared(alpha, gates or len(objectives))
        planned = step.planned_requests or 1
        self._planned = planned
        self._waiting: dict[int, Sample] = {}
        self._next = 0
        self._taken: list[Sample] = []
        self._look_at = 0
        self._gates = [SequentialGate(one, planned, risks) for one in objectives if is_sequential(step, one)]
        self._strict = [one for one in objectives if not one.is_floor and one.allowed_share <= 0]
        self._only_whole = len(self._gates) < len(objectives)
        self._enabled = step.decide_early and step.open_loop and bool(objectives)
        self._broken = False
        self._least_for_pass = PASS_NOT_BEFORE * planned

    def __call__(self, sample: Sample) -> str | None:
        """Add a sample, in any order; return ``fail`` or ``pass`` once that is certain."""
        if not self._enabled:
            return None
        self._waiting[sample.index] = sample
        while self._next in self._waiting:
            self._take(self._waiting.pop(self._next))
            self._next += 1
        return self._certain()

    def _take(self, sample: Sample) -> None:
        self._taken.append(sample)
        for gate in self._gates:
            gate.take(sample)
        self._broken = self._broken or any(sum(misses_of(one, [sample])) > 0 for one in self._strict)

    def _certain(self) -> str | None:
        certain = [gate.outcome for gate in self._gates if gate.certain]
        if self._broken or Outcome.FAIL in certain:
            return Outcome.FAIL.value
        kept = not self._only_whole and len(certain) == len(self._gates) and self._next >= self._least_for_pass
        return Outcome.PASS.value if kept and self._steady() else None

    def _steady(self) -> bool:
        """Whether no trend is likely; checked only now and then, since tokens are being timed meanwhile."""
        if self._next < self._look_at:
            return False
        self._look_at = self._next + max(1, round(LOOK_AGAIN_SHARE * self._planned))
        return not find_trends(self._taken).doubtful

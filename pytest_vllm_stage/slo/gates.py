"""The judgement of one objective: which requests missed it, and the decision, after the step or while it runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pytest_vllm_stage.measurement.metrics import gaps_s, latency_s
from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.statistics import readable_number
from pytest_vllm_stage.measurement.step import POISSON, LoadStep
from pytest_vllm_stage.slo.decision import ALPHA, Decision, Outcome, decide, p_values, smallest_pass
from pytest_vllm_stage.slo.dependence import Dependence, find_dependence
from pytest_vllm_stage.slo.margin import Quiet, margin_reason
from pytest_vllm_stage.slo.objectives import ERROR_RATE, Objective
from pytest_vllm_stage.slo.sequential import boundaries, spent
from pytest_vllm_stage.slo.throughput import judge_floor
from pytest_vllm_stage.slo.waiting import can_be_busy_period

#: A decision that the effective sample size does not support yet is checked again after this share of the plan.
_LOOK_AGAIN_SHARE = 0.05
#: No pass before this share of the plan: a queue that grows slowly looks healthy at first.
PASS_NOT_BEFORE = 0.5
#: No early pass where requests depend on each other more than this: each look is another chance to meet a quiet time.
_MOST_EFFECT_EARLY = 1.5


@dataclass(frozen=True)
class GateVerdict:
    """The verdict on one objective.

    Attributes:
        objective: The objective.
        outcome: Pass, fail or inconclusive.
        observed: The metric's value; None where there is none.
        n: Requests behind the decision.
        effective_n: The effective sample size; fewer than ``n`` where requests depend on each other.
        misses: Requests over the limit; for token gaps the sum of each answer's share.
        p_broken: Probability of such a result if the objective were just kept.
        needs: Requests that would decide; None where it is decided or no number would.
        decided_after: Requests that the sequential rule needed; None with the fixed rule, or undecided.
        why: The numbers in a sentence.
    """

    objective: Objective
    outcome: Outcome
    observed: float | None
    n: int
    effective_n: int
    misses: float
    p_broken: float
    needs: int | None
    decided_after: int | None
    why: str


@dataclass(frozen=True)
class Risks:
    """The accepted probabilities of a wrong verdict.

    Attributes:
        broken_passes: Highest probability of passing a step with a broken objective.
        kept_fails: Highest probability of failing one objective that is kept.
    """

    broken_passes: float = ALPHA
    kept_fails: float = ALPHA

    @staticmethod
    def shared(alpha: float, gates: int) -> Risks:
        """A step may pass wrongly with probability alpha; all gates of a run share the alpha of a wrong fail.

        A step passes only when all its objectives do, so their number does not raise the risk of a wrong pass.
        """
        return Risks(alpha, alpha / max(1, gates))


def misses_of(objective: Objective, samples: Sequence[Sample]) -> list[float]:
    """The share of each request that missed the objective, 0 to 1, in the schedule's order.

    Requests to which the objective does not apply are left out. A whole request misses or not; for token gaps it is
    the share of its gaps that are over the limit.
    """
    return [miss for sample in samples if (miss := _miss(objective, sample)) is not None]


def values_of(objective: Objective, samples: Sequence[Sample]) -> list[float]:
    """The judged value of each of these requests, larger is worse; for token gaps the longest one."""
    return [value for sample in samples if (value := _value(objective, sample)) is not None]


def _value(objective: Objective, sample: Sample) -> float | None:
    if objective.key == ERROR_RATE:
        return float(sample.failure is not None)
    if objective.latency == "itl":
        return max(gaps_s(sample), default=None)
    return latency_s(objective.latency or "", sample)


def _miss(objective: Objective, sample: Sample) -> float | None:
    if objective.latency == "itl":
        gaps = gaps_s(sample)
        return sum(gap > objective.limit_s for gap in gaps) / len(gaps) if gaps else None
    value = _value(objective, sample)
    if value is None or objective.key == ERROR_RATE:
        return value
    return float(value > objective.limit_s)


def _misses(objective: Objective, samples: Sequence[Sample], values: Sequence[float]) -> Sequence[float]:
    """The same as `misses_of`, where the values are known."""
    if objective.latency is None:
        return values
    if objective.latency == "itl":
        return misses_of(objective, samples)
    return [float(value > objective.limit_s) for value in values]


def is_sequential(step: LoadStep, objective: Objective) -> bool:
    """Whether the sequential rule judges the objective in this step."""
    return step.decide_early and step.open_loop and objective.is_of_requests and objective.allowed_share > 0


@dataclass
class SequentialGate:
    """An objective under the sequential rule; requests are added in the schedule's order.

    Attributes:
        objective: The objective.
        planned: Requests of the plan.
        risks: The accepted risks.
        random_arrivals: Requests arrive by a Poisson process.
        waiting_share: Share of the step in which requests waited; while it runs that is unknown.
        grows: Whether the queue grows; None while that is unknown.
        outcome: Inconclusive until a boundary is crossed and the effective sample size supports the same outcome.
        decided_after: Requests that the decision needed.
    """

    objective: Objective
    planned: int
    risks: Risks
    random_arrivals: bool = False
    waiting_share: float = 1.0
    grows: bool | None = None
    outcome: Outcome = Outcome.INCONCLUSIVE
    decided_after: int | None = None
    _samples: list[Sample] = field(default_factory=list)
    _misses: list[float] = field(default_factory=list)
    _values: list[float] = field(default_factory=list)
    _total: float = 0.0
    _look_at: int = 0

    @property
    def certain(self) -> bool:
        """Whether the objective is decided."""
        return self.outcome is not Outcome.INCONCLUSIVE

    def take(self, sample: Sample) -> None:
        """Add one request."""
        if self.certain or len(self._misses) >= self.planned:
            return
        self._samples.append(sample)
        miss, value = _miss(self.objective, sample), _value(self.objective, sample)
        if miss is None or value is None:
            return
        self._misses.append(miss)
        self._values.append(value)
        self._total += miss
        n = len(self._misses)
        if n >= self._look_at or n == self.planned:
            self._look(n)

    def _look(self, n: int) -> None:
        allowed, risks = self.objective.allowed_share, self.risks
        plan = boundaries(self.planned, allowed, alpha_pass=risks.broken_passes, alpha_fail=risks.kept_fails)
        crossed = plan.look(n, self._total)
        if crossed is Outcome.INCONCLUSIVE:
            return
        if crossed is Outcome.PASS and n < PASS_NOT_BEFORE * self.planned:
            return
        self._look_at = n + max(1, int(_LOOK_AGAIN_SHARE * self.planned))
        share = n / self.planned
        tied = find_dependence(self._samples, open_loop=True, random_arrivals=self.random_arrivals)
        kept_fails = spent(share, risks.kept_fails)
        waited = replace(tied, waiting_share=max(tied.waiting_share, self.waiting_share))
        burst = crossed is Outcome.FAIL and can_be_busy_period(
            self.objective, self._samples, waited, kept_fails, grows=self.grows
        )
        effects = tied.design_effects(self._values, self._misses, allowed, busy_period=burst)
        if crossed is Outcome.PASS and n < self.planned and effects[0] > _MOST_EFFECT_EARLY:
            return
        p_kept, p_broken = p_values(n, self._total, allowed, effects)
        if crossed is Outcome.PASS:
            confirmed = p_kept <= spent(share, risks.broken_passes) and n >= tied.least_n
        else:
            confirmed = p_broken <= kept_fails and (not burst or n >= tied.least_n_broken)
        if confirmed:
            self.outcome, self.decided_after = crossed, n


def judge_gate(
    step: LoadStep,
    samples: Sequence[Sample],
    objective: Objective,
    observed: float | None,
    risks: Risks,
    tied: Dependence,
    *,
    quiet: Quiet = Quiet.NOT,
    grows: bool | None = None,
) -> GateVerdict:
    """Judge an objective on a latency or on the error rate.

    Args:
        step: The plan, which decides whether the sequential rule applies.
        samples: One row per request, in the schedule's order.
        objective: Any objective except a floor.
        observed: The metric's value.
        risks: The accepted risks.
        tied: The correlation between the requests.
        quiet: How little the requests disturb each other; a large margin counts where they hardly do.
        grows: Whether the queue grows; found from the samples' trends where it is needed and not given.
    """
    values = values_of(objective, samples)
    misses = _misses(objective, samples, values)
    burst = can_be_busy_period(objective, samples, tied, risks.kept_fails, grows=grows)
    fixed = decide(
        len(misses),
        math.fsum(misses),
        objective.allowed_share,
        alpha_pass=risks.broken_passes,
        alpha_fail=risks.kept_fails,
        design_effects=tied.design_effects(values, misses, objective.allowed_share, busy_period=burst),
        least_n=tied.least_n,
        least_n_broken=tied.least_n_broken if burst else 1,
    )
    outcome, after = fixed.outcome, None
    if is_sequential(step, objective):
        random_arrivals = step.arrivals == POISSON
        gate = SequentialGate(objective, step.planned_requests or 1, risks, random_arrivals, tied.waiting_share, grows)
        for sample in samples:
            gate.take(sample)
        outcome, after = gate.outcome, gate.decided_after
    margin = ""
    if outcome is Outcome.INCONCLUSIVE:
        effect, alpha = fixed.design_effect, risks.broken_passes
        least, random_arrivals = tied.least_n, step.arrivals == POISSON
        margin = margin_reason(objective, values, quiet, effect, alpha, least_n=least, random_arrivals=random_arrivals)
    if margin:
        outcome = Outcome.PASS
    why = ", ".join(filter(None, (_why(step, objective, outcome, observed, fixed, after, risks.kept_fails), margin)))
    effective = fixed.effective_n
    return GateVerdict(
        objective, outcome, observed, fixed.n, effective, fixed.misses, fixed.p_broken, fixed.needs, after, why
    )


def _why(
    step: LoadStep,
    objective: Objective,
    outcome: Outcome,
    observed: float | None,
    fixed: Decision,
    after: int | None,
    alpha_fail: float,
) -> str:
    seen = "no value" if observed is None else f"{readable_number(observed)}"
    early = f", certain after {after}" if after is not None and after < fixed.n else ""
    text = f"{objective.text()}: {seen}, {fixed.misses:g} misses of {fixed.n} requests{early}"
    if outcome is not Outcome.INCONCLUSIVE:
        return text
    least = smallest_pass(objective.allowed_share) if objective.allowed_share > 0 else 1
    if fixed.n < least:
        return f"{text}; too few samples: a pass needs at least {least}"
    if fixed.effective_n < fixed.n:
        text = f"{text}; effective sample size about {fixed.effective_n} of {fixed.n}"
    if fixed.needs is None:
        return f"{text}; too close to call"
    if fixed.p_broken <= alpha_fail:
        reason = "a busy period of the queue can explain this"
    else:
        reason = "too few samples" if fixed.effective_n < least else "too close to call"
    return f"{text}; {reason}, about {fixed.needs} requests{_duration(step, fixed.needs)} would decide"


def _duration(step: LoadStep, requests: int) -> str:
    """How long a step with so many requests runs, where its rate is planned."""
    return f" ({math.ceil(requests / step.request_rate)} s)" if step.request_rate else ""


def judge_floor_gate(
    samples: Sequence[Sample], objective: Objective, observed: float, limits_s: dict[str, float], risks: Risks
) -> GateVerdict:
    """Judge an objective with a lower bound."""
    test = judge_floor(samples, objective.metric, observed, objective.limit, limits_s)
    outcome = Outcome.INCONCLUSIVE
    if test.p_kept <= risks.broken_passes:
        outcome = Outcome.PASS
    elif test.p_broken <= risks.kept_fails:
        outcome = Outcome.FAIL
    error = "too short for an error estimate" if test.error is None else f"standard error {test.error:.3g}"
    why = f"{objective.text()}: {readable_number(observed)} ({error})"
    n = len(samples)
    return GateVerdict(objective, outcome, observed, n, n, 0.0, test.p_broken, None, None, why)

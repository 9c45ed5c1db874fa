"""The verdict on a step: its objectives judged one by one, and whether the measurement may speak at all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pytest_vllm_stage.load.metrics import Metrics, gaps_s, json_number, latency_s, summarise
from pytest_vllm_stage.load.plan import Step
from pytest_vllm_stage.load.samples import Measurement, Sample
from pytest_vllm_stage.slo.decision import ALPHA, Outcome, decide, smallest_pass
from pytest_vllm_stage.slo.objectives import ERROR_RATE, Objective, goodput_limits_s
from pytest_vllm_stage.slo.saturation import Saturation, saturation
from pytest_vllm_stage.slo.sequential import boundaries
from pytest_vllm_stage.slo.throughput import judge_floor
from pytest_vllm_stage.slo.validity import Finding, findings

#: Raised when a field changes its meaning or goes; adding one does not raise it.
SCHEMA_VERSION = 1
#: Findings that do not decide, and still belong into the verdict's line.
_REMARKABLE = ("stalls", "engine_restarted", "buffered")


@dataclass(frozen=True)
class GateVerdict:
    """What can be said about one objective.

    Attributes:
        objective: The objective.
        outcome: Pass, fail or inconclusive.
        observed: The metric's value; None where there is none.
        n: Requests behind the decision.
        misses: Of these, over the limit; for token gaps the sum of each answer's share.
        p_broken: How likely such a result were if the objective were just kept.
        needs: Requests that would decide; None where it is decided or no number would.
        decided_after: Requests that the sequential rule took; None with the fixed rule, or undecided.
        why: The numbers in a sentence.
    """

    objective: Objective
    outcome: Outcome
    observed: float | None
    n: int
    misses: float
    p_broken: float
    needs: int | None
    decided_after: int | None
    why: str


@dataclass(frozen=True)
class StepVerdict:
    """What can be said about a step.

    Attributes:
        step: Id of the step.
        outcome: Pass, fail, inconclusive or invalid.
        why: The reason, in a line.
        gates: One an objective.
        findings: What was wrong or odd about the measurement.
        saturation: What it shows of the server's capacity.
        saved_s: Sending time that an early decision saved.
        alpha: The risk of each pass, and of a false fail over all gates of the run.
    """

    step: str
    outcome: Outcome
    why: str
    gates: tuple[GateVerdict, ...]
    findings: tuple[Finding, ...]
    saturation: Saturation
    saved_s: float
    alpha: float

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        gates = [
            asdict(gate)
            | {"objective": gate.objective.key, "limit": gate.objective.limit, "observed": json_number(gate.observed)}
            for gate in self.gates
        ]
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "gates": gates}


def misses_of(objective: Objective, samples: Sequence[Sample]) -> list[float]:
    """For each request that the objective speaks of, in the schedule's order: how much of it missed, 0 to 1.

    A whole request misses or not; of the gaps between its tokens a share may miss.
    """
    if objective.key == ERROR_RATE:
        return [float(sample.failure is not None) for sample in samples]
    if objective.latency == "itl":
        groups = [group for sample in samples if (group := gaps_s(sample))]
        return [sum(gap > objective.limit_s for gap in group) / len(group) for group in groups]
    name = objective.latency or ""
    values = [value for sample in samples if (value := latency_s(name, sample)) is not None]
    return [float(value > objective.limit_s) for value in values]


def judge(
    measurement: Measurement,
    objectives: Sequence[Objective],
    *,
    alpha: float = ALPHA,
    gates: int | None = None,
) -> tuple[Metrics, StepVerdict]:
    """Derive the metrics and judge the step; pure, so saved samples are judged as live ones are.

    Args:
        measurement: What was measured.
        objectives: What is promised; without any the step is measured, and the verdict is inconclusive.
        alpha: Highest probability of passing a step with a broken objective, and of failing any step of a healthy run.
        gates: Objectives over all steps of the run, which share the risk of a false fail; default: this step's.

    Returns:
        The metrics and the verdict.
    """
    limits_s = goodput_limits_s(tuple(objectives))
    metrics = summarise(measurement.samples, measurement.step, limits_s=limits_s or None)
    alpha_fail = alpha / max(1, gates or len(objectives))
    judged = tuple(_gate(measurement, metrics, objective, objectives, alpha, alpha_fail) for objective in objectives)
    found = findings(measurement, metrics, objectives)
    state = saturation(measurement)
    outcome, why = _overall(metrics, judged, found, state)
    saved_s = measurement.early_stop.saved_s if measurement.early_stop else 0.0
    return metrics, StepVerdict(measurement.step.id, outcome, why, judged, found, state, saved_s, alpha)


def _overall(
    metrics: Metrics, gates: Sequence[GateVerdict], found: Sequence[Finding], state: Saturation
) -> tuple[Outcome, str]:
    invalid = [finding.text for finding in found if finding.invalidates]
    if invalid:
        return Outcome.INVALID, "; ".join(invalid)
    remarks = "".join(f"; {finding.text}" for finding in found if finding.name in _REMARKABLE)
    if metrics.vacuous:
        kinds = _failures_text(metrics)
        return Outcome.FAIL, f"vacuous: not one token came from {metrics.requests} requests ({kinds})"
    failed = [gate.why for gate in gates if gate.outcome is Outcome.FAIL]
    if metrics.failed and failed:
        remarks = f"; failed requests: {_failures_text(metrics)}{remarks}"
    if state.saturated:
        return Outcome.FAIL, "; ".join([state.message, *failed]) + remarks
    if failed:
        return Outcome.FAIL, "; ".join(failed) + remarks
    open_gates = [gate.why for gate in gates if gate.outcome is not Outcome.PASS]
    if open_gates or not gates:
        return Outcome.INCONCLUSIVE, "; ".join(open_gates or ["no objective is set for this step"]) + remarks
    return Outcome.PASS, f"{len(gates)} of {len(gates)} objectives kept{remarks}"


def _failures_text(metrics: Metrics) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in metrics.failed.items()) or "none failed"


def _gate(
    measurement: Measurement,
    metrics: Metrics,
    objective: Objective,
    objectives: Sequence[Objective],
    alpha: float,
    alpha_fail: float,
) -> GateVerdict:
    observed = metrics.flat().get(objective.metric)
    if objective.is_floor:
        limits_s = goodput_limits_s(tuple(objectives))
        return _floor_gate(measurement, objective, observed or 0.0, limits_s, alpha, alpha_fail)
    misses = misses_of(objective, measurement.samples)
    n, total = len(misses), math.fsum(misses)
    fixed = decide(n, total, objective.allowed_share, alpha_pass=alpha, alpha_fail=alpha_fail)
    outcome, after = fixed.outcome, None
    if sequential(measurement.step, objective):
        plan = boundaries(
            measurement.step.planned_requests or 1, objective.allowed_share, alpha_pass=alpha, alpha_fail=alpha_fail
        )
        outcome, looked = plan.first_crossing(misses)
        after = looked if outcome is not Outcome.INCONCLUSIVE else None
    why = _why(objective, outcome, observed, n, total, fixed.needs, after)
    return GateVerdict(objective, outcome, observed, n, total, fixed.p_broken, fixed.needs, after, why)


def sequential(step: Step, objective: Objective) -> bool:
    """The objective is judged by the sequential rule in this step."""
    return step.decide_early and step.open_loop and not objective.is_floor and objective.allowed_share > 0


def _why(
    objective: Objective,
    outcome: Outcome,
    observed: float | None,
    n: int,
    misses: float,
    needs: int | None,
    after: int | None,
) -> str:
    seen = "no value" if observed is None else f"{observed:.4g}"
    early = f", certain after {after}" if after is not None and after < n else ""
    text = f"{objective.text()}: {seen}, {misses:g} misses of {n} requests{early}"
    if outcome is not Outcome.INCONCLUSIVE:
        return text
    least = smallest_pass(objective.allowed_share) if objective.allowed_share > 0 else 1
    if n < least:
        return f"{text}; too few samples: a pass takes {least} at least"
    return f"{text}; too close to call{f', about {needs} requests would decide' if needs else ''}"


def _floor_gate(
    measurement: Measurement,
    objective: Objective,
    observed: float,
    limits_s: dict[str, float],
    alpha: float,
    alpha_fail: float,
) -> GateVerdict:
    test = judge_floor(measurement.samples, objective.metric, observed, objective.limit, limits_s)
    outcome = Outcome.INCONCLUSIVE
    if test.p_kept <= alpha:
        outcome = Outcome.PASS
    elif test.p_broken <= alpha_fail:
        outcome = Outcome.FAIL
    error = "too short for an error estimate" if test.error is None else f"standard error {test.error:.3g}"
    why = f"{objective.text()}: {observed:.4g} ({error})"
    n = len(measurement.samples)
    return GateVerdict(objective, outcome, observed, n, 0.0, test.p_broken, None, None, why)

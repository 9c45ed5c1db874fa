"""The judgement of a step's objectives: everything that decides, without the numbers that are only shown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_vllm_stage.measurement.metrics import LATENCIES, PERCENTS, as_if_ended
from pytest_vllm_stage.measurement.samples import Measurement, Sample
from pytest_vllm_stage.measurement.step import POISSON
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.dependence import Dependence, find_dependence
from pytest_vllm_stage.slo.engine_load import EngineLoad, find_engine_load
from pytest_vllm_stage.slo.gates import GateVerdict, Risks, judge_floor_gate, judge_gate, values_of
from pytest_vllm_stage.slo.growth import HORIZON_S, Growth, judge_growth
from pytest_vllm_stage.slo.margin import find_quiet
from pytest_vllm_stage.slo.objectives import Objective, goodput_limits_s
from pytest_vllm_stage.slo.saturation import Saturation, saturation
from pytest_vllm_stage.slo.steadiness import Steadiness, find_closed_trends, find_trends


@dataclass(frozen=True)
class Judgement:
    """What decides a possible and valid step.

    Attributes:
        gates: One per objective.
        growth: A trend that would break an objective within the horizon; None without one.
        saturation: Whether the step saturated the server.
        steadiness: The step's trends.
        load: The engine's load.
        tied: The correlation between the requests.
    """

    gates: tuple[GateVerdict, ...]
    growth: Growth | None
    saturation: Saturation
    steadiness: Steadiness
    load: EngineLoad
    tied: Dependence

    @property
    def outcome(self) -> Outcome:
        """Fail if anything is certainly wrong, pass if every objective is kept and nothing grows."""
        grows = self.growth.outcome if self.growth else Outcome.PASS
        outcomes = {gate.outcome for gate in self.gates}
        if self.saturation.saturated or Outcome.FAIL in outcomes or grows is Outcome.FAIL:
            return Outcome.FAIL
        return Outcome.PASS if {grows, *outcomes} == {Outcome.PASS} and outcomes else Outcome.INCONCLUSIVE

    def reasons(self) -> list[str]:
        """Why, as clauses of a message, the most important one first."""
        failed = [gate.why for gate in self.gates if gate.outcome is Outcome.FAIL]
        if self.saturation.saturated:
            return [self.saturation.message, *failed]
        reasons = [self.growth.why] if self.growth else []
        if self.outcome is Outcome.FAIL:
            return [*reasons, *failed]
        reasons += [gate.why for gate in self.gates if gate.outcome is not Outcome.PASS]
        if not reasons and self.gates:
            return [f"{len(self.gates)} of {len(self.gates)} objectives kept"]
        return reasons or ["no objective is set for this step"]

    def effective_sizes(self, samples: Sequence[Sample]) -> dict[str, int]:
        """The effective sample size of each latency percentile, by its name; a judged one's is that of its verdict."""
        sizes = {}
        for name, (unit, _) in LATENCIES.items():
            values = values_of(Objective(f"{name}_p50_{unit}", 0.0), samples)
            for percent in PERCENTS:
                sizes[f"{name}_p{percent}_{unit}"] = self.tied.effective_size(values, percent)
        return sizes | {gate.objective.key: gate.effective_n for gate in self.gates if gate.objective.latency}


def judge_objectives(
    measurement: Measurement,
    objectives: Sequence[Objective],
    risks: Risks,
    *,
    observed: Mapping[str, float | None] | None = None,
    horizon_s: float = HORIZON_S,
) -> Judgement:
    """Judge the objectives of a step.

    Args:
        measurement: The measurement; not checked for being possible.
        objectives: The step's objectives.
        risks: The accepted risks.
        observed: The metrics by their full name; only floors need them for more than the reason's text.
        horizon_s: How long the objectives have to hold.
    """
    step, samples, metrics = measurement.step, measurement.samples, observed or {}
    load = find_engine_load(measurement)
    tied = find_dependence(
        samples,
        open_loop=step.open_loop,
        random_arrivals=step.arrivals == POISSON,
        waiting_share=load.waiting_share,
    )
    steadiness = find_trends(samples) if step.open_loop else Steadiness()
    quiet = find_quiet(step, load, steadiness, tied.waiting_share)
    grows = steadiness.rising or load.exceeded_by(step.request_rate)
    limits_s = goodput_limits_s(tuple(objectives))

    def judged(objective: Objective, rows: Sequence[Sample]) -> GateVerdict:
        value = metrics.get(objective.metric)
        if objective.is_floor:
            return judge_floor_gate(rows, objective, value or 0.0, limits_s, risks)
        return judge_gate(step, rows, objective, value, risks, tied, quiet=quiet, grows=grows)

    gates = [judged(objective, samples) for objective in objectives]
    if any(sample.abandoned for sample in samples):
        ended = as_if_ended(samples)
        gates = [_where_certain(gate, judged(gate.objective, ended)) for gate in gates]
    return Judgement(
        gates=tuple(gates),
        growth=judge_growth(
            measurement,
            objectives,
            steadiness if step.open_loop else find_closed_trends(samples),
            load,
            horizon_s,
        ),
        saturation=saturation(measurement, load, steadiness),
        steadiness=steadiness,
        load=load,
        tied=tied,
    )


def _where_certain(worst: GateVerdict, best: GateVerdict) -> GateVerdict:
    """The verdict on an objective where it does not depend on requests that were abandoned.

    Args:
        worst: The verdict with each of them as a request that was never answered.
        best: The verdict with each of them as if it had been answered when it was abandoned.
    """
    if worst.outcome is best.outcome and not worst.objective.is_floor:
        return worst
    why = f"{best.why}; the abandoned requests leave it open"
    return replace(best, outcome=Outcome.INCONCLUSIVE, decided_after=None, needs=None, why=why)

"""Holm's rule over all steps of a run, which finds more broken objectives at the same risk of a false fail.

Each step is judged while the run goes on and may spend only its share of alpha. Once all steps are known, Holm's
step-down rule gives the share that the rejected ones did not need to the next ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from pytest_vllm_stage.measurement.statistics import readable_number
from pytest_vllm_stage.slo.decision import ALPHA, Outcome, holm
from pytest_vllm_stage.slo.gates import GateVerdict
from pytest_vllm_stage.slo.verdict import StepVerdict


def judge_run(
    verdicts: Sequence[StepVerdict], *, sequential: Sequence[str] = (), alpha: float = ALPHA
) -> list[StepVerdict]:
    """The verdicts of a run, with undecided objectives failed where Holm's rule allows it.

    Invalid steps are left out. Steps under the sequential rule, and those that were measured twice, keep their
    verdicts: a p-value at a time that depends on the data is not valid.

    Args:
        verdicts: One per step.
        sequential: Ids of the steps that were judged by the sequential rule, or by a second measurement.
        alpha: Risk of a false fail over the whole run.
    """
    places = [
        (i, k)
        for i, verdict in enumerate(verdicts)
        if verdict.outcome is not Outcome.INVALID
        for k in range(len(verdict.gates))
    ]
    broken = holm([verdicts[i].gates[k].p_broken for i, k in places], alpha)
    found = {place for place, falls in zip(places, broken, strict=True) if falls}
    return [
        verdict if verdict.step in sequential else _with_fails(verdict, [k for j, k in found if j == i])
        for i, verdict in enumerate(verdicts)
    ]


def _with_fails(verdict: StepVerdict, broken: Sequence[int]) -> StepVerdict:
    gates = [_failed(gate) if k in broken else gate for k, gate in enumerate(verdict.gates)]
    new = [gate.why for before, gate in zip(verdict.gates, gates, strict=True) if gate is not before]
    if not new:
        return verdict
    why = "; ".join(new) if verdict.outcome is not Outcome.FAIL else "; ".join([verdict.why, *new])
    return replace(verdict, outcome=Outcome.FAIL, gates=tuple(gates), why=why)


def _failed(gate: GateVerdict) -> GateVerdict:
    if gate.outcome is not Outcome.INCONCLUSIVE:
        return gate
    numbers = (
        f"{gate.objective.text()}: {readable_number(gate.observed)}"
        if gate.observed is not None
        else gate.objective.text()
    )
    why = f"{numbers}, {gate.misses:g} misses of {gate.n} requests; broken by Holm's rule over the run"
    return replace(gate, outcome=Outcome.FAIL, needs=None, why=why)

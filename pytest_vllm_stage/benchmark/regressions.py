"""Compares a run's load steps with the accepted earlier runs of a folder, and appends this run to them.

A step that looks slower than its baseline is measured twice more at once, while nothing else runs: only what is slow
again is a regression. What the history says beyond the single run, a change point, is reported and fails nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from pytest_vllm_stage.benchmark import plans, steps
from pytest_vllm_stage.benchmark.artifacts import read_result, write_step
from pytest_vllm_stage.benchmark.plans import PlannedStep
from pytest_vllm_stage.benchmark.steps import StepResult
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.settings.slo_tables import RegressionTable
from pytest_vllm_stage.slo import trend
from pytest_vllm_stage.slo.baselines import Baseline, append_baseline, comparable, make_key, read_baselines, why_none
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.regression import LEAST_HISTORY, RERUNS, RegressionGate, State, accepts, gate_all, worst
from pytest_vllm_stage.slo.verdict import judge
from pytest_vllm_stage.stage.revision import Serving

#: The reruns' files lie apart from the promised steps, which reports and publication are made of.
FOLDER = "reruns"
#: Change points are looked for among so many runs: the search takes the square of their number.
TREND_RUNS = 50

#: Fields of a step that do not make its load another one: the key has the step and the model as fields of its own.
_NOT_OF_THE_LOAD = ("id", "role", "variant", "model", "seed")

#: Measures a step as the run measures it.
Remeasure = Callable[[PlannedStep], Measurement]


@dataclass(frozen=True)
class Comparison:
    """One step compared with its history.

    Attributes:
        step: The step's id.
        gates: A gate a metric.
        runs: How many accepted runs could be compared with.
        reruns: How often the step was measured again.
        notes: What else a person should know: why there is nothing to compare with, and where the history changed.
    """

    step: str
    gates: tuple[RegressionGate, ...]
    runs: int
    reruns: int
    notes: tuple[str, ...]

    @property
    def state(self) -> State:
        """The worst of the gates'."""
        return worst(self.gates)

    @property
    def fails(self) -> bool:
        """A metric has become worse, or a gated one is missing."""
        return any(gate.fails for gate in self.gates)

    @property
    def undecided(self) -> bool:
        """A metric looked worse, and the step could not be measured again well enough to say more."""
        return self.state is State.SUSPICIOUS

    def properties(self) -> dict[str, float | str]:
        """For ``user_properties`` and JUnit."""
        baselines = {
            f"regression.baseline.{gate.metric}": gate.baseline for gate in self.gates if gate.baseline is not None
        }
        return {"regression.state": self.state.value, "regression.text": self.text(), **baselines}

    def text(self) -> str:
        """One line for people; the numbers only of what changed."""
        reasons = [gate.why for gate in self.gates if gate.state is not State.OK or gate.fails]
        count = f"{self.runs} accepted run{'' if self.runs == 1 else 's'}"
        return "; ".join([f"{self.step}: {self.state.value} compared with {count}", *reasons, *self.notes])


def compare(run: Run, result: StepResult, serving: Serving, remeasure: Remeasure) -> Comparison | None:
    """Compare a promised step with its history, measure it again where that looks worse, and append it.

    Args:
        run: The run.
        result: The step as measured; its files are written.
        serving: What answered.
        remeasure: Measures a step once more.

    Returns:
        None where nothing is compared: the run names no folder, or the step is an observation.

    Raises:
        ConfigError: a line of the folder's file is wrong.
        StageError: the step could not be measured again.
    """
    folder = run.config.baselines
    if folder is None or result.planned.observation:
        return None
    rule = run.config.profile.regression
    path = plans.baselines_file(run.config, folder)
    data = read_result(steps.folder_of(run) / f"{result.planned.step.id}.json")
    key = _key(result, data, serving)
    known = [one for one in read_baselines(path) if one.key["step"] == key["step"] and one.key["model"] == key["model"]]
    history = comparable(known, key)
    comparison = _judge(run, result, rule, history, remeasure)
    if len(history) < LEAST_HISTORY and known:
        comparison = replace(comparison, notes=(*comparison.notes, *_unlike(known, history, key)))
    append_baseline(path, _baseline(run, result, float(data["started_at"]), key, comparison))
    run.journal.event(
        "regression",
        comparison.step,
        state=comparison.state.value,
        fails=comparison.fails,
        text=comparison.text(),
        notes=list(comparison.notes),
        metrics={gate.metric: {"value": _number(gate.value), "baseline": gate.baseline} for gate in comparison.gates},
        runs=comparison.runs,
        reruns=comparison.reruns,
    )
    return comparison


def _judge(
    run: Run, result: StepResult, rule: RegressionTable, history: list[Baseline], remeasure: Remeasure
) -> Comparison:
    past = [one.metrics for one in history]
    valid = result.verdict.outcome is not Outcome.INVALID
    now = result.metrics.flat()
    gates = gate_all(now, rule.metrics, past, valid=valid, worse=rule.worse)
    again: list[Mapping[str, float | None]] = []
    if State.SUSPICIOUS in [gate.state for gate in gates]:
        run.journal.say(f"{result.planned.step.id}: slower than its baseline, so it is measured {RERUNS} times more")
        again = _reruns(run, result.planned, remeasure)
        gates = gate_all(now, rule.metrics, past, reruns=again, valid=valid, worse=rule.worse)
    notes = [note for name in rule.metrics for note in _changes(name, history, now.get(name))]
    return Comparison(result.planned.step.id, gates, len(history), len(again), tuple(notes))


def _reruns(run: Run, planned: PlannedStep, remeasure: Remeasure) -> list[Mapping[str, float | None]]:
    """The metrics of the reruns that may speak at all."""
    found: list[Mapping[str, float | None]] = []
    for number in range(1, RERUNS + 1):
        step = planned.step
        # Other prompts: these are in the prefix cache by now.
        again = replace(step, variant=f"rerun-{number}", seed=step.seed + 10_000 * number)
        measurement = remeasure(replace(planned, step=again))
        metrics, verdict = judge(measurement, planned.objectives)
        write_step(steps.folder_of(run) / FOLDER, measurement, metrics, verdict)
        if verdict.outcome is not Outcome.INVALID:
            found.append(metrics.flat())
    return found


def _changes(metric: str, history: list[Baseline], now: float | None) -> list[str]:
    """The last change point of a metric's history, this run included."""
    dated = [(one.run_id, one.metrics[metric]) for one in history[-TREND_RUNS:] if metric in one.metrics]
    values = [value for _, value in dated]
    if now is not None and math.isfinite(now):
        values.append(now)
    found = trend.changes(values)
    if not found:
        return []
    last = found[-1]
    since = dated[last.at][0] if last.at < len(dated) else "this one"
    return [
        f"{metric} changed with run {since}: {last.before:.4g} before, {last.after:.4g} since "
        f"(p = {last.p:.2g}; reported, not gated)"
    ]


def _unlike(known: list[Baseline], history: list[Baseline], key: Mapping[str, str]) -> list[str]:
    """Why the runs that are there cannot be compared with, where too few can."""
    unlike = [one for one in known if one not in history and one.accepted]
    return [why_none(unlike, key)] if unlike else []


def _baseline(run: Run, result: StepResult, at: float, key: Mapping[str, str], comparison: Comparison) -> Baseline:
    metrics = {name: value for name, value in result.metrics.flat().items() if value is not None}
    return Baseline(
        run_id=run.run_id,
        at=at,
        key=key,
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        state=comparison.state.value,
        accepted=accepts(comparison.gates),
    )


def _key(result: StepResult, data: Mapping[str, Any], serving: Serving) -> dict[str, str]:
    """What makes two runs comparable."""
    step, facts = result.planned.step, data["facts"]
    driver, _, version = str(data["client"]["driver"]).partition(" ")
    plan = {name: value for name, value in step.to_json().items() if name not in _NOT_OF_THE_LOAD}
    engine = "simulated" if facts.get("simulated") else f"vllm {facts.get('engine_version', '')}".strip()
    return make_key(
        model=str(data["step"]["model"]),
        image_digest=f"{engine} {serving.image}".strip(),
        vllm_arguments=serving.arguments,
        gpu=serving.gpu,
        step=step.id,
        prompt_set=" ".join(f"{name}={value}" for name, value in sorted(plan.items()) if value is not None),
        driver=driver,
        driver_version=version,
    )


def _number(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None

"""Carries out one load step of a run: prompts, load, verdict, artifacts; and judges an earlier run's steps again."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_vllm_stage.benchmark import plans
from pytest_vllm_stage.benchmark.artifacts import read_measurements, write_csv, write_step
from pytest_vllm_stage.benchmark.plans import PlannedStep
from pytest_vllm_stage.load import prepare, process
from pytest_vllm_stage.load.driver import Job, Watcher
from pytest_vllm_stage.load.guidellm.writing import write_report
from pytest_vllm_stage.load.prompts import PromptMaker
from pytest_vllm_stage.measurement.metrics import Metrics, json_number
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.samples_file import SUFFIX, as_saved, read_measurement
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.serving.client import Client, RequestFailed
from pytest_vllm_stage.serving.target import is_simulated
from pytest_vllm_stage.settings.config import StageConfig
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.run_verdict import judge_run
from pytest_vllm_stage.slo.verdict import StepVerdict, judge

#: The bearer token of --stage-gpu-metrics; a variable alone, since a command line is there for all to read.
#: What an observation is called where a verdict would stand.
OBSERVED = "observed"
FOLDER = "benchmarks"
#: Each step once more, as a report that GuideLLM's users can read with their tools.
GUIDELLM_SUFFIX = ".guidellm.json"


def folder_of(run: Run) -> Path:
    """Where the run's load steps leave their files."""
    return run.directory / FOLDER


@dataclass(frozen=True)
class StepResult:
    """A step that was measured and judged.

    Attributes:
        planned: The plan.
        metrics: What the samples say.
        verdict: What follows.
    """

    planned: PlannedStep
    metrics: Metrics
    verdict: StepVerdict

    @property
    def outcome(self) -> str:
        """``pass``, ``fail``, ``inconclusive``, ``invalid``; an observation that is valid is ``observed``."""
        outcome = self.verdict.outcome
        return OBSERVED if self.planned.observation and outcome is not Outcome.INVALID else outcome.value

    @property
    def undecided(self) -> bool:
        """Something was promised of the step and nothing can be said of it; of an observation nothing is promised."""
        return not self.planned.observation and self.verdict.outcome in (Outcome.INCONCLUSIVE, Outcome.INVALID)

    def text(self) -> str:
        """One line for people."""
        return f"{self.planned.step.id}: {self.outcome}: {self.verdict.why}"

    def properties(self) -> dict[str, float | str]:
        """For ``user_properties`` and JUnit: the verdict, and every metric that is known."""
        metrics = {name: json_number(value) for name, value in self.metrics.flat().items()}
        known = {f"slo.{name}": value for name, value in metrics.items() if value is not None}
        return {"slo.step": self.planned.step.id, "slo.outcome": self.outcome, "slo.why": self.verdict.why, **known}


def carry_out(run: Run, planned: PlannedStep, client: Client, maker: PromptMaker) -> StepResult:
    """Measure a step of the run's plan, judge it, and write its files.

    Raises:
        StageError: it could not be measured.
    """
    return conclude(run, planned, measure_planned(run, planned, client, maker), plans.gates_of(_planned(run)))


def measure_planned(run: Run, planned: PlannedStep, client: Client, maker: PromptMaker) -> Measurement:
    """Send a planned step's load; it ends early where that is allowed and its verdict is certain."""
    watcher = EarlyDecision(planned.step, planned.objectives, gates=plans.gates_of(_planned(run)))
    return measure(run, planned.step, client, maker, watcher)


def measure(
    run: Run, step: LoadStep, client: Client, maker: PromptMaker, watcher: Watcher | None = None
) -> Measurement:
    """Send a step's load by the chosen driver.

    Args:
        run: The run.
        step: What is sent; its model becomes the target's.
        client: The target's.
        maker: Makes the prompts.
        watcher: May end the step early.
    """
    with run.journal.phase(f"prompts {step.id}"):
        job = prepare.prepare(
            replace(step, model=client.target.model),
            client,
            maker,
            gpu_metrics_url=run.config.gpu_metrics,
            gpu_metrics_token=run.config.gpu_metrics_token,
            facts=facts_of(run, client),
        )
    return as_saved(_drive(run, job, watcher))


def _drive(run: Run, job: Job, watcher: Watcher | None) -> Measurement:
    if run.config.load_driver == "guidellm":
        from pytest_vllm_stage.load import guidellm

        return guidellm.measure(job, run.journal)
    return process.measure(job, run.journal, watcher=watcher)


def facts_of(run: Run, client: Client) -> dict[str, Any]:
    """What labels a measurement: the run, the server's own version, and whether a stand-in answered."""
    try:
        version = client.version()
    except RequestFailed:
        version = ""  # a gateway need not show it
    return {
        "run_id": run.run_id,
        "profile": run.config.profile.name,
        "engine_version": version,
        "simulated": is_simulated(client.models()),
    }


def saved_steps(config: StageConfig) -> list[tuple[PlannedStep, Path]]:
    """The steps of --stage-results with the files that hold their samples.

    Raises:
        ConfigError: one is wrong; that there is one at all was checked with the options.
    """
    folder = config.results or Path()
    folder = folder / FOLDER if (folder / FOLDER).is_dir() else folder
    return [(plans.saved(config, step), path) for step, path in _steps_in(folder)]


@functools.cache
def _steps_in(folder: Path) -> tuple[tuple[LoadStep, Path], ...]:
    """Read once: every test of a run asks for all of them, to share the risk of a false fail."""
    return tuple((read_measurement(path).step, path) for path in sorted(folder.glob(f"*{SUFFIX}")))


def judge_saved(run: Run, path: Path) -> StepResult:
    """Judge saved samples by the profile of now, and write the run's own files of it."""
    gates = plans.gates_of(_planned(run))
    measurement = read_measurement(path)
    return conclude(run, plans.saved(run.config, measurement.step), measurement, gates)


def conclude(run: Run, planned: PlannedStep, measurement: Measurement, gates: int) -> StepResult:
    """Judge a measurement, write its files, and put the result into the journal."""
    metrics, verdict = judge(measurement, planned.objectives, gates=gates)
    write_step(folder_of(run), measurement, metrics, verdict)
    write_report(measurement, folder_of(run) / f"{planned.step.id}{GUIDELLM_SUFFIX}")
    result = StepResult(planned, metrics, verdict)
    note(run, result, measurement)
    return result


def note(run: Run, result: StepResult, measurement: Measurement) -> None:
    """Put a step's result into the journal, which every report is made from."""
    server = measurement.server
    data = {
        "role": result.planned.role,
        "model": measurement.step.model,
        "outcome": result.outcome,
        "verdict": result.verdict.outcome.value,
        "why": result.verdict.why,
        "objectives": [objective.text() for objective in result.planned.objectives],
        "saved_s": round(result.verdict.saved_s, 1),
        "driver": measurement.client.driver,
        "engine_metrics": any(reading.running is not None for reading in server),
        "gpu_metrics": any(reading.gpu_memory_used_bytes is not None for reading in server),
        "result": result.metrics.to_json(),
    }
    run.journal.event("benchmark", result.planned.step.id, **data)


def finish(run: Run) -> list[str]:
    """Judge the run as a whole by Holm's rule, and write the table of all its steps.

    Returns:
        A line for each step that only this rule fails.
    """
    folder = folder_of(run)
    if not folder.is_dir():
        return []
    plan = {planned.step.id: planned for planned in _planned(run)}
    gates = plans.gates_of(list(plan.values()))
    measured = [(plan[one.step.id], one) for one in read_measurements(folder)]
    rows = [(planned, one, *judge(one, planned.objectives, gates=gates)) for planned, one in measured]
    promised = [(planned, one, metrics, verdict) for planned, one, metrics, verdict in rows if not planned.observation]
    sequential = [one.step.id for _, one, _, _ in promised if one.step.decide_early and one.step.open_loop]
    final = {v.step: v for v in judge_run([verdict for *_, verdict in promised], sequential=sequential)}
    changed = []
    for planned, one, metrics, verdict in promised:
        if final[verdict.step].outcome is not verdict.outcome:
            result = StepResult(planned, metrics, final[verdict.step])
            write_step(folder, one, metrics, result.verdict)
            note(run, result, one)
            changed.append(result.text())
    write_csv(folder, [(one, metrics, final.get(verdict.step, verdict)) for _, one, metrics, verdict in rows])
    return changed


def _planned(run: Run) -> list[PlannedStep]:
    """The steps that this run measures, or judges again."""
    if run.config.results:
        return [planned for planned, _ in saved_steps(run.config)]
    return plans.steps_of(run.config, run.run_id)

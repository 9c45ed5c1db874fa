"""Carries out one load step of a run: prompts, load, verdict, artifacts; and judges an earlier run's steps again."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from pytest_vllm_stage.benchmark import plans
from pytest_vllm_stage.benchmark.artifacts import (
    FOLDER,
    StepArtifact,
    artifact_of,
    read_artifacts,
    write_artifact,
    write_csv,
    write_step,
)
from pytest_vllm_stage.benchmark.plans import PlannedStep
from pytest_vllm_stage.load import prepare, process
from pytest_vllm_stage.load.driver import LoadJob, Watcher
from pytest_vllm_stage.load.guidellm.writing import write_report
from pytest_vllm_stage.load.prompts import PromptMaker
from pytest_vllm_stage.measurement.metrics import Metrics, json_number
from pytest_vllm_stage.measurement.samples import PORT_FORWARD, SEVERAL_ENGINES, UNDECIDED_BEFORE, Measurement
from pytest_vllm_stage.measurement.samples_file import SUFFIX, as_saved, read_measurement
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.serving.client import EndpointClient, RequestFailed
from pytest_vllm_stage.serving.replicas import find_replicas
from pytest_vllm_stage.serving.target import DUMMY_WEIGHTS, is_simulated
from pytest_vllm_stage.settings.config import StageConfig
from pytest_vllm_stage.slo.again import find_second_duration_s, note_second, second_alpha
from pytest_vllm_stage.slo.decision import ALPHA, Outcome
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.engine_load import MAX_NUM_SEQS
from pytest_vllm_stage.slo.gateway import GATEWAY_FINDINGS
from pytest_vllm_stage.slo.run_verdict import judge_run
from pytest_vllm_stage.slo.validity import lacks_generated_tokens
from pytest_vllm_stage.slo.verdict import StepVerdict, judge
from pytest_vllm_stage.stage.reach import forwards

#: Findings that the terminal shows of steps that pass too.
SHOWN_FINDINGS = (*GATEWAY_FINDINGS, "stalls", "port_forward", "measured_twice")
#: What an observation is called where a verdict would stand.
OBSERVED = "observed"
#: First measurements that decided nothing, below the folder of the steps that count.
UNDECIDED_FOLDER = "undecided"
#: Added to a step's seed for the second one's prompts; reruns of `regressions` add multiples of 10 000.
SECOND_SEED = 5_000
#: Each step once more, as a report that GuideLLM's users can read with their tools.
GUIDELLM_SUFFIX = ".guidellm.json"


def folder_of(run: Run) -> Path:
    """Where the run's load steps leave their files."""
    return run.directory / FOLDER


def outcome_of(planned: PlannedStep, outcome: Outcome) -> str:
    """What a verdict is called: nothing is promised of an observation, so that it is only observed, or invalid."""
    return OBSERVED if planned.observation and outcome is not Outcome.INVALID else outcome.value


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
        return outcome_of(self.planned, self.verdict.outcome)

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


class LoadSource(Protocol):
    """Sends a step's load from somewhere else than this machine."""

    def measure(self, run: Run, step: LoadStep, client: EndpointClient, maker: PromptMaker) -> Measurement:
        """Send it, and return what was measured."""


def carry_out(
    run: Run, planned: PlannedStep, client: EndpointClient, maker: PromptMaker, source: LoadSource | None = None
) -> StepResult:
    """Measure a step of the run's plan, once more where that decides nothing, judge it, and write its files.

    Raises:
        StageError: it could not be measured.
    """
    gates = plans.gates_of(_planned(run))
    measurement = measure_planned(run, planned, client, maker, source)
    metrics, verdict = _judge(run, planned, measurement, gates)
    again_s = find_second_duration_s(planned.step, verdict, planned.longest_s)
    if again_s is None:
        return _keep(run, planned, measurement, metrics, verdict)
    write_step(folder_of(run) / UNDECIDED_FOLDER, measurement, metrics, verdict)
    step = planned.step
    run.journal.say(f"{step.id}: {verdict.outcome} ({verdict.why}), so it is measured once more, for {again_s:g} s")
    # Other prompts: the first ones are in the prefix cache by now.
    longer = replace(planned, step=replace(step, duration_s=again_s, seed=step.seed + SECOND_SEED))
    second = measure_planned(run, longer, client, maker, source, alpha=second_alpha(verdict))
    second = replace(second, facts={**second.facts, **note_second(verdict)})
    return conclude(run, planned, second, gates)


def measure_planned(
    run: Run,
    planned: PlannedStep,
    client: EndpointClient,
    maker: PromptMaker,
    source: LoadSource | None = None,
    *,
    alpha: float = ALPHA,
) -> Measurement:
    """Send a planned step's load; it ends early where that is allowed and its verdict is certain at that alpha."""
    gates = plans.gates_of(_planned(run))
    watcher = EarlyDecision(planned.step, planned.objectives, alpha=alpha, gates=gates, observation=planned.observation)
    return measure(run, planned.step, client, maker, watcher, source)


def measure(
    run: Run,
    step: LoadStep,
    client: EndpointClient,
    maker: PromptMaker,
    watcher: Watcher | None = None,
    source: LoadSource | None = None,
) -> Measurement:
    """Send a step's load by the chosen driver.

    Args:
        run: The run.
        step: What is sent; its model becomes the target's.
        client: The target's.
        maker: Makes the prompts.
        watcher: May end the step early, where this machine sends the load.
        source: Sends the load from the cluster; None sends it from this machine.
    """
    if source is not None:
        sent = source.measure(run, replace(step, model=client.target.model), client, maker)
        measurement = as_saved(_with_engines(sent, client))
        prepare.learn_from(measurement, maker)
        return measurement
    with run.journal.phase(f"prompts {step.id}"):
        job = prepare.prepare(
            replace(step, model=client.target.model),
            client,
            maker,
            gpu_metrics_url=run.config.gpu_metrics,
            gpu_metrics_token=run.config.gpu_metrics_token,
            facts=facts_of(run, client),
            always_warm_up=run.config.load_driver == "guidellm",
        )
    measurement = as_saved(_with_engines(_with_way(_drive(run, job, watcher), client), client))
    prepare.learn_from(measurement, maker)
    return measurement


def _with_way(measurement: Measurement, client: EndpointClient) -> Measurement:
    """The measurement, with a port-forward that its requests went through."""
    forward = forwards.find_local(client.target.base_url)
    if forward is None:
        return measurement
    fact = {"service": forward.name, "broken": forward.find_break(measurement.started_at)}
    return replace(measurement, facts={**measurement.facts, PORT_FORWARD: fact})


def _with_engines(measurement: Measurement, client: EndpointClient) -> Measurement:
    """The measurement, with the fact that several engines answer; they are looked for where one has not sent all."""
    if not lacks_generated_tokens(measurement):
        return measurement
    try:
        several = find_replicas(client)
    except RequestFailed:
        return measurement
    return replace(measurement, facts={**measurement.facts, SEVERAL_ENGINES: True}) if several else measurement


def _drive(run: Run, job: LoadJob, watcher: Watcher | None) -> Measurement:
    if run.config.load_driver == "guidellm":
        from pytest_vllm_stage.load.guidellm.run import measure

        return measure(job, run.journal)
    return process.measure(job, run.journal, watcher=watcher)


def facts_of(run: Run, client: EndpointClient) -> dict[str, Any]:
    """What labels a measurement: the run, the server's own version, and whether a stand-in answered."""
    try:
        version = client.version()
    except RequestFailed:
        version = ""  # a gateway need not show it
    limit = client.target.max_num_seqs
    return {
        "run_id": run.run_id,
        "profile": run.config.profile.name,
        "engine_version": version,
        "simulated": is_simulated(client.models()),
        **({DUMMY_WEIGHTS: True} if client.target.dummy_weights else {}),
        **({MAX_NUM_SEQS: limit} if limit is not None else {}),
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
    """Summarise and judge a measurement, once; write its files, and put the result into the journal."""
    return _keep(run, planned, measurement, *_judge(run, planned, measurement, gates))


def _judge(run: Run, planned: PlannedStep, measurement: Measurement, gates: int) -> tuple[Metrics, StepVerdict]:
    return judge(
        measurement,
        planned.objectives,
        gates=gates,
        horizon_s=plans.horizon_of(run.config, planned.role),
        promised_rate=plans.limit_of(run.config, planned.role),
    )


def _keep(
    run: Run, planned: PlannedStep, measurement: Measurement, metrics: Metrics, verdict: StepVerdict
) -> StepResult:
    artifact = artifact_of(measurement, metrics, verdict)
    folder = folder_of(run)
    write_step(folder, measurement, metrics, verdict)
    write_report(measurement, folder / f"{planned.step.id}{GUIDELLM_SUFFIX}", metrics)
    _record(run, planned, artifact)
    return StepResult(planned, metrics, verdict)


def _record(run: Run, planned: PlannedStep, artifact: StepArtifact) -> None:
    """Put a step into the journal, which every report is made from."""
    verdict = artifact.verdict
    numbers = artifact.numbers
    run.journal.event(
        "benchmark",
        planned.step.id,
        role=planned.role,
        model=artifact.step.model,
        outcome=outcome_of(planned, artifact.outcome),
        verdict=artifact.outcome.value,
        why=verdict["why"],
        objectives=[objective.text() for objective in planned.objectives],
        remarks=[one["text"] for one in verdict["findings"] if one["name"] in SHOWN_FINDINGS],
        saved_s=round(verdict["saved_s"], 1),
        driver=artifact.client.driver,
        engine_metrics=numbers.get("running_max") is not None,
        gpu_metrics=numbers.get("gpu_memory_peak_bytes") is not None,
        result=dict(artifact.metrics),
    )


def finish(run: Run) -> list[str]:
    """Judge the run as a whole by Holm's rule from the stored verdicts, and write the table of all its steps.

    May be called again: it starts from the verdict that each step had by itself.

    Returns:
        A line for each step that only this rule fails.
    """
    folder = folder_of(run)
    if not folder.is_dir():
        return []
    plan = {planned.step.id: planned for planned in _planned(run)}
    artifacts = {one.step.id: one for one in read_artifacts(folder) if one.step.id in plan}
    promised = [one for step_id, one in artifacts.items() if not plan[step_id].observation]
    # A second measurement has spent its own share of alpha.
    sequential = [
        one.step.id
        for one in promised
        if (one.step.decide_early and one.step.open_loop) or UNDECIDED_BEFORE in one.facts
    ]
    changed = []
    for verdict in judge_run([one.own_verdict() for one in promised], sequential=sequential):
        before, planned = artifacts[verdict.step], plan[verdict.step]
        after = before.with_run_verdict(verdict)
        if after is before:
            continue
        changed.append(f"{verdict.step}: {outcome_of(planned, verdict.outcome)}: {verdict.why}")
        if after != before:
            write_artifact(folder, after)
            _record(run, planned, after)
            artifacts[verdict.step] = after
    write_csv(folder, list(artifacts.values()))
    return changed


def _planned(run: Run) -> list[PlannedStep]:
    """The steps that this run measures, or judges again."""
    if run.config.results:
        return [planned for planned, _ in saved_steps(run.config)]
    return plans.steps_of(run.config, run.run_id)

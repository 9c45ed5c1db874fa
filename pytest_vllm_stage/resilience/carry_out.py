"""Carries out one disruption: traffic, the change, the verdict on the window around it, the way back, health."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pytest_vllm_stage.benchmark import plans
from pytest_vllm_stage.benchmark.steps import facts_of
from pytest_vllm_stage.core.errors import StageFailure, WaitFailed
from pytest_vllm_stage.core.files import write_atomically
from pytest_vllm_stage.core.journal import Journal, read_events
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.load import prepare
from pytest_vllm_stage.load.prompts import PromptMaker
from pytest_vllm_stage.measurement.metrics import json_number, summarise
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.samples_file import SUFFIX, write_measurement
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from pytest_vllm_stage.resilience.causes import explain
from pytest_vllm_stage.resilience.disruptions import (
    Disruption,
    Drain,
    EngineKilled,
    PodKilled,
    ReadinessLost,
    Rollout,
    Scaled,
    grown,
)
from pytest_vllm_stage.resilience.publication import PublicationDisrupted
from pytest_vllm_stage.resilience.site import Site
from pytest_vllm_stage.resilience.traffic import Traffic, running
from pytest_vllm_stage.resilience.window import FOLDER, Marks, Promise, WindowVerdict, judge_window
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.serving.client import EndpointClient, RequestFailed
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.validity import findings
from pytest_vllm_stage.stage.observe import health

MAKERS: Mapping[str, Callable[[Site], Disruption]] = {
    made.name: made for made in (Rollout, PodKilled, EngineKilled, Drain, ReadinessLost, PublicationDisrupted, Scaled)
}
#: Where neither the profile nor the model promises a rate.
_DEFAULT_RATE = 1.0
_FIRST_ANSWER_TOKENS = 1


@dataclass(frozen=True)
class DisruptionResult:
    """A disruption that was carried out and judged.

    Attributes:
        name: Which one.
        role: The model's role.
        verdict: On the window around it.
        notes: What was seen.
        problems: What was wrong with the stage, and why requests failed.
    """

    name: str
    role: str
    verdict: WindowVerdict
    notes: Sequence[str]
    problems: Sequence[str]

    @property
    def outcome(self) -> Outcome:
        """The window's outcome, or fail where the stage itself was wrong."""
        return Outcome.FAIL if self.problems else self.verdict.outcome

    def text(self) -> str:
        """The verdict, and what was seen, a line each."""
        lines = [f"{self.name} of {self.role}: {self.outcome.value}: {self.verdict.why}"]
        return "\n  ".join([*lines, *self.problems, *self.notes])

    def properties(self) -> dict[str, float | str]:
        """For ``user_properties`` and JUnit."""
        values = {"outcome": self.outcome.value, "why": self.verdict.why, **_plain_numbers(self.verdict)}
        return {f"resilience.{key}": value for key, value in values.items() if isinstance(value, int | float | str)}


def carry_out(site: Site, name: str, client: EndpointClient, maker: PromptMaker) -> DisruptionResult:
    """Carry a disruption out and judge it; the stage is healthy before and after.

    Raises:
        StageError: the stage was not healthy, or does not reach a state that the disruption leads to.
    """
    run, role = site.run, client.target.role
    disruption = MAKERS[name](site)
    disruption.check_possible()
    _restore(site)
    site.await_health()
    _check_restarts(site)
    promise = promise_of(site, name)
    job = prepare.prepare(traffic_step(site, name, client), client, maker, facts=facts_of(run, client))
    try:
        with run.journal.phase(f"disruption {name} of {role}"), running(job, Journal(run.journal.path)) as traffic:
            try:
                marks_at, facts = _disrupt(site, disruption, traffic, promise)
                measurement = traffic.end()
            finally:
                _restore(site)
        unhealthy = _find_unhealthy(site, client)
        marks = Marks(*(at - measurement.started_at for at in marks_at))
        verdict = judge_window(measurement, marks, promise)
    finally:
        disruption.clean_up()
    problems = [*disruption.problems, *explain(measurement.samples, marks, promise, verdict, facts), *unhealthy]
    notes = (*disruption.notes, *find_counter_resets(measurement))
    result = DisruptionResult(name, role, verdict, notes, tuple(problems))
    _write(run, result, measurement, marks, promise)
    return result


def find_counter_resets(measurement: Measurement) -> list[str]:
    """A restart of the engine as its counters show it, which a load step would report too."""
    metrics = summarise(measurement.samples, measurement.step)
    return [one.text for one in findings(measurement, metrics, ()) if one.name == "engine_restarted"]


def _check_restarts(site: Site) -> None:
    """Refuse to disrupt a stage whose engine has ended by itself: the end of the run reports it otherwise.

    Raises:
        StageFailure: a container ended since the run's start or its last disruption.
    """
    events = read_events(site.run.journal_path)
    since_s = max(event["at"] for event in events if event["kind"] in ("run", "disruption"))
    seen = health.find_ends_since(site.pods(), site.reader.listed("Event"), since_s, site.reader.read_ended_log)
    if seen:
        raise StageFailure("\n  ".join(["an engine ended before the disruption:", *seen]))


def _disrupt(
    site: Site, disruption: Disruption, traffic: Traffic, promise: Promise
) -> tuple[tuple[float, float], dict[str, Any]]:
    """Traffic before, the change, and traffic until the stage has recovered; return its start and end, and facts."""
    before = site.served()
    traffic.await_answers(site.table.before_s)
    idle = [pod for pod, count in grown(before, site.served()).items() if count == 0]
    facts = {"name": disruption.name, "idle_pods": idle, "deployment": site.deployment()}
    began_at = time.time()
    disruption.carry_out()
    ended_at = time.time()
    traffic.await_recovery(began_at, ended_at, promise, max(0.0, site.table.longest_s - (ended_at - began_at)))
    return (began_at, ended_at), facts


def _find_unhealthy(site: Site, client: EndpointClient) -> list[str]:
    """Wait until the stage is healthy and the model answers; describe what it is not within the profile's time."""

    def look() -> Observation:
        try:
            client.completion("Hello", max_tokens=_FIRST_ANSWER_TOKENS)
        except RequestFailed as error:
            return Observation(False, error.message)
        return Observation(True, "answers")

    timeout_s, journal = site.run.config.profile.waits.first_answer_s, site.run.journal
    try:
        site.await_health()
        wait_until(f"answer of {client.target.model} after the disruption", look, timeout_s=timeout_s, journal=journal)
    except WaitFailed as error:
        return [f"not healthy after it was undone: {error.message}"]
    return []


def _restore(site: Site) -> None:
    """Undo a change that is recorded: this run's, or that of a run that was killed."""
    undone = site.undo()
    if undone:
        site.run.journal.event("undone", undone)
        site.run.journal.say(f"disruption undone: {undone}")


def promise_of(site: Site, name: str) -> Promise:
    """What the profile promises of the window around a disruption."""
    return Promise(**site.table.objectives(name), settle_s=site.table.settle_s)


def traffic_step(site: Site, name: str, client: EndpointClient) -> LoadStep:
    """The traffic as a load step, long enough for any disruption; it ends as soon as the window is over."""
    table, config, role = site.table, site.run.config, client.target.role
    rate = table.request_rate or plans.limit_of(config, role) or _DEFAULT_RATE
    return LoadStep(
        role=role,
        model=client.target.model,
        arrivals=CONSTANT,
        duration_s=table.before_s + table.longest_s + 2 * table.settle_s,
        prompt_tokens=table.prompt_tokens,
        output_tokens=table.output_tokens,
        request_rate=rate,
        warmup_requests=0,
        request_timeout_s=table.request_timeout_s,
        seed=plans.seed_of(config, site.run.run_id),
        api=plans.api_of(config, role),
        variant=name,
    )


def _write(run: Run, result: DisruptionResult, measurement: Measurement, marks: Marks, promise: Promise) -> None:
    """Keep samples, marks and verdict, and put the result into the journal, which every report is made from."""
    folder: Path = run.directory / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    marked = replace(measurement, facts={**measurement.facts, "disruption": {"name": result.name, **asdict(marks)}})
    write_measurement(marked, folder / f"{measurement.step.id}{SUFFIX}")
    data = {
        "role": result.role,
        "disruption": result.name,
        "outcome": result.outcome.value,
        "why": result.verdict.why,
        "notes": list(result.notes),
        "problems": list(result.problems),
        "marks": asdict(marks),
        "promise": asdict(promise),
        "window": _plain_numbers(result.verdict),
    }
    write_atomically(folder / f"{measurement.step.id}.json", json.dumps(data, indent=2) + "\n")
    run.journal.event("disruption", measurement.step.id, **data)


def _plain_numbers(verdict: WindowVerdict) -> dict[str, Any]:
    numbers = asdict(verdict.numbers)
    return {key: json_number(value) if isinstance(value, float) else value for key, value in numbers.items()}

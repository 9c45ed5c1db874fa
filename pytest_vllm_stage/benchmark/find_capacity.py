"""Searches the highest request rate at which a model keeps its objectives, by short steps of the run's own load."""

from __future__ import annotations

from dataclasses import dataclass, replace

from pytest_vllm_stage.benchmark import plans, steps
from pytest_vllm_stage.benchmark.artifacts import write_step
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.load.prompts import PromptMaker
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.slo.capacity import Capacity, CapacitySearch
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import StepVerdict, judge

#: The search's own steps lie apart from the promised ones, which reports and publication are made of.
FOLDER = "capacity"


@dataclass(frozen=True)
class FoundCapacity:
    """What a search found, and what was promised.

    Attributes:
        role: The model's role.
        capacity: The bracket.
        limit: Promised requests a second; None where nothing is promised.
    """

    role: str
    capacity: Capacity
    limit: float | None

    @property
    def broken(self) -> bool:
        """A rate that is promised was shown not to hold."""
        broken = self.capacity.shown_broken
        return self.limit is not None and broken is not None and broken <= self.limit

    def text(self) -> str:
        """One line for people."""
        return f"{self.role}: {self.capacity.text(self.limit)}"


def find(
    run: Run, role: str, client: EndpointClient, maker: PromptMaker, source: steps.LoadSource | None = None
) -> FoundCapacity:
    """Search by bracketing and bisection.

    Raises:
        ConfigError: the profile plans no load for the model, or promises nothing that a rate could break.
        StageError: a step could not be measured.
    """
    base = plans.base_step(run.config, run.run_id, role)
    objectives = plans.objectives_of(run.config, role)
    if base is None or not objectives:
        missing = "load" if base is None else "slo"
        raise ConfigError(
            f"--stage-find-capacity: profile {run.config.profile.name} has no [{missing}] for {role}: "
            "a capacity is the highest rate of a load that keeps its objectives"
        )
    limit = plans.limit_of(run.config, role)
    search = CapacitySearch(start=limit or 1.0)
    while (rate := search.next_rate()) is not None:
        rate = float(f"{rate:.3g}")
        duration_s = max(search.step_duration_s(rate, objectives), 1 / rate)
        step = replace(
            base,
            role=role,
            variant="capacity",
            arrivals=CONSTANT,
            request_rate=rate,
            concurrency=None,
            duration_s=duration_s,
            seed=base.seed + 1000 + search.result().steps,
        )
        verdict = _try(run, step, objectives, search.step_alpha, client, maker, source)
        search.record(rate, verdict.outcome, verdict.saturation.capacity_requests_per_s)
    found = FoundCapacity(role, search.result(), limit)
    run.journal.event("capacity", role, text=found.text(), holds=found.capacity.holds, breaks=found.capacity.breaks)
    return found


def _try(
    run: Run,
    step: LoadStep,
    objectives: tuple[Objective, ...],
    alpha: float,
    client: EndpointClient,
    maker: PromptMaker,
    source: steps.LoadSource | None,
) -> StepVerdict:
    watcher = EarlyDecision(step, objectives, alpha=alpha)
    measurement = steps.measure(run, step, client, maker, watcher, source)
    horizon_s = plans.horizon_of(run.config, step.role)
    metrics, verdict = judge(measurement, objectives, alpha=alpha, horizon_s=horizon_s)
    write_step(steps.folder_of(run) / FOLDER, measurement, metrics, verdict)
    run.journal.say(f"{step.id}: {verdict.outcome.value}: {verdict.why}")
    return verdict

"""Carries a step out by load workers in the cluster, and gives one measurement."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.driver import PROGRESS_INTERVAL_S
from pytest_vllm_stage.load.workers.assignment import Assignment
from pytest_vllm_stage.load.workers.gather import LEAD_S, Gathering
from pytest_vllm_stage.load.workers.merge import merge
from pytest_vllm_stage.load.workers.pods import WorkerPlace, pod_workers
from pytest_vllm_stage.measurement.samples import LOAD_WORKERS, Measurement


@dataclass(frozen=True)
class SharedJob:
    """A step for several workers with everything they need.

    Attributes:
        assignment: What each of them reads.
        ca_file: PEM file of the authorities that sign the server's certificate.
        tokens: File name to token; they go into a Secret and nowhere else.
        facts: Added to the measurement.
    """

    assignment: Assignment
    ca_file: str | None = None
    tokens: Mapping[str, Secret] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def measure_in_cluster(place: WorkerPlace, job: SharedJob, *, lead_s: float = LEAD_S) -> Measurement:
    """Carry out one step; a lost worker is in the measurement's facts and makes it invalid.

    Args:
        place: Where the workers run.
        job: What they do.
        lead_s: From the announcement of the start to the start at least; the rehearsal adds to it.

    Raises:
        StageError: the workers could not be created or removed.
    """
    assignment, step, journal = job.assignment, job.assignment.step, place.journal
    with journal.phase(f"load {step.id}", step=step.to_json(), load_from="cluster") as facts:
        with (
            pod_workers(place, assignment, job.ca_file, job.tokens) as workers,
            journal.activity(step.id, total_s=step.duration_s, interval_s=PROGRESS_INTERVAL_S) as activity,
        ):
            activity.update(f"{assignment.workers} load workers start")
            gathered = Gathering(
                workers,
                step,
                report=lambda seen: activity.update(seen.text(step), elapsed_s=seen.elapsed_s),
                lead_s=lead_s,
            ).gather()
        measurement = merge(step, assignment.workers, gathered, job.facts)
        facts["requests"] = len(measurement.samples)
        facts["failed"] = sum(sample.failed for sample in measurement.samples)
        facts["workers"] = measurement.facts[LOAD_WORKERS]
        return measurement

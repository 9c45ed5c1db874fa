"""A benchmark Job: carried out or looked up once a run and model, its reports judged by the code that judges steps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.benchmark import existing_jobs, job_runs, job_sequence, plans
from pytest_vllm_stage.benchmark.job_runs import Location
from pytest_vllm_stage.benchmark.job_sequence import JobPlace
from pytest_vllm_stage.benchmark.job_summary import TIMES, parse_summary
from pytest_vllm_stage.benchmark.plans import PlannedStep
from pytest_vllm_stage.benchmark.steps import StepResult
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError, StageError, StageFailure
from pytest_vllm_stage.load.guidellm.reading import read_report
from pytest_vllm_stage.measurement.samples import MEASURED_AGAIN, Measurement
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.run.shared import dump_error, load_error
from pytest_vllm_stage.slo.verdict import judge
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.facts import StageFacts
from pytest_vllm_stage.stage.objects import SERVICE_LABEL, Object
from pytest_vllm_stage.stage.observe import health
from pytest_vllm_stage.stage.observe.reader import StageReader

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient
    from mypy_boto3_s3 import S3Client

#: In the run directory: a folder a model, with the reports as they are in MinIO.
FOLDER = "benchmark-jobs"


@dataclass(frozen=True)
class BenchmarkJob:
    """A Job that has completed, and what it left.

    Attributes:
        role: The model's role.
        model: The served model name.
        name: The Job's name.
        rates: What the Job declares.
        location: Where its reports are in MinIO; empty where there is no Job; ``absent`` is the reason.
        folder: Where they are in the run directory.
        absent: Why there is nothing to judge.
        outdated: Why its reports are not of what is declared and runs now; of a Job that the run found.
    """

    role: str
    model: str
    name: str = ""
    rates: tuple[float, ...] = ()
    location: str = ""
    folder: str = ""
    absent: str = ""
    outdated: tuple[str, ...] = ()

    @property
    def summary(self) -> Mapping[str, Any]:
        """The Job's own summary.

        Raises:
            ConfigError: a value is impossible; names the file and the field.
        """
        path = Path(self.folder) / job_runs.SUMMARY
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
        return parse_summary(content, str(path))


def find_job(
    run: Run,
    role: str,
    selected: Sequence[str],
    cluster: ClusterFacts,
    stage: StageFacts,
    kube: DynamicClient,
    minio: S3Client,
) -> BenchmarkJob:
    """The Job of a model, carried out by the first process that asks.

    Args:
        run: The run.
        role: The model's role.
        selected: Roles whose Jobs the run will ask for: their pods start together.
        cluster: The cluster.
        stage: The stage.
        kube: Its client.
        minio: The stage's object store.

    Raises:
        StageError: it did not complete, or its reports are not there.
    """
    reader = StageReader(kube, cluster, stage.namespace)
    made = run.shared.ensure(f"benchmark-job-{role}", lambda: _make(run, role, selected, stage, reader, minio))
    found = json.loads(made)
    return BenchmarkJob(**found | {key: tuple(found[key]) for key in ("rates", "outdated")})


def _make(run: Run, role: str, selected: Sequence[str], stage: StageFacts, reader: StageReader, minio: S3Client) -> str:
    overlay = run.config.profile.overlay
    models = {target.role: target.inference_service for target in stage.targets}
    model = models[role]
    manifests = job_runs.manifests_of(overlay, reader.cluster.kubectl, stage.namespace)
    if not manifests:
        absent = f"overlay {overlay.name} declares no benchmark Jobs: it has no folder {job_runs.FOLDER}"
        return json.dumps(asdict(BenchmarkJob(role, model, absent=absent)))
    job = job_runs.job_of(manifests, model)
    name = objects.name_of(job)
    outdated: list[str] = []
    if stage.owned:
        place = JobPlace(reader, minio, manifests, stage.run_id, run.run_id, run.journal)
        others = [models[one] for one in selected if one in models and one != role]
        location = _carried_out(run, place, job, others)
    else:
        there = reader.get("Job", name)
        if there is None:
            absent = f"namespace {stage.namespace} has no job/{name}, and in read-only mode none is created"
            return json.dumps(asdict(BenchmarkJob(role, model, name, absent=absent)))
        location = _looked_up(reader, minio, there, model)
        replica_sets = reader.listed_where_allowed("ReplicaSet")
        served = [one for one in replica_sets if (one["metadata"].get("labels") or {}).get(SERVICE_LABEL) == model]
        outdated += existing_jobs.find_other_settings(there, job)
        outdated += existing_jobs.find_newer_engine(there, served)
    folder = run.directory / FOLDER / model
    reports = job_runs.fetch(minio, location)
    _save(reports, folder)
    times = {key: reports.summary[key] for key in TIMES if key in reports.summary}
    run.journal.event("benchmark_job", name, role=role, location=str(location), **times)
    rates = tuple(job_runs.declared_rates(job))
    made = BenchmarkJob(role, model, name, rates, str(location), str(folder), outdated=tuple(outdated))
    return json.dumps(asdict(made))


def _carried_out(run: Run, place: JobPlace, job: Object, others: Sequence[str]) -> Location:
    """Where a Job put its reports; the first Job that is asked for is carried out together with those that follow.

    Raises:
        StageError: why it has none.
    """

    def carry_out(jobs: Sequence[Object]) -> str:
        outcomes = job_sequence.carry_out(place, jobs)
        return json.dumps({
            name: {"error": dump_error(found)} if isinstance(found, StageError) else {"location": str(found)}
            for name, found in outcomes.items()
        })  # fmt: skip

    def carry_out_all() -> str:
        following = []
        for model in others:
            with suppress(ConfigError):  # its own test reports it
                following.append(job_runs.job_of(list(place.manifests), model))
        return carry_out([job, *following])

    name = objects.name_of(job)
    known = json.loads(run.shared.ensure("benchmark-jobs", carry_out_all))
    found = known.get(name) or json.loads(carry_out([job]))[name]
    if "error" in found:
        raise load_error(found["error"])
    return Location.parse(found["location"])


def _looked_up(reader: StageReader, minio: S3Client, job: Object, model: str) -> Location:
    """The location of the reports of an existing Job."""
    name = objects.name_of(job)
    hint = f"kubectl -n {reader.namespace} logs job/{name}"
    if problems := health.check_job(job, name):
        raise StageFailure("; ".join(problems), hint=hint)
    bucket = job_runs.settings_of(job)["BUCKET"]
    found = job_runs.location_of(reader, name) or job_runs.newest(minio, bucket, model, name)
    if found is None:
        raise StageFailure(f"job/{name} completed, and bucket {bucket} has no report of it", hint=hint)
    return found


def _save(reports: job_runs.Reports, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in reports.contents.items():
        (folder / name).write_bytes(content)
    (folder / job_runs.SUMMARY).write_text(json.dumps(dict(reports.summary), indent=1), encoding="utf-8")


def measurements(run: Run, job: BenchmarkJob, *, simulated: bool) -> list[Measurement]:
    """A measurement for each report, planned as the Job's summary says.

    Raises:
        ConfigError: a report is not GuideLLM's, has no request, or has another rate.
    """
    summary = job.summary
    facts = {"run_id": run.run_id, "profile": run.config.profile.name, "simulated": simulated, "job": job.name}
    found = []
    for one in summary["steps"]:
        step = LoadStep(
            role=job.role,
            model=summary["model"],
            arrivals=CONSTANT,
            duration_s=summary["duration_s"],
            prompt_tokens=summary["prompt_tokens"],
            output_tokens=summary["output_tokens"],
            request_rate=one["request_rate"],
            warmup_requests=summary["warmup_requests"],
            request_timeout_s=summary["request_timeout_s"],
        )
        path = Path(job.folder) / str(one["object"])
        again = {MEASURED_AGAIN: one[MEASURED_AGAIN]} if one.get(MEASURED_AGAIN) else {}
        found.append(read_report(path, step, lead_in=summary["lead_in"], facts=facts | again))
    return found


def judged(run: Run, job: BenchmarkJob, measured: list[Measurement]) -> list[StepResult]:
    """A verdict for each measurement, on what the profile promises of that rate; past the promise it is observed."""
    config = run.config
    limit = plans.limit_of(config, job.role)
    planned = []
    for one in measured:
        objectives = plans.objectives_of(config, job.role, one.step.name)
        above = limit is not None and (one.step.request_rate or 0.0) > limit
        planned.append(PlannedStep(job.role, one.step, objectives, above))
    gates, horizon_s = plans.gates_of(planned) or None, plans.horizon_of(config, job.role)
    return [
        StepResult(plan, *judge(one, plan.objectives, gates=gates, horizon_s=horizon_s))
        for plan, one in zip(planned, measured, strict=True)
    ]

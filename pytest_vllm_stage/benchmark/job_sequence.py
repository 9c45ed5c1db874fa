"""Benchmark Jobs one after the other: their pods start together, and each sends only after the one before has ended.

Starting a pod and importing GuideLLM takes as long as a short measurement. A Job that declares the variable `HOLD` is
created at once, and held by the script until the bucket has an object (fixtures/benchmarking/hold.py). The object is
written when the Job before has ended in whatever way. A Job that declares no such variable, whose pod does not run by
then (the cluster has no room for two) or that cannot be released is created when it is its turn: what its pod met while
another one ran is not its verdict. No Job waits for a later one: none is held before the first has its node.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllm_stage.benchmark.job_runs import Location, location_of, settings_of
from pytest_vllm_stage.core.errors import Interrupted, StageError, StageFailure
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy.apply import Ownership, apply, run_id_of
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.conditions import JobComplete
from pytest_vllm_stage.stage.observe.reader import ConditionStatus, StageReader
from pytest_vllm_stage.stage.observe.wait import wait_for_all
from pytest_vllm_stage.stage.s3 import readable_s3_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: The script's variables: the object that a Job waits for, and for how long.
HOLD, HOLD_TIMEOUT = "HOLD_OBJECT", "HOLD_TIMEOUT_S"
#: In the bucket: a folder for each run, and in it an object for each Job that was released.
HOLDS = "benchmark-holds"
_BUCKET = "BUCKET"
#: The Job controller reports a Job that is over its deadline a little later.
_GRACE_S = 60.0
_REMOVAL_S = 60.0


@dataclass(frozen=True)
class JobPlace:
    """Where Jobs are created, and by which run.

    Attributes:
        reader: The stage.
        minio: Its object store.
        manifests: What `job_runs.manifests_of` gave; what is not a Job exists while the Jobs do.
        owner: The run that owns the stage; goes onto everything as a label.
        run_id: The run that creates the Jobs.
        journal: Takes phases and waits.
    """

    reader: StageReader
    minio: S3Client
    manifests: Sequence[Object]
    owner: str
    run_id: str
    journal: Journal


class JobPlaced(JobComplete):
    """A Job's pod has a node."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.what = f"job/{self.name} pod scheduled"

    def observe(self, reader: StageReader) -> ConditionStatus:
        """Observe the pod, then the Job."""
        placed = any(pod["spec"].get("nodeName") for pod in _pods_of(reader, self.name))
        return ConditionStatus(True, "scheduled") if placed else super().observe(reader)


class JobReported(JobComplete):
    """A Job's pod has ended and named the location of its reports: the Job sends nothing any more.

    The Job is Complete up to two seconds later.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        self.what = f"job/{self.name} reports stored"

    def observe(self, reader: StageReader) -> ConditionStatus:
        """Observe the pod, then the Job."""
        return ConditionStatus(True, "stored") if location_of(reader, self.name) else super().observe(reader)


def carry_out(place: JobPlace, jobs: Sequence[Object]) -> dict[str, Location | StageError]:
    """Carry Jobs out in this order, and remove them with all that they made but their reports.

    Returns:
        Name of the Job to where its reports are, or to why it has none; one that fails does not keep the others from
        being measured.
    """
    sequence = _Sequence(place, jobs)
    try:
        outcomes = sequence.run()
    except BaseException:
        # Why it ended is the error, even where removing fails too; the run's label finds what is left.
        with suppress(StageError):
            sequence.remove()
        raise
    try:
        sequence.remove()
    except StageError as error:
        return {name: outcome if isinstance(outcome, StageError) else error for name, outcome in outcomes.items()}
    return outcomes


class _Sequence:
    """The Jobs of one call of `carry_out`."""

    def __init__(self, place: JobPlace, jobs: Sequence[Object]) -> None:
        self._place, self._jobs = place, list(jobs)
        self._reader, self._journal = place.reader, place.journal
        self._needed = [manifest for manifest in place.manifests if manifest["kind"] not in ("Job", "Namespace")]
        self._held: dict[str, Object] = {}
        self._released: list[tuple[str, str]] = []

    def run(self) -> dict[str, Location | StageError]:
        """Let one after the other measure."""
        self._remove_leftovers()
        outcomes = {objects.name_of(job): self._measure(job) for job in self._jobs}
        for name, outcome in outcomes.items():
            if isinstance(outcome, Location):
                outcomes[name] = self._completed(name, outcome)
        return outcomes

    def remove(self) -> None:
        """Remove all that was created; no error where it does not exist."""
        for bucket, key in self._released:
            with suppress(StageError):
                self._delete_object(bucket, key)
        self._remove([*self._jobs, *self._needed])

    def _measure(self, job: Object) -> Location | StageError:
        """Release or create a Job and wait until it sends nothing any more."""
        name = objects.name_of(job)
        try:
            with self._journal.phase(f"benchmark job {name}", rates=settings_of(job)["RATES"]) as facts:
                facts["prepared"] = self._release(job)
                if not facts["prepared"]:
                    self._apply([*self._needed, job])
                if job is self._jobs[0]:
                    self._hold_others()
                wait_for_all(self._reader, [JobReported(name, _limit_s(job))], self._journal)
                found = location_of(self._reader, name)
                return found or StageFailure(f"job/{name} completed and does not say where its reports are")
        except Interrupted:
            raise
        except StageError as error:
            with suppress(StageError):
                self._remove([job])
            return error

    def _hold_others(self) -> None:
        """Create the Jobs that can wait for their turn, once the first has its room."""
        first, *others = self._jobs
        can_wait = [job for job in others if {HOLD, _BUCKET} <= settings_of(job).keys()]
        if can_wait:
            wait_for_all(self._reader, [JobPlaced(objects.name_of(first), _limit_s(first))], self._journal)
        for job in can_wait:
            before = self._jobs[: self._jobs.index(job)]
            timeout_s = sum(_limit_s(one) + 2 * _REMOVAL_S for one in before)
            with suppress(StageError):  # its turn shows why
                self._apply([*self._needed, hold(job, self._key(job), timeout_s)])
                self._held[objects.name_of(job)] = job

    def _release(self, job: Object) -> bool:
        """Let a held Job send; False where there is none.

        One that is not prepared is removed, and so are all that are held for later: there may be room for one only.
        """
        if objects.name_of(job) not in self._held:
            return False
        if any(
            (pod.get("status") or {}).get("phase") == "Running" for pod in _pods_of(self._reader, objects.name_of(job))
        ):
            bucket, key = settings_of(job)[_BUCKET], self._key(job)
            self._released.append((bucket, key))
            with suppress(StageError):
                self._put_object(bucket, key)
                del self._held[objects.name_of(job)]
                return True
        held = list(self._held.values())
        self._held.clear()
        self._remove(held)
        return False

    def _key(self, job: Object) -> str:
        return f"{HOLDS}/{self._place.run_id}/{objects.name_of(job)}"

    def _completed(self, name: str, found: Location) -> Location | StageError:
        try:
            wait_for_all(self._reader, [JobComplete(name, _GRACE_S)], self._journal)
        except StageError as error:
            return error
        return found

    def _remove_leftovers(self) -> None:
        """Remove what a killed run left of these Jobs in a stage that was kept."""
        left = [objects.reference(job) for job in self._remove(self._jobs)]
        with suppress(StageError):  # a store that does not answer is the Jobs' to report
            for bucket in sorted({settings_of(job).get(_BUCKET, "") for job in self._jobs} - {""}):
                for key in self._list_objects(bucket):
                    self._delete_object(bucket, key)
                    left.append(f"{bucket}/{key}")
        for one in left:
            self._journal.event("swept", one)
            self._journal.say(f"removed the leftovers of a killed run: {one}")

    def _apply(self, manifests: list[Object]) -> None:
        apply(self._reader.kube, manifests, self._reader.namespace, Ownership.for_run(self._place.owner), {})

    def _remove(self, items: list[Object]) -> list[Object]:
        """Delete objects of this stage and wait until their pods are gone too: what follows has the models to itself.

        Returns:
            Those that existed; one of the same name that has another owner stays.
        """
        own = [item for item in items if self._is_own(self._existing(item))]
        if not own:
            return []
        for item in own:
            objects.delete(self._reader.kube, item, self._reader.namespace)
        wait_until(
            f"{objects.reference(own[0])} deleted",
            lambda: self._find_left(own),
            timeout_s=_REMOVAL_S,
            journal=self._journal,
            interval_s=0.5,
            hint=f"{self._reader.cluster.kubectl_for(self._reader.namespace)} get jobs,pods",
        )
        return own

    def _is_own(self, existing: Object | None) -> bool:
        return existing is not None and run_id_of(existing) == self._place.owner

    def _existing(self, item: Object) -> Object | None:
        return self._reader.get(item["kind"], objects.name_of(item))

    def _find_left(self, items: list[Object]) -> Observation:
        left = [objects.reference(item) for item in items if self._existing(item)]
        return Observation(not left, ", ".join(left) or "gone")

    def _put_object(self, bucket: str, key: str) -> None:
        with readable_s3_errors(f"put {bucket}/{key}", self._place.minio.meta.endpoint_url):
            self._place.minio.put_object(Bucket=bucket, Key=key, Body=b"")

    def _delete_object(self, bucket: str, key: str) -> None:
        with readable_s3_errors(f"delete {bucket}/{key}", self._place.minio.meta.endpoint_url):
            self._place.minio.delete_object(Bucket=bucket, Key=key)

    def _list_objects(self, bucket: str) -> list[str]:
        with readable_s3_errors(f"list {bucket}/{HOLDS}", self._place.minio.meta.endpoint_url):
            answer = self._place.minio.list_objects_v2(Bucket=bucket, Prefix=f"{HOLDS}/")
            return [item["Key"] for item in answer.get("Contents", [])]


def hold(job: Object, key: str, timeout_s: float) -> Object:
    """The Job with a hold of at most so many seconds, which its deadline does not count."""
    held = copy.deepcopy(job)
    (container, *_), seconds = held["spec"]["template"]["spec"]["containers"], math.ceil(timeout_s)
    kept = [entry for entry in container["env"] if entry["name"] not in (HOLD, HOLD_TIMEOUT)]
    container["env"] = [*kept, {"name": HOLD, "value": key}, {"name": HOLD_TIMEOUT, "value": str(seconds)}]
    if "activeDeadlineSeconds" in held["spec"]:
        held["spec"]["activeDeadlineSeconds"] += seconds
    return held


def _pods_of(reader: StageReader, job: str) -> list[Object]:
    return reader.listed("Pod", {"batch.kubernetes.io/job-name": job})


def _limit_s(job: Object) -> float:
    """Seconds after which a Job has ended in whatever way."""
    return float(job["spec"].get("activeDeadlineSeconds", 3600)) + _GRACE_S

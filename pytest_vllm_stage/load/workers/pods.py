"""Load workers as pods of an Indexed Job: created for one step, followed by their logs, and removed after it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any

from pytest_vllm_stage.cluster.api_errors import ApiServerUnreachable, RequestRejected, translate_api_errors
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.load.workers import manifests, messages
from pytest_vllm_stage.load.workers.assignment import Assignment
from pytest_vllm_stage.load.workers.clock import ClockOffset, measure_offset
from pytest_vllm_stage.load.workers.gather import READY_TIMEOUT_S
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy.apply import Ownership, apply
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.reader import StageReader

JOB_LABEL = "batch.kubernetes.io/job-name"
INDEX_ANNOTATION = "batch.kubernetes.io/job-completion-index"
CONTAINER = "worker"
_POLL_S = 0.5
#: A log that ends although its pod goes on is read again this often.
_MOST_READINGS = 20
_REMOVAL_S = 60.0
#: For the start of the pods, the transfer of the samples, and the API server's own delays.
_SLACK_S = 240.0


@dataclass(frozen=True)
class WorkerPlace:
    """Where load workers run.

    Attributes:
        reader: The stage's namespace.
        overlay: Renders to their Job.
        run_id: Goes onto everything as a label.
        journal: Takes the waits.
    """

    reader: StageReader
    overlay: Path
    run_id: str
    journal: Journal


class PodWorkers:
    """The pods of one step's Job; see `gather.WorkerSet`."""

    def __init__(self, reader: StageReader, job: str, count: int) -> None:
        self._reader = reader
        self._job = job
        self._count = count
        self._lock = threading.Lock()
        self._pods: dict[int, Object] = {}
        self._present: set[int] = set()
        self._listed_s = 0.0
        self._closed = threading.Event()
        self._clock: Future[ClockOffset] = ThreadPoolExecutor(1).submit(measure_offset, self._ask_date)

    @property
    def count(self) -> int:
        return self._count

    def close(self) -> None:
        """End the threads that wait for pods."""
        self._closed.set()

    def name(self, worker: int) -> str:
        """The pod's name; the Job's before there is one."""
        pod = self._pods.get(worker)
        return f"pod/{objects.name_of(pod)}" if pod else f"job/{self._job}"

    def lines(self, worker: int) -> Iterator[str]:
        """The pod's log, from its beginning again where the connection broke."""
        for _ in range(_MOST_READINGS):
            pod = self._wait_for_log(worker)
            if pod is None:
                return
            with suppress(ApiServerUnreachable, RequestRejected):
                yield from objects.follow_log(
                    self._reader.kube, self._reader.namespace, objects.name_of(pod), CONTAINER
                )
            if self._closed.is_set() or self._has_ended(worker):
                return

    def rehearse(self, worker: int) -> None:
        """Write the rehearsal onto the pod, which takes the same way into it."""
        self._annotate(self._pods[worker], {manifests.START_ANNOTATION: messages.REHEARSAL})

    def announce(self, lead_s: float) -> float:
        """Write the common start onto every pod, in the API server's time."""
        try:
            offset_s = self._clock.result().offset_s
        except ValueError as error:
            raise EnvironmentUnusable(f"no common start can be agreed through the API server: {error}") from None
        start_at = time.time() + lead_s
        value = {manifests.START_ANNOTATION: f"{start_at + offset_s:.6f}"}
        with ThreadPoolExecutor(8) as pool:
            writing = [pool.submit(self._annotate, self._pods[worker], value) for worker in range(self._count)]
        for one in writing:
            one.result()
        return start_at

    def _annotate(self, pod: Object, annotations: Mapping[str, str]) -> None:
        try:
            objects.annotate(self._reader.kube, "Pod", objects.name_of(pod), self._reader.namespace, annotations)
        except RequestRejected as error:
            if error.code != 404:  # a pod that is gone is reported as lost when its log ends
                raise

    def describe_end(self, worker: int) -> str:
        """The pod's state in a few words."""
        return describe_pod(self._find(worker, fresh=True))

    def _wait_for_log(self, worker: int) -> Object | None:
        """The pod once it has a log; None where it will have none."""
        seen = False
        while not self._closed.wait(_POLL_S):
            pod = self._find(worker)
            seen = seen or pod is not None
            if pod is not None and _has_log(pod):
                return pod
            if seen and (pod is None or (pod.get("status") or {}).get("phase") in ("Failed", "Succeeded")):
                return None
        return None

    def _has_ended(self, worker: int) -> bool:
        pod = self._find(worker, fresh=True)
        if pod is None:
            return True
        return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed") or "deletionTimestamp" in pod[
            "metadata"
        ]

    def _find(self, worker: int, *, fresh: bool = False) -> Object | None:
        """The worker's first pod; one that replaces it has missed the start."""
        with self._lock:
            if fresh or time.monotonic() - self._listed_s > _POLL_S:
                with suppress(ApiServerUnreachable):
                    self._list()
            return self._pods.get(worker) if worker in self._present else None

    def _list(self) -> None:
        listed = self._reader.listed("Pod", {JOB_LABEL: self._job})
        self._listed_s = time.monotonic()
        present = set()
        for pod in sorted(listed, key=lambda one: str(one["metadata"].get("creationTimestamp"))):
            index = int((pod["metadata"].get("annotations") or {}).get(INDEX_ANNOTATION, "-1"))
            known = self._pods.get(index)
            if index >= 0 and (known is None or known["metadata"]["uid"] == pod["metadata"]["uid"]):
                self._pods[index] = pod
                present.add(index)
        self._present = present

    def _ask_date(self) -> float:
        with translate_api_errors("get /version"):
            response = self._reader.kube.request("get", "/version", serialize=False)
        return parsedate_to_datetime(response.headers["Date"]).timestamp()


def _has_log(pod: Object) -> bool:
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    return any((status.get("state") or {}).keys() & {"running", "terminated"} for status in statuses)


def describe_pod(pod: Object | None) -> str:
    """Why a pod has no result: deleted, evicted, killed, not scheduled, not started."""
    if pod is None:
        return "the pod does not exist, or was deleted"
    status = pod.get("status") or {}
    parts = []
    if status.get("reason"):
        parts.append(f"{status['reason']}: {status.get('message', '')}".rstrip(": "))
    elif "deletionTimestamp" in pod["metadata"]:
        parts.append("the pod was deleted")
    for container in status.get("containerStatuses") or []:
        state: dict[str, Any] = container.get("state") or {}
        ended, waiting = state.get("terminated"), state.get("waiting")
        if ended:
            parts.append(f"{ended.get('reason', 'ended')}, exit code {ended.get('exitCode')}")
        elif waiting:
            parts.append(f"{waiting.get('reason', 'waiting')}: {waiting.get('message', '')}".rstrip(": "))
    scheduled = objects.condition(pod, "PodScheduled")
    if scheduled.get("status") == "False":
        parts.append(f"{scheduled.get('reason')}: {scheduled.get('message')}")
    return "; ".join(parts) or f"phase {status.get('phase', 'unknown')}"


@contextmanager
def pod_workers(
    place: WorkerPlace, assignment: Assignment, ca_file: str | None, tokens: Mapping[str, Secret]
) -> Iterator[PodWorkers]:
    """Create a step's Job; it is removed with the block, and its pods are gone then."""
    reader, step = place.reader, assignment.step
    rendered = manifests.render_job(place.overlay, reader.cluster.kubectl, reader.namespace)
    deadline_s = READY_TIMEOUT_S + step.duration_s + step.request_timeout_s + _SLACK_S
    name = manifests.job_name(place.run_id, step.id)
    job = manifests.complete_job(rendered, name, assignment.workers, deadline_s)
    ownership = Ownership.for_run(place.run_id)
    workers: PodWorkers | None = None
    try:
        (created,) = apply(reader.kube, [job], reader.namespace, ownership, {})
        inputs, values = manifests.make_inputs(created, assignment, ca_file, tokens)
        apply(reader.kube, inputs, reader.namespace, ownership, values)
        job["spec"]["suspend"] = False
        apply(reader.kube, [job], reader.namespace, ownership, {})
        workers = PodWorkers(reader, name, assignment.workers)
        yield workers
    except BaseException:
        if workers is not None:
            workers.close()
        with suppress(StageError):  # what failed is the error; the run's label finds what is left
            _remove(place, job)
        raise
    workers.close()
    _remove(place, job)


def _remove(place: WorkerPlace, job: Object) -> None:
    """Delete the Job with all that it owns, and wait until its pods are gone: they would disturb the next step."""
    reader, name = place.reader, objects.name_of(job)
    made = [job, *({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}} for kind in ("ConfigMap", "Secret"))]
    for item in made:
        objects.delete(reader.kube, item, reader.namespace)

    def observe() -> Observation:
        left = [objects.reference(item) for item in made if reader.get(item["kind"], name)]
        left += [f"pod/{objects.name_of(pod)}" for pod in reader.listed("Pod", {JOB_LABEL: name})]
        return Observation(not left, ", ".join(left) or "gone")

    wait_until(
        f"job/{name} deleted",
        observe,
        timeout_s=_REMOVAL_S,
        journal=place.journal,
        interval_s=0.5,
        error=EnvironmentUnusable,
        hint=f"{reader.cluster.kubectl_for(reader.namespace)} get jobs,pods",
    )

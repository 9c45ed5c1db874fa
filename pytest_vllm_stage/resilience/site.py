"""The part of a stage that a disruption changes: one model's service, its pods, and the waits for their states."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pytest_vllm_stage.core.errors import StageError, StageFailure
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.resilience.undo import Undo, record, undo_recorded
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.serving.metrics import NoSuchSeries, parse
from pytest_vllm_stage.settings.resilience_table import ResilienceTable
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.facts import StageFacts
from pytest_vllm_stage.stage.objects import SERVICE_LABEL, Object
from pytest_vllm_stage.stage.observe import conditions, rollout, wait
from pytest_vllm_stage.stage.observe.reader import Condition, StageReader
from pytest_vllm_stage.stage.pods import count_restarts, find_serving_port

#: Completed requests, as vLLM counts them.
_SERVED = "vllm:request_success"


@dataclass(frozen=True)
class Site:
    """Where a disruption acts.

    Attributes:
        run: The run.
        stage: The stage.
        reader: The stage's namespace.
        service: Name of the InferenceService.
        table: The profile's `resilience`.
    """

    run: Run
    stage: StageFacts
    reader: StageReader
    service: str
    table: ResilienceTable

    @property
    def timeout_s(self) -> float:
        """How long a pod may take to serve."""
        return self.run.config.profile.waits.inference_service_s

    def inference_service(self) -> Object:
        """The service as it is now.

        Raises:
            StageFailure: it does not exist.
        """
        found = self.reader.get("InferenceService", self.service)
        if found is None:
            raise StageFailure(f"inferenceservice/{self.service} does not exist in {self.reader.namespace}")
        return found

    def deployment(self) -> Object | None:
        """The predictor's Deployment; None in Serverless mode."""
        return self.reader.get("Deployment", f"{self.service}-predictor")

    def pods(self) -> list[Object]:
        """The service's pods, those that end included."""
        return self.reader.listed("Pod", {SERVICE_LABEL: self.service})

    def ready_pods(self) -> list[Object]:
        """The pods that serve, oldest first.

        Raises:
            StageFailure: there is none.
        """
        ready = [pod for pod in self.pods() if serves(pod)]
        if not ready:
            raise StageFailure(f"inferenceservice/{self.service}: no pod is Ready: {rollout.pod_states(self.pods())}")
        return sorted(ready, key=lambda pod: str(pod["metadata"].get("creationTimestamp")))

    def patch_service(self, body: Object, restore: Object) -> None:
        """Change the service, after recording how to restore it."""
        self.record(Undo("InferenceService", self.service, restore))
        objects.patch(self.reader.kube, "InferenceService", self.service, self.reader.namespace, body)

    def record(self, undo: Undo) -> None:
        """Record how a change is undone, before it is made."""
        record(self.reader.kube, self.reader.namespace, self.run.run_id, undo)

    def undo(self) -> str:
        """Undo what is recorded; return what that was."""
        return undo_recorded(self.reader.kube, self.reader.namespace)

    def await_pods(self, what: str, done: Callable[[list[Object]], bool]) -> float:
        """Wait until the service's pods are in a state; return the seconds it took.

        Raises:
            WaitFailed: they are not within the profile's time for a service; it names their last state.
        """

        def look() -> Observation:
            pods = self.pods()
            return Observation(done(pods), describe_pods(pods))

        return wait_until(
            f"inferenceservice/{self.service}: {what}",
            look,
            timeout_s=self.timeout_s,
            journal=self.run.journal,
            interval_s=0.25,
            hint=f"{self.reader.cluster.kubectl_for(self.reader.namespace)} get pods,events -l "
            f"{SERVICE_LABEL}={self.service}",
        )

    def await_health(self) -> None:
        """Wait until every model, MinIO and the registry are in their declared state, and no change is recorded.

        Raises:
            WaitFailed: one is not within its time.
        """
        waits = self.run.config.profile.waits
        models = self.run.config.profile.models.values()
        wanted: list[Condition] = [
            conditions.InferenceServiceReady(model.inference_service, waits.inference_service_s) for model in models
        ]
        names = [objects.name_of(one) for one in self.reader.listed("Deployment") if not _of_a_model(one)]
        wanted += [conditions.DeploymentAvailable(name, waits.minio_s) for name in names]
        wait.wait_for_all(self.reader, wanted, self.run.journal)

    def served(self) -> dict[str, float | None]:
        """Ready pod to the requests that its engine has completed; None where it does not say."""
        return {objects.name_of(pod): self._served_by(pod) for pod in self.ready_pods()}

    def _served_by(self, pod: Object) -> float | None:
        name, port = objects.name_of(pod), find_serving_port(pod)
        try:
            text = objects.read_pod_path(self.reader.kube, self.reader.namespace, name, port, "metrics")
            return parse(text).value(_SERVED)
        except (StageError, NoSuchSeries, ValueError):
            return None


def serves(pod: Object) -> bool:
    """Whether a pod is Ready and not being deleted."""
    return objects.is_true(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")


def has_restarted(pod: Object, before: Object) -> bool:
    """Whether it is the pod as it was before, with its engine restarted since, or a pod in its place."""
    return pod["metadata"]["uid"] != before["metadata"]["uid"] or count_restarts(pod) > count_restarts(before)


def describe_pods(pods: list[Object]) -> str:
    """The pods' names and states, for the error of a wait."""
    words = []
    for pod in pods:
        unscheduled = objects.condition(pod, "PodScheduled")
        why = f" ({unscheduled.get('message')})" if unscheduled.get("status") == "False" else ""
        ends = ", ending" if pod["metadata"].get("deletionTimestamp") else ""
        words.append(f"{objects.name_of(pod)}: {rollout.pod_states([pod])}{ends}{why}")
    return "; ".join(words) or "no pod"


def _of_a_model(deployment: Object) -> bool:
    return SERVICE_LABEL in (deployment["metadata"].get("labels") or {})

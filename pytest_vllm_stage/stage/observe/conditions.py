"""What a deployment waits for, one class a kind of object; each names its object as kubectl does."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import rollout, trouble
from pytest_vllm_stage.stage.observe.reader import ConditionStatus, StageReader
from pytest_vllm_stage.stage.observe.trouble import Trouble


@dataclass
class NamespaceActive:
    """A namespace exists and takes pods: its default service account is there."""

    name: str
    timeout_s: float

    def __post_init__(self) -> None:
        self.what = f"namespace/{self.name} phase=Active"
        self.failing = f"namespace/{self.name} cannot be used"

    def look(self, view: StageReader) -> ConditionStatus:
        """See the phase and the account."""
        found = view.get("Namespace", self.name)
        phase = ((found or {}).get("status") or {}).get("phase", "absent")
        account = view.get("ServiceAccount", "default") is not None
        return ConditionStatus(
            phase == "Active" and account, f"{phase}, service account {'there' if account else 'missing'}"
        )


@dataclass
class ClaimBound:
    """A PersistentVolumeClaim is bound."""

    name: str
    timeout_s: float

    def __post_init__(self) -> None:
        self.what = f"pvc/{self.name} phase=Bound"
        self.failing = f"pvc/{self.name} cannot be bound"

    def look(self, view: StageReader) -> ConditionStatus:
        """See the claim, and what could serve it."""
        claim = view.get("PersistentVolumeClaim", self.name)
        if claim is None:
            return ConditionStatus(False, "absent")
        phase = (claim.get("status") or {}).get("phase", "Pending")
        return ConditionStatus(phase == "Bound", phase, None if phase == "Bound" else _of_claim(view, claim), [claim])


@dataclass
class DeploymentAvailable:
    """A Deployment has rolled out its current generation."""

    name: str
    timeout_s: float

    def __post_init__(self) -> None:
        self.what = f"deployment/{self.name} condition=Available"
        self.failing = f"deployment/{self.name} cannot become Available"

    def look(self, view: StageReader) -> ConditionStatus:
        """See the rollout and the pods."""
        found = view.get("Deployment", self.name)
        if found is None:
            return ConditionStatus(False, "absent")
        done, state = rollout.rolled_out(found)
        if done:
            return ConditionStatus(True, state)
        pods = view.listed("Pod", found["spec"]["selector"].get("matchLabels"))
        seen = _of_claims(view, pods) or trouble.of_creation(found, view.events)
        seen = seen or _of_pods(view, pods) or trouble.of_conditions(found)
        return ConditionStatus(False, f"{state}; {rollout.pod_states(pods)}", seen, [found, *pods])


@dataclass
class JobComplete:
    """A Job has completed."""

    name: str
    timeout_s: float

    def __post_init__(self) -> None:
        self.what = f"job/{self.name} condition=Complete"
        self.failing = f"job/{self.name} cannot complete"

    def look(self, view: StageReader) -> ConditionStatus:
        """See the Job and its pods."""
        job = view.get("Job", self.name)
        if job is None:
            return ConditionStatus(False, "absent")
        if objects.is_true(job, "Complete"):
            return ConditionStatus(True, "Complete")
        pods = objects.owned_by(view.listed("Pod", {"batch.kubernetes.io/job-name": self.name}), job)
        seen = _of_claims(view, pods) or trouble.of_creation(job, view.events)
        seen = seen or _of_pods(view, pods) or trouble.of_job_pods(pods)
        if seen is None and objects.is_true(job, "Failed"):
            failed = objects.condition(job, "Failed")
            seen = Trouble(f"{failed.get('reason')}: {failed.get('message')}")
        return ConditionStatus(False, rollout.pod_states(pods), seen, [job, *pods])


@dataclass
class InferenceServiceReady:
    """An InferenceService is Ready, and its pods are those of its current specification.

    KServe's own Ready stays True while an update rolls out, and ``status.observedGeneration`` is the Deployment's and
    not the service's: so the pods' serving containers are held against what service and runtime now ask for.
    """

    name: str
    timeout_s: float

    def __post_init__(self) -> None:
        self.what = f"inferenceservice/{self.name} condition=Ready"
        self.failing = f"inferenceservice/{self.name} cannot become Ready"

    def look(self, view: StageReader) -> ConditionStatus:
        """See the service, its workload and its pods."""
        service = view.get("InferenceService", self.name)
        if service is None:
            return ConditionStatus(False, "absent")
        pods = view.listed("Pod", {"serving.kserve.io/inferenceservice": self.name})
        deployment = view.get("Deployment", f"{self.name}-predictor")
        name = drift.runtime_name(service)
        runtime = view.get("ServingRuntime", name) or view.get("ClusterServingRuntime", name)
        stale = rollout.stale_reasons(service, runtime, deployment, pods)
        ready = objects.condition(service, "Ready")
        if ready.get("status") == "True" and not stale:
            return ConditionStatus(True, "Ready")
        seen = _of_claims(view, pods) or (trouble.of_creation(deployment, view.events) if deployment else None)
        seen = seen or _of_pods(view, pods) or trouble.of_runtime(service, runtime, _runtimes(view, runtime))
        seen = seen or trouble.of_inference_service(service) or trouble.of_conditions(service)
        why = stale[0] if ready.get("status") == "True" else f"Ready={ready.get('status', 'Unknown')}"
        return ConditionStatus(False, f"{rollout.pod_states(pods)}; {why}", seen, [service, *pods])


def _of_claim(view: StageReader, claim: Object) -> Trouble | None:
    return trouble.of_claim(claim, view.everywhere("StorageClass"), view.everywhere("PersistentVolume"), view.events)


def _of_pods(view: StageReader, pods: Sequence[Object]) -> Trouble | None:
    unscheduled = any(objects.condition(pod, "PodScheduled").get("status") == "False" for pod in pods)
    return trouble.of_pods(pods, view.events, view.logs, view.everywhere("Node") if unscheduled else ())


def _runtimes(view: StageReader, found: Object | None) -> list[str]:
    """The runtimes that exist, asked for only where the wanted one does not."""
    return [] if found else sorted(map(objects.name_of, view.listed("ServingRuntime")))


def _of_claims(view: StageReader, pods: Sequence[Object]) -> Trouble | None:
    """What is wrong with the claims of pods that are not scheduled: it says more than the scheduler does."""
    waiting = [pod for pod in pods if objects.condition(pod, "PodScheduled").get("status") == "False"]
    for name in sorted({name for pod in waiting for name in drift.claims_of(pod)}):
        claim = view.get("PersistentVolumeClaim", name)
        if claim is None:
            return Trouble(f"PVC {name} does not exist", looks=3)
        found = _of_claim(view, claim)
        if found:
            return found
    return None

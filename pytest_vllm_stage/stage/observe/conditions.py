"""What a deployment waits for, one class per kind of object; each names its object as kubectl does."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import claims, controllers, rollout, trouble
from pytest_vllm_stage.stage.observe.reader import ConditionStatus, StageReader
from pytest_vllm_stage.stage.observe.scheduling import PlacementFacts
from pytest_vllm_stage.stage.observe.trouble import Trouble

#: The scheduler's reasons that depend on the pods of all namespaces.
_ABOUT_PODS = re.compile(r"Insufficient|affinity rules|topology spread|Too many pods")


@dataclass
class NamespaceActive:
    """A namespace is active and has its default service account, so that pods can be created."""

    name: str
    timeout_s: float

    def __post_init__(self) -> None:
        self.what = f"namespace/{self.name} phase=Active"
        self.failing = f"namespace/{self.name} cannot be used"

    def observe(self, reader: StageReader) -> ConditionStatus:
        """Observe the phase and the service account."""
        found = reader.get("Namespace", self.name)
        phase = ((found or {}).get("status") or {}).get("phase", "absent")
        account = reader.get("ServiceAccount", "default") is not None
        state = f"{phase}, service account {'present' if account else 'missing'}"
        return ConditionStatus(phase == "Active" and account, state, controllers.find_deletion_trouble(found))


@dataclass
class ClaimBound:
    name: str
    timeout_s: float

    def __post_init__(self) -> None:
        self.what = f"pvc/{self.name} phase=Bound"
        self.failing = f"pvc/{self.name} cannot be bound"

    def observe(self, reader: StageReader) -> ConditionStatus:
        """Observe the claim and what could bind it."""
        claim = reader.get("PersistentVolumeClaim", self.name)
        if claim is None:
            return ConditionStatus(False, "absent")
        phase = (claim.get("status") or {}).get("phase", "Pending")
        return ConditionStatus(
            phase == "Bound", phase, None if phase == "Bound" else _find_claim_trouble(reader, claim), [claim]
        )


@dataclass
class DeploymentAvailable:
    """A Deployment has rolled out its current generation."""

    name: str
    timeout_s: float

    def __post_init__(self) -> None:
        self.what = f"deployment/{self.name} condition=Available"
        self.failing = f"deployment/{self.name} cannot become Available"

    def observe(self, reader: StageReader) -> ConditionStatus:
        """Observe the rollout and the pods."""
        found = reader.get("Deployment", self.name)
        if found is None:
            return ConditionStatus(False, "absent")
        done, state = rollout.rolled_out(found)
        if done:
            return ConditionStatus(True, state)
        pods = reader.listed("Pod", found["spec"]["selector"].get("matchLabels"))
        seen = _find_claims_trouble(reader, pods) or controllers.find_creation_trouble(found, reader.events)
        seen = seen or _find_pod_trouble(reader, pods) or controllers.find_declared_stop(found)
        seen = seen or controllers.find_condition_trouble(found) or _find_node_trouble(reader, pods)
        return ConditionStatus(False, f"{state}; {rollout.pod_states(pods)}", seen, [found, *pods])


@dataclass
class JobComplete:
    name: str
    timeout_s: float

    def __post_init__(self) -> None:
        self.what = f"job/{self.name} condition=Complete"
        self.failing = f"job/{self.name} cannot complete"

    def observe(self, reader: StageReader) -> ConditionStatus:
        """Observe the Job and its pods."""
        job = reader.get("Job", self.name)
        if job is None:
            return ConditionStatus(False, "absent")
        if objects.is_true(job, "Complete"):
            return ConditionStatus(True, "Complete")
        pods = objects.owned_by(reader.listed("Pod", {"batch.kubernetes.io/job-name": self.name}), job)
        seen = _find_claims_trouble(reader, pods) or controllers.find_creation_trouble(job, reader.events)
        seen = seen or _find_pod_trouble(reader, pods) or trouble.find_job_pod_trouble(pods)
        seen = seen or controllers.find_declared_stop(job)
        if seen is None and objects.is_true(job, "Failed"):
            failed = objects.condition(job, "Failed")
            seen = Trouble(f"{failed.get('reason')}: {failed.get('message')}")
        return ConditionStatus(False, rollout.pod_states(pods), seen, [job, *pods])


@dataclass
class InferenceServiceReady:
    """An InferenceService is Ready, and its pods are those of its current specification.

    KServe's own Ready stays True while an update rolls out, and ``status.observedGeneration`` is the Deployment's and
    not the service's: so the pods' serving containers are compared with what service and runtime request now.
    """

    name: str
    timeout_s: float

    def __post_init__(self) -> None:
        self.what = f"inferenceservice/{self.name} condition=Ready"
        self.failing = f"inferenceservice/{self.name} cannot become Ready"

    def observe(self, reader: StageReader) -> ConditionStatus:
        """Observe the service, its workload and its pods."""
        service = reader.get("InferenceService", self.name)
        if service is None:
            return ConditionStatus(False, "absent")
        pods = reader.listed("Pod", {objects.SERVICE_LABEL: self.name})
        deployment = reader.get("Deployment", f"{self.name}-predictor")
        name = drift.runtime_name(service)
        runtime = reader.get("ServingRuntime", name) or reader.get("ClusterServingRuntime", name)
        stale = rollout.stale_reasons(service, runtime, deployment, pods)
        ready = objects.condition(service, "Ready")
        if ready.get("status") == "True" and not stale:
            return ConditionStatus(True, "Ready")
        seen = controllers.find_deletion_trouble(service) or _find_claims_trouble(reader, pods)
        seen = seen or (controllers.find_creation_trouble(deployment, reader.events) if deployment else None)
        seen = (
            seen
            or _find_pod_trouble(reader, pods)
            or controllers.find_runtime_trouble(service, runtime, _runtimes(reader, runtime))
        )
        seen = seen or controllers.find_specification_trouble(service) or controllers.find_declared_stop(service)
        seen = seen or (controllers.find_declared_stop(deployment) if deployment else None)
        seen = seen or controllers.find_condition_trouble(service) or _find_node_trouble(reader, pods)
        seen = seen or controllers.find_address_trouble(service)
        if seen is None and deployment is None:
            seen = controllers.find_reconcile_trouble(service, reader.events)
            seen = seen or controllers.find_unprocessed_trouble(service)
        why = stale[0] if ready.get("status") == "True" else f"Ready={ready.get('status', 'Unknown')}"
        return ConditionStatus(False, f"{rollout.pod_states(pods)}; {why}", seen, [service, *pods])


def _find_claim_trouble(reader: StageReader, claim: Object) -> Trouble | None:
    return claims.explain_pending_claim(
        claim, reader.everywhere("StorageClass"), reader.everywhere("PersistentVolume"), reader.events
    )


def _find_pod_trouble(reader: StageReader, pods: Sequence[Object]) -> Trouble | None:
    return trouble.find_pod_trouble(pods, reader.events, reader.logs, _read_placement_facts(reader, pods))


def _find_node_trouble(reader: StageReader, pods: Sequence[Object]) -> Trouble | None:
    """Nodes are read only where a pod was placed and is not Ready."""
    unready = [pod for pod in pods if pod["spec"].get("nodeName") and not objects.is_true(pod, "Ready")]
    return trouble.find_node_trouble(unready, reader.everywhere("Node")) if unready else None


def _read_placement_facts(reader: StageReader, pods: Sequence[Object]) -> PlacementFacts:
    """What decides where pods can run, read only where one was not scheduled."""
    states = [objects.condition(pod, "PodScheduled") for pod in pods]
    messages = [str(state.get("message", "")) for state in states if state.get("status") == "False"]
    if not messages:
        return PlacementFacts()
    return reader.placement(with_pods=any(_ABOUT_PODS.search(message) for message in messages))


def _runtimes(reader: StageReader, found: Object | None) -> list[str]:
    """The existing runtimes, listed only where the wanted one does not exist."""
    return [] if found else sorted(map(objects.name_of, reader.listed("ServingRuntime")))


def _find_claims_trouble(reader: StageReader, pods: Sequence[Object]) -> Trouble | None:
    """Explain pods that are not scheduled by their claims, which is more specific than the scheduler's message."""
    waiting = [pod for pod in pods if objects.condition(pod, "PodScheduled").get("status") == "False"]
    for name in sorted({name for pod in waiting for name in drift.claims_of(pod)}):
        claim = reader.get("PersistentVolumeClaim", name)
        if claim is None:
            return Trouble(f"PVC {name} does not exist", times=3)
        found = _find_claim_trouble(reader, claim)
        if found:
            return found
    return None

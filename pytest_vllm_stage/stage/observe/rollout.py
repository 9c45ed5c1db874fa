"""Whether the running pods are of the current generation: pure functions over objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.scheduling import requests_of

#: Labels of pods by which a Deployment and Knative distinguish revisions.
_REVISIONS = ("pod-template-hash", "serving.knative.dev/revision")


def stale_reasons(
    service: Object, runtime: Object | None, deployment: Object | None, pods: Sequence[Object]
) -> list[str]:
    """Why the running pods are not of the service's current generation; empty where they are.

    Args:
        service: The InferenceService as it is now.
        runtime: Its ServingRuntime as it is now.
        deployment: Its predictor's Deployment; None in Serverless mode.
        pods: Its pods.
    """
    if runtime is None:
        return [f"ServingRuntime {drift.runtime_name(service) or '(none named)'} does not exist"]
    wanted = drift.demand(service, runtime)
    lines = []
    if deployment is not None:
        done, state = rolled_out(deployment)
        lines += [] if done else [f"deployment not rolled out: {state}"]
    ready = [pod for pod in pods if objects.is_true(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")]
    if not ready:
        lines.append("no pod is Ready")
    for pod in ready:
        lines += [
            f"pod {objects.name_of(pod)} is of an older generation: {d}"
            for d in drift.compare_serving(wanted, pod["spec"])
        ]
    return lines


def rolled_out(deployment: Object) -> tuple[bool, str]:
    """Whether a Deployment runs its current generation and nothing else, and its numbers."""
    status, want = deployment.get("status") or {}, deployment["spec"].get("replicas", 1)
    if status.get("observedGeneration", 0) < deployment["metadata"].get("generation", 0):
        return False, "generation not observed yet"
    total, updated, available = (status.get(key, 0) for key in ("replicas", "updatedReplicas", "availableReplicas"))
    return total == updated == available == want, f"{available} of {want} available, {updated} updated, {total} in all"


def pod_states(pods: Sequence[Object]) -> str:
    """The pods' phases and what their containers wait for, in a few words."""
    words = []
    for pod in pods:
        status = pod.get("status") or {}
        waits = [
            container["state"]["waiting"].get("reason", "")
            for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
            if (container.get("state") or {}).get("waiting")
        ]
        is_ready = objects.is_true(pod, "Ready")
        running = [one for one in status.get("containerStatuses") or [] if "running" in (one.get("state") or {})]
        unready = [str(one.get("name")) for one in running if not one.get("ready")]
        # Of a single container the pod's own state says it.
        waits += [f"{name} not Ready" for name in unready if not is_ready and len(pod["spec"]["containers"]) > 1]
        ready = " and Ready" if is_ready else ""
        words.append(f"pod {status.get('phase', 'Pending')}{ready}{' (' + ', '.join(waits) + ')' if waits else ''}")
    return ", ".join(words) or "no pod yet"


def describe_predecessor(pod: Object, pods: Iterable[Object]) -> str:
    """The pod of an older revision whose devices a pod waits for, to be appended; empty where there is none.

    A rolling update starts a pod before it ends the one that it replaces: without a free GPU neither happens.
    """
    devices = [name for name in requests_of(pod) if "/" in name]
    for one in pods:
        is_running = one["spec"].get("nodeName") and not one["metadata"].get("deletionTimestamp")
        held = [name for name in devices if requests_of(one).get(name)]
        if held and is_running and _is_older_revision(one, pod):
            name = objects.name_of(one)
            return (
                f"; the rollout cannot proceed: {name}, which this pod is to replace, keeps its {held[0]} until this "
                "pod is Ready (deploymentStrategy Recreate ends it first)"
            )
    return ""


def revision_of(pod: Object) -> tuple[str, ...]:
    """What distinguishes a pod's revision; empty where its labels do not say."""
    labels = pod["metadata"].get("labels") or {}
    return tuple(labels[key] for key in _REVISIONS if key in labels)


def _is_older_revision(one: Object, pod: Object) -> bool:
    """Whether two pods serve one model from different templates."""
    mine, theirs = (found["metadata"].get("labels") or {} for found in (pod, one))
    return (
        one["metadata"].get("namespace") == pod["metadata"].get("namespace")
        and mine.get(objects.SERVICE_LABEL, "") == theirs.get(objects.SERVICE_LABEL)
        and any(key in mine and key in theirs and mine[key] != theirs[key] for key in _REVISIONS)
    )

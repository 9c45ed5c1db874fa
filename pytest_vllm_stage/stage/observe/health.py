"""Health of live objects: pure functions over objects. Each returns one line per problem, or an empty list."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import container_ends, diagnose, rollout, runbook
from pytest_vllm_stage.stage.observe.trouble import Logs, describe_removal
from pytest_vllm_stage.stage.quantities import parse_quantity

ZONE_LABEL = "topology.kubernetes.io/zone"


def check_service(
    service: Object, runtime: Object | None, deployment: Object | None, pods: Sequence[Object]
) -> list[str]:
    """Report an InferenceService that is not Ready, or that is Ready for an older generation than its current one."""
    lines = [
        f"condition {entry.get('type')} is {entry.get('status')}: {entry.get('reason', '')} {entry.get('message', '')}"
        for entry in (service.get("status") or {}).get("conditions") or []
        if entry.get("status") != "True" and entry.get("severity") != "Info"
    ]
    if not objects.condition(service, "Ready"):
        lines.append("condition Ready is not reported: no KServe controller has processed it")
    return [*lines, *_check_revisions(service), *rollout.stale_reasons(service, runtime, deployment, pods)]


def _check_revisions(service: Object) -> list[str]:
    """Report a newest revision of Knative that does not answer, or several that do.

    KServe gives the condition that says so the severity Info, and stays Ready: the older revision answers.
    """
    predictor = ((service.get("status") or {}).get("components") or {}).get("predictor") or {}
    created, ready = predictor.get("latestCreatedRevision"), predictor.get("latestReadyRevision")
    lines = (
        [f"revision {created} does not become Ready: {ready} answers"] if created and ready != created and ready else []
    )
    shares: dict[str, int] = {}
    for entry in predictor.get("traffic") or []:
        name = str(entry.get("revisionName") or ready)
        shares[name] = shares.get(name, 0) + (entry.get("percent") or 0)
    answering = [f"{name} ({percent} %)" for name, percent in shares.items() if percent]
    if len(answering) > 1:
        lines.append(
            f"{len(answering)} revisions answer: {', '.join(answering)}: what is measured is a mixture of them"
        )
    return lines


def check_replicas(service: Object, pods: Sequence[Object]) -> list[str]:
    """Report a number of Ready pods that differs from the declared one, and pods of an old revision that remain.

    A pod of the current revision may leave, as when an autoscaler needs fewer.
    """
    predictor = service["spec"]["predictor"]
    least = predictor.get("minReplicas", 1)
    mode = (service["metadata"].get("annotations") or {}).get("serving.kserve.io/deploymentMode")
    unlimited = mode in ("Serverless", "Knative") and not predictor.get("maxReplicas")
    most = math.inf if unlimited else predictor.get("maxReplicas") or least
    staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    ready = [pod for pod in staying if objects.is_true(pod, "Ready")]
    current = {rollout.revision_of(pod) for pod in staying} - {()}
    lines = [
        f"pod {objects.name_of(pod)} of an old revision still exists and holds its resources"
        for pod in pods
        if pod not in staying and rollout.revision_of(pod) not in current
    ]
    if not least <= len(ready) <= most:
        lines.append(f"expected {least} {'or more' if unlimited else f'to {most}'} Ready pods, got {len(ready)}")
    return lines


def check_pods(
    pods: Sequence[Object],
    events: Iterable[Object] = (),
    logs: Logs | None = None,
    now: datetime.datetime | None = None,
) -> list[str]:
    """Report pods that are not Ready, or whose containers ended or were restarted, with the cause where it is known.

    Args:
        pods: The pods.
        events: Events of their namespace: they name the probe that ended a container.
        logs: Reads the log of a container that ended.
        now: The time; given, what is long ago is left out: rare restarts, and pods that their node has removed.
    """
    known = list(events)
    # Pods that leave are judged by `check_replicas`.
    staying = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    lines = [] if staying else ["there is no pod"]
    for pod in staying:
        if now is not None and container_ends.is_removed_long_ago(pod, now):
            continue
        name, status = objects.name_of(pod), pod.get("status") or {}
        if removal := describe_removal(pod):
            lines.append(f"pod {name} {removal}")
        elif not objects.is_true(pod, "Ready"):
            lines.append(f"pod {name} is not Ready: {rollout.pod_states([pod])}")
        ended = [one for one in status.get("containerStatuses") or [] if container_ends.has_ended(one)]
        ended = [one for one in ended if now is None or not container_ends.is_long_over(pod, one, now)]
        lines += [container_ends.describe_end(pod, container, known, logs) for container in ended]
    return lines


def find_ends_since(
    pods: Iterable[Object], events: Iterable[Object], since_s: float, logs: Logs | None = None, role: str = ""
) -> list[str]:
    """Report the containers that ended last later than a time in seconds since the epoch, restarted or not."""
    known = list(events)
    return [
        container_ends.describe_end(pod, container, known, logs, role)
        for pod in pods
        for container in (pod.get("status") or {}).get("containerStatuses") or []
        if container_ends.has_ended(container) and container_ends.ended_at_s(container) > since_s
    ]


def check_claim(claim: Object | None, declared: Object) -> list[str]:
    """Report a claim that is not bound, or bound to less than the declared size."""
    name, wants = objects.name_of(declared), declared["spec"]["resources"]["requests"]["storage"]
    if claim is None:
        return [f"PVC {name} does not exist"]
    status = claim.get("status") or {}
    if status.get("phase") != "Bound":
        return [f"PVC {name}: expected phase Bound, got {status.get('phase', 'unknown')}"]
    has = (status.get("capacity") or {}).get("storage", "0")
    pending = [
        f" ({entry.get('type')}: {runbook.cut(str(entry.get('message') or entry.get('reason') or 'no reason given'))})"
        for entry in status.get("conditions") or []
        if entry.get("status") == "True"
    ]
    line = f"PVC {name}: expected {wants}, got {has}{''.join(pending)}"
    return [] if parse_quantity(has) >= parse_quantity(wants) else [line]


def check_placement(pods: Sequence[Object], volume: Object, nodes: Mapping[str, Object]) -> list[str]:
    """Report pods on a node that cannot mount the volume, or that no pod is on a node."""
    placed = [pod for pod in pods if pod["spec"].get("nodeName")]
    if not placed:
        return [f"pod {objects.name_of(pod)} is on no node: {rollout.pod_states([pod])}" for pod in pods] or [
            "there is no pod"
        ]
    homes = [nodes[pod["spec"]["nodeName"]] for pod in placed if pod["spec"]["nodeName"] in nodes]
    return [line for node in homes for line in check_zones(volume, node)]


def check_zones(volume: Object, node: Object) -> list[str]:
    """Report a volume in another zone than the node that has to mount it."""
    required = ((volume["spec"].get("nodeAffinity") or {}).get("required") or {}).get("nodeSelectorTerms") or []
    zones = {
        value
        for term in required
        for entry in term.get("matchExpressions") or []
        if entry.get("key") == ZONE_LABEL and entry.get("operator") == "In"
        for value in entry.get("values") or []
    }
    zone = (node["metadata"].get("labels") or {}).get(ZONE_LABEL)
    if not zones or zone in zones:
        return []
    return [
        f"persistentvolume {objects.name_of(volume)} is in zone {', '.join(sorted(zones))}, "
        f"node {objects.name_of(node)} is in {zone or 'none'}"
    ]


def check_job(job: Object | None, name: str) -> list[str]:
    """Report a Job that has not completed."""
    if job is None:
        return [f"job {name} does not exist"]
    if objects.is_true(job, "Complete"):
        return []
    failed = objects.condition(job, "Failed")
    if failed.get("status") == "True":
        return [f"job {name} failed: {failed.get('reason')}: {failed.get('message')}"]
    return [f"job {name} has not completed: {(job.get('status') or {}).get('active', 0)} pods active"]


@dataclass(frozen=True)
class SecretReference:
    """A place in the manifests that needs a Secret.

    Attributes:
        secret: The Secret's name.
        key: The key in it; None where the whole Secret is needed.
        where: The object that needs it.
    """

    secret: str
    key: str | None
    where: str


def secret_references(manifests: Iterable[Object]) -> list[SecretReference]:
    """Every Secret, and key of one, that the manifests name or declare; those marked optional are left out."""
    found: list[SecretReference] = []
    for manifest in manifests:
        where = f"{manifest['kind']}/{objects.name_of(manifest)}"
        if manifest["kind"] == "Secret":
            keys = [*(manifest.get("stringData") or {}), *(manifest.get("data") or {})]
            found += [SecretReference(objects.name_of(manifest), key, where) for key in keys]
        elif manifest["kind"] == "ServiceAccount":
            named = [*(manifest.get("secrets") or []), *(manifest.get("imagePullSecrets") or [])]
            found += [SecretReference(entry["name"], None, where) for entry in named]
        else:
            found += _references_in(manifest.get("spec"), where)
    return sorted(set(found), key=lambda ref: (ref.secret, ref.key or "", ref.where))


def _references_in(value: Any, where: str) -> list[SecretReference]:
    found: list[SecretReference] = []
    if isinstance(value, list):
        for item in value:
            found += _references_in(item, where)
    if not isinstance(value, dict):
        return found
    for field, item in value.items():
        optional = isinstance(item, dict) and item.get("optional")
        if field == "secretKeyRef" and not optional:
            found.append(SecretReference(item["name"], item["key"], where))
        elif field == "secretRef" and not optional:
            found.append(SecretReference(item["name"], None, where))
        elif field == "secret" and isinstance(item, dict) and "secretName" in item and not optional:
            keys = [entry["key"] for entry in item.get("items") or []] or [None]
            found += [SecretReference(item["secretName"], key, where) for key in keys]
        elif field == "imagePullSecrets":
            found += [SecretReference(entry["name"], None, where) for entry in item]
        else:
            found += _references_in(item, where)
    return found


def check_secrets(references: Iterable[SecretReference], live: Mapping[str, Iterable[str]]) -> list[str]:
    """Report references to missing Secrets or keys; ``live`` maps each Secret's name to its keys, without values."""
    lines = []
    for ref in references:
        if ref.secret not in live:
            lines.append(f"secret {ref.secret} does not exist ({ref.where} needs it)")
        elif ref.key is not None and ref.key not in live[ref.secret]:
            lines.append(f'secret {ref.secret} has no key "{ref.key}" ({ref.where} needs it)')
    return lines


def _is_pod_healthy(pod: Object) -> bool:
    return (pod.get("status") or {}).get("phase") == "Succeeded" or objects.is_true(pod, "Ready")


def _is_replica_set_healthy(found: Object) -> bool:
    return bool((found.get("status") or {}).get("readyReplicas", 0) >= found["spec"].get("replicas", 0))


#: Kinds whose warnings are judged, and when an object of the kind is healthy, so that its warnings are over.
_HEALTH: dict[str, Callable[[Object], bool]] = {
    "Pod": _is_pod_healthy,
    "Job": lambda job: objects.is_true(job, "Complete"),
    "PersistentVolumeClaim": lambda claim: (claim.get("status") or {}).get("phase") == "Bound",
    "Deployment": lambda deployment: rollout.rolled_out(deployment)[0],
    "ReplicaSet": _is_replica_set_healthy,
    "InferenceService": lambda service: objects.is_true(service, "Ready"),
}
JUDGED_KINDS = tuple(_HEALTH)


def standing_warnings(events: Iterable[Object], subjects: Iterable[Object]) -> list[str]:
    """Warning events that still apply: their subject exists and is unhealthy now.

    A readiness probe that failed while the model loaded, or a pod that waited for its volume, is over once the pod is
    Ready. So is one about a pod that failed, or was evicted, once its Job has completed or its ReplicaSet has others.
    Events about deleted objects are ignored.
    """
    by_uid = {item["metadata"].get("uid"): item for item in subjects}
    standing = []
    for event in events:
        about = event.get("involvedObject") or {}
        subject, well = by_uid.get(about.get("uid")), _HEALTH.get(str(about.get("kind")))
        if event.get("type") != "Warning" or subject is None or well is None or well(subject):
            continue
        if not _is_replaced(subject, by_uid):
            standing.append(event)
    return diagnose.event_lines(standing)


def _is_replaced(pod: Object, by_uid: Mapping[str | None, Object]) -> bool:
    """Whether a pod has failed and its owner is healthy without it."""
    owners = [by_uid.get(owner.get("uid")) for owner in pod["metadata"].get("ownerReferences") or []]
    failed = pod.get("kind") == "Pod" and (pod.get("status") or {}).get("phase") == "Failed"
    return failed and any(owner is not None and _HEALTH[str(owner["kind"])](owner) for owner in owners)


def message(symptom: str, lines: Sequence[str], command: str) -> str:
    """The message of a failed check: the symptom and what was observed, then the command to run next."""
    return "\n".join(
        [f"{symptom}: {lines[0] if lines else ''}", *[f"  {line}" for line in lines[1:]], f"  next: {command}"]
    )

"""States that are fine now and break at the next restart: pure functions over objects, one line per problem."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.controllers import describe_blockers
from pytest_vllm_stage.stage.observe.scheduling import PlacementFacts, find_obstacles

#: Conditions of the kubelet, and of Kubernetes' node-problem-detector.
PRESSURES = (
    "MemoryPressure",
    "DiskPressure",
    "PIDPressure",
    "NetworkUnavailable",
    "KernelDeadlock",
    "ReadonlyFilesystem",
)
#: Conditions of EKS' node monitoring agent, which True is the healthy status of.
MONITORED = ("AcceleratedHardwareReady", "ContainerRuntimeReady", "KernelReady", "NetworkingReady", "StorageReady")


def check_deletions(items: Iterable[Object]) -> list[str]:
    """Report objects that are being deleted, or volumes that are lost, though they still serve."""
    lines = []
    for item in items:
        since, phase = item["metadata"].get("deletionTimestamp"), (item.get("status") or {}).get("phase")
        if since:
            lines.append(f"{objects.reference(item)} is being deleted since {since}{describe_blockers(item)}")
        elif item.get("kind", "").startswith("PersistentVolume") and phase in ("Lost", "Released", "Failed"):
            lines.append(f"{objects.reference(item)}: expected phase Bound, got {phase}")
    return lines


def check_nodes(pods: Sequence[Object], placement: PlacementFacts) -> list[str]:
    """Report nodes under pressure, and nodes that take no replacement of a pod that no other node takes either."""
    lines, nodes = [], {objects.name_of(node): node for node in placement.nodes}
    for name in sorted({str(pod["spec"]["nodeName"]) for pod in pods} & nodes.keys()):
        node, hosted = nodes[name], [pod for pod in pods if pod["spec"]["nodeName"] == name]
        lines += [
            f"node {name} reports {kind}{'' if bad == 'True' else '=False'}: "
            f"{found.get('message') or found.get('reason') or 'no reason given'}"
            for kinds, bad in ((PRESSURES, "True"), (MONITORED, "False"))
            for kind in kinds
            if (found := objects.condition(node, kind)).get("status") == bad
        ]
        ready = objects.condition(node, "Ready")
        if ready.get("status") not in ("True", None):
            lines.append(f"node {name} is not Ready: {ready.get('message') or ready.get('reason') or 'unknown'}")
        stranded: dict[str, list[str]] = {}
        for pod in hosted:
            if all(find_obstacles(other, pod, placement) for other in nodes.values()):
                why = " and ".join(find_obstacles(node, pod, placement))
                stranded.setdefault(why, []).append(objects.name_of(pod))
        lines += [
            f"node {name} {why}, and no other node takes a replacement of {', '.join(sorted(names))}"
            for why, names in stranded.items()
        ]
    return lines


def check_references(pods: Sequence[Object], live: Mapping[str, Mapping[str, Object]]) -> list[str]:
    """Report what running pods read at their start and what has changed since, or has gone.

    Args:
        pods: The running pods.
        live: ``Secret``, ``ConfigMap`` and ``ServiceAccount`` to the namespace's objects by name; a kind that this user
            may not list is left out.
    """
    lines = []
    for pod in pods:
        name, account = objects.name_of(pod), pod["spec"].get("serviceAccountName", "default")
        if "ServiceAccount" in live and account not in live["ServiceAccount"]:
            lines.append(f"serviceaccount {account} of pod {name} does not exist any more")
        for kind, referenced, read_once in sorted(_references(pod["spec"])):
            if kind not in live:
                continue
            item = live[kind].get(referenced)
            if item is None:
                lines.append(f"{kind.lower()} {referenced} does not exist any more; pod {name} read it at its start")
            elif read_once and (changed := _changed_at(item)) > _started_at(pod) > "":
                lines.append(
                    f"{kind.lower()} {referenced} was changed at {changed}, after pod {name} read it at its start "
                    f"({_started_at(pod)})"
                )
    return list(dict.fromkeys(lines))


def _references(spec: Object) -> set[tuple[str, str, bool]]:
    """Kind and name of each Secret and ConfigMap that must exist, and whether it is read only at the start."""
    found = set()
    for container in [*(spec.get("containers") or []), *(spec.get("initContainers") or [])]:
        for entry in container.get("env") or []:
            for field, kind in (("secretKeyRef", "Secret"), ("configMapKeyRef", "ConfigMap")):
                ref = (entry.get("valueFrom") or {}).get(field) or {}
                if ref and not ref.get("optional"):
                    found.add((kind, str(ref["name"]), True))
        for entry in container.get("envFrom") or []:
            for field, kind in (("secretRef", "Secret"), ("configMapRef", "ConfigMap")):
                ref = entry.get(field) or {}
                if ref and not ref.get("optional"):
                    found.add((kind, str(ref["name"]), True))
    for volume in spec.get("volumes") or []:
        sources = [volume, *((volume.get("projected") or {}).get("sources") or [])]
        for source in sources:
            secret, config = source.get("secret") or {}, source.get("configMap") or {}
            names = ("Secret", secret.get("secretName") or secret.get("name")), ("ConfigMap", config.get("name"))
            optional = secret.get("optional") or config.get("optional")
            found |= {(kind, str(name), False) for kind, name in names if name and not optional}
    return {(kind, name, once) for kind, name, once in found if once or (kind, name, True) not in found}


def _changed_at(item: Object) -> str:
    """When the contents were written last; a change of labels and annotations alone does not count."""
    entries = item["metadata"].get("managedFields") or []
    written = [
        str(entry.get("time", ""))
        for entry in entries
        if {"f:data", "f:stringData", "f:binaryData"} & set(entry.get("fieldsV1") or {})
    ]
    return max(written, default=str(item["metadata"].get("creationTimestamp") or ""))


def _started_at(pod: Object) -> str:
    """When the first container that runs now was started."""
    states: list[Any] = [one.get("state") or {} for one in (pod.get("status") or {}).get("containerStatuses") or []]
    started = [str(state["running"].get("startedAt") or "") for state in states if state.get("running")]
    return min(started, default="")

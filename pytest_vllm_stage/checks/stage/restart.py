"""States that are fine now and break at the next restart: pure functions over objects, one line per problem."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from pytest_vllm_stage.checks.stage.drift.platform import limit_defaults
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.controllers import describe_blockers
from pytest_vllm_stage.stage.observe.scheduling import PlacementFacts, find_obstacles
from pytest_vllm_stage.stage.quantities import parse_quantity

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


def check_services(services: Iterable[Object], pods: Sequence[Object]) -> list[str]:
    """Report Services that select no Ready pod, or whose named target port no selected pod has."""
    lines = []
    for service in services:
        spec, name = service.get("spec") or {}, objects.name_of(service)
        selector = spec.get("selector") or {}
        if not selector or spec.get("type") == "ExternalName":
            continue
        hit = [pod for pod in pods if selector.items() <= (pod["metadata"].get("labels") or {}).items()]
        words = ", ".join(f"{key}={value}" for key, value in selector.items())
        if not hit:
            lines.append(f"service {name} selects no pod (selector {words})")
        elif not any(objects.is_true(pod, "Ready") for pod in hit):
            lines.append(f"service {name} selects no Ready pod (selector {words})")
        else:
            lines += _check_ports(service, hit)
    return lines


def _check_ports(service: Object, pods: Sequence[Object]) -> Iterator[str]:
    """A port by number needs no declaration in the container; a port by name does."""
    named = {
        str(port.get("name"))
        for pod in pods
        for container in pod["spec"]["containers"]
        for port in container.get("ports") or []
    }
    for port in service["spec"].get("ports") or []:
        target = port.get("targetPort", port.get("port"))
        if isinstance(target, str) and not target.isdigit() and target not in named:
            known = ", ".join(sorted(named - {"None"})) or "none"
            yield f"service {objects.name_of(service)} sends to port {target}, which no container has (named: {known})"


def check_quotas(quotas: Iterable[Object], limit_ranges: Sequence[Object], pods: Sequence[Object]) -> list[str]:
    """Report quotas that are exceeded already, or that a replacement of a running pod would not satisfy."""
    lines = []
    for quota in quotas:
        if (quota.get("spec") or {}).get("scopes") or (quota.get("spec") or {}).get("scopeSelector"):
            continue
        status, name = quota.get("status") or {}, objects.name_of(quota)
        hard = {**((quota.get("spec") or {}).get("hard") or {}), **(status.get("hard") or {})}
        for resource, limit in hard.items():
            used = (status.get("used") or {}).get(resource)
            if used is not None and parse_quantity(used) > parse_quantity(limit):
                lines.append(f"quota {name} allows {resource}={limit}, {used} are used: a replaced pod is not admitted")
            lines += _find_unspecified(name, resource, limit_ranges, pods)
    for one in limit_ranges:
        lines += _find_beyond_limit(one, pods)
    return lines


def _find_unspecified(quota: str, resource: str, ranges: Sequence[Object], pods: Sequence[Object]) -> Iterator[str]:
    """A quota for a resource demands that each container specifies it."""
    prefix, _, kind = resource.rpartition(".")
    if resource not in ("requests.cpu", "requests.memory", "limits.cpu", "limits.memory", "cpu", "memory"):
        return
    part = "limits" if prefix == "limits" else "requests"
    if limit_defaults(ranges, "default" if part == "limits" else "defaultRequest", kind):
        return
    for pod in pods:
        for container in pod["spec"]["containers"]:
            if kind not in ((container.get("resources") or {}).get(part) or {}):
                yield (
                    f"quota {quota} demands {part}.{kind}, which container {container['name']} of pod "
                    f"{objects.name_of(pod)} does not specify: a replaced pod is not admitted"
                )


def _find_beyond_limit(limit_range: Object, pods: Sequence[Object]) -> Iterator[str]:
    entries = [entry for entry in limit_range["spec"].get("limits") or [] if entry.get("type") == "Container"]
    for pod in pods:
        for container in pod["spec"]["containers"]:
            limits = (container.get("resources") or {}).get("limits") or {}
            for entry in entries:
                for resource, most in (entry.get("max") or {}).items():
                    if resource in limits and parse_quantity(limits[resource]) > parse_quantity(most):
                        yield (
                            f"LimitRange {objects.name_of(limit_range)} allows {resource} up to {most}, container "
                            f"{container['name']} of pod {objects.name_of(pod)} has {limits[resource]}: a replaced pod "
                            "is not admitted"
                        )


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

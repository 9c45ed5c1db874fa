"""Which nodes a pod cannot run on, and why: pure functions over objects.

The scheduler's message counts nodes per reason and names neither the node nor the taint, label or device.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.neighbours import find_neighbour_obstacles
from pytest_vllm_stage.stage.quantities import parse_quantity

#: Groups of nodes, names of one group, and obstacles of one node that a message shows.
MOST_GROUPS = 3
MOST_NAMES = 3
MOST_OBSTACLES = 2
_CORDON = "node.kubernetes.io/unschedulable"
_ZONES = ("topology.kubernetes.io/zone", "topology.kubernetes.io/region")
_ABSENT_NODE = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")


@dataclass(frozen=True)
class PlacementFacts:
    """What decides where a pod can run; a part that this user may not list is empty, and not judged.

    Attributes:
        nodes: All nodes.
        pods: The pods of all namespaces, which use the nodes' resources.
        claims: The PersistentVolumeClaims of the pod's namespace.
        volumes: All PersistentVolumes.
    """

    nodes: Sequence[Object] = ()
    pods: Sequence[Object] = ()
    claims: Sequence[Object] = ()
    volumes: Sequence[Object] = ()


def explain_unschedulable(pod: Object, placement: PlacementFacts) -> str:
    """What each node lacks for the pod, the likeliest nodes first; empty where no reason is found."""
    grouped: dict[tuple[bool, tuple[str, ...]], list[str]] = {}
    unexplained: list[str] = []
    devices = [name for name in requests_of(pod) if "/" in name]
    for node in placement.nodes:
        obstacles = tuple(find_obstacles(node, pod, placement))
        lacks_device = any(_allocatable(node).get(name, 0.0) < 1 for name in devices)
        if obstacles:
            grouped.setdefault((lacks_device, obstacles), []).append(objects.name_of(node))
        elif not lacks_device:
            unexplained.append(objects.name_of(node))
    if not grouped:
        return ""
    ranked = sorted(grouped.items(), key=lambda item: (item[0][0], len(item[0][1]), item[1]))
    lines = [f"{_name_nodes(names)} {_join_obstacles(obstacles)}" for (_, obstacles), names in ranked[:MOST_GROUPS]]
    if more := sum(len(names) for _, names in ranked[MOST_GROUPS:]):
        lines.append(f"{more} more nodes have other reasons")
    if unexplained:  # the reason may be theirs, so that the others' is not
        lines.insert(0, f"{_name_nodes(unexplained)} has no known obstacle")
    return "; ".join(lines)


def _join_obstacles(obstacles: Sequence[str]) -> str:
    more = len(obstacles) - MOST_OBSTACLES
    joined = " and ".join(obstacles[:MOST_OBSTACLES])
    return f"{joined} ({more} more)" if more > 0 else joined


def _name_nodes(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"node {names[0]}"
    more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
    return f"each of the nodes {', '.join(sorted(names)[:MOST_NAMES])}{more}"


def find_obstacles(node: Object, pod: Object, placement: PlacementFacts) -> list[str]:
    """Why the node does not accept the pod, each with the node as its subject; empty where it would."""
    return [
        *_find_taints(node, pod),
        *_find_missing_labels(node, pod),
        *_find_scarce_resources(node, pod, placement.pods),
        *_find_distant_volumes(node, pod, placement),
        *find_neighbour_obstacles(
            node,
            pod,
            placement.nodes,
            placement.pods,
            eligible=[one for one in placement.nodes if not list(_find_missing_labels(one, pod))],
        ),
    ]


def _find_taints(node: Object, pod: Object) -> Iterator[str]:
    taints = find_barring_taints(node, pod)
    if (node.get("spec") or {}).get("unschedulable") or any(taint["key"] == _CORDON for taint in taints):
        yield "is cordoned"
    if any(taint["key"] in _ABSENT_NODE for taint in taints):
        yield "is not Ready"
    for taint in taints:
        if taint["key"] not in (_CORDON, *_ABSENT_NODE):
            value = f"={taint['value']}" if taint.get("value") else ""
            yield f"has taint {taint['key']}{value}:{taint['effect']}"


def find_barring_taints(node: Object, pod: Object) -> list[Object]:
    """The node's taints that keep the pod away since it does not tolerate them."""
    tolerations = pod["spec"].get("tolerations") or []
    return [
        taint
        for taint in (node.get("spec") or {}).get("taints") or []
        if taint.get("effect") != "PreferNoSchedule" and not any(_tolerates(entry, taint) for entry in tolerations)
    ]


def _tolerates(toleration: Object, taint: Object) -> bool:
    if toleration.get("effect") not in (None, "", taint.get("effect")):
        return False
    if toleration.get("operator") == "Exists":
        return toleration.get("key") in (None, "", taint["key"])
    return bool(toleration.get("key") == taint["key"] and toleration.get("value", "") == taint.get("value", ""))


def _find_missing_labels(node: Object, pod: Object) -> Iterator[str]:
    labels = _labels_of(node)
    for key, value in (pod["spec"].get("nodeSelector") or {}).items():
        if labels.get(key) != value:
            found = f"has label {key}={labels[key]}" if key in labels else f"has no label {key}"
            yield f"{found} (node selector: {key}={value})"
    required = ((pod["spec"].get("affinity") or {}).get("nodeAffinity") or {}).get(
        "requiredDuringSchedulingIgnoredDuringExecution"
    ) or {}
    terms = required.get("nodeSelectorTerms") or []
    if terms and not any(_matches(term, node) for term in terms):
        yield f"does not match the node affinity {' or '.join(map(_describe_term, terms))}"


def _labels_of(node: Object) -> Mapping[str, str]:
    return node["metadata"].get("labels") or {}


def _matches(term: Object, node: Object) -> bool:
    """A term without requirements matches no node."""
    fields = {"metadata.name": objects.name_of(node)}
    requirements = [(entry, _labels_of(node)) for entry in term.get("matchExpressions") or []]
    requirements += [(entry, fields) for entry in term.get("matchFields") or []]
    return bool(requirements) and all(_is_met(entry, values) for entry, values in requirements)


def _is_met(entry: Object, values: Mapping[str, str]) -> bool:
    key, operator, wanted = entry["key"], entry["operator"], entry.get("values") or []
    found = values.get(key)
    if operator in ("Exists", "DoesNotExist"):
        return bool((found is not None) == (operator == "Exists"))
    if operator in ("In", "NotIn"):
        return bool((found in wanted) == (operator == "In"))
    try:
        number, bound = int(found or ""), int(wanted[0])
    except (ValueError, IndexError):
        return False
    return number > bound if operator == "Gt" else number < bound


def _describe_term(term: Object) -> str:
    entries = [*(term.get("matchExpressions") or []), *(term.get("matchFields") or [])]
    return " and ".join(_describe_requirement(entry) for entry in entries) or "(empty)"


def _describe_requirement(entry: Object) -> str:
    values = ", ".join(entry.get("values") or [])
    return f"{entry['key']} {entry['operator']}" + (f" [{values}]" if values else "")


def _find_scarce_resources(node: Object, pod: Object, pods: Sequence[Object]) -> Iterator[str]:
    """Resources of which the node has too few, or too few free ones; a node without a status is not judged."""
    offered = _allocatable(node)
    users = [
        one
        for one in pods
        if one["spec"].get("nodeName") == objects.name_of(node)
        and (one.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        and one["metadata"].get("uid") != pod["metadata"].get("uid")
    ]
    for name, wanted in requests_of(pod).items() if offered else ():
        if name not in offered and "/" not in name:  # every real node has CPU and memory
            continue
        has = offered.get(name, 0.0)
        used = {_full_name(one): count for one in users if (count := requests_of(one).get(name, 0.0))}
        free, tolerance = has - sum(used.values()), has * 1e-6
        if wanted > has + tolerance:
            there = _describe_withdrawn(node, name) or ("" if has else _describe_devices(offered, name))
            what = f"{_amount(has, name)} " if has else "no "
            yield f"offers {what}{name} of {_amount(wanted, name)} requested{there}"
        elif wanted > free + tolerance:
            names = sorted(used, key=lambda one: -used[one])
            more = f" and {len(names) - MOST_NAMES} more" if len(names) > MOST_NAMES else ""
            yield (
                f"has {_amount(max(free, 0.0), name)} of {_amount(has, name)} {name} free, {_amount(wanted, name)} "
                f"requested (used by {', '.join(names[:MOST_NAMES])}{more})"
            )


def _describe_devices(offered: Mapping[str, float], wanted: str) -> str:
    """The devices of the same vendor that a node offers instead, to be appended: whole GPUs, or parts of one."""
    vendor = wanted.partition("/")[0] + "/"
    others = [f"{_amount(count, name)} {name}" for name, count in sorted(offered.items()) if count]
    found = [text for text in others if "/" in wanted and f" {vendor}" in text]
    return f" (it offers {', '.join(found)})" if found else ""


def _describe_withdrawn(node: Object, wanted: str) -> str:
    """Devices that the node has and does not offer, to be appended."""
    capacity, offered = _parse_resources((node.get("status") or {}).get("capacity")), _allocatable(node)
    if "/" in wanted and capacity.get(wanted, 0.0) > offered.get(wanted, 0.0):
        lost = capacity[wanted] - offered.get(wanted, 0.0)
        return (
            f" (its device plugin reports {_amount(lost, wanted)} of {_amount(capacity[wanted], wanted)} as unhealthy)"
        )
    label = f"{wanted}.present"
    if not capacity.get(wanted) and _labels_of(node).get(label) == "true" and not _describe_devices(offered, wanted):
        return f" (it is labelled {label}=true, and no device plugin offers the GPUs)"
    return ""


def _full_name(pod: Object) -> str:
    return f"{pod['metadata'].get('namespace', '')}/{objects.name_of(pod)}"


def _allocatable(node: Object) -> dict[str, float]:
    return _parse_resources((node.get("status") or {}).get("allocatable"))


def _parse_resources(found: Mapping[str, str] | None) -> dict[str, float]:
    parsed = {}
    for name, quantity in (found or {}).items():
        if name != "pods":
            parsed[name] = parse_quantity(quantity)
    return parsed


def _amount(value: float, resource: str) -> str:
    """A number as people write it: memory and storage in GiB, all else plain."""
    return f"{value / 2**30:.3g}Gi" if resource in ("memory", "ephemeral-storage") else f"{value:.6g}"


def requests_of(pod: Object) -> dict[str, float]:
    """What the scheduler reserves: the containers together, or the largest init container where that is more."""
    spec = pod["spec"]
    starting = spec.get("initContainers") or []
    lasting = [one for one in starting if one.get("restartPolicy") == "Always"]
    total = _sum_requests([*(spec.get("containers") or []), *lasting])
    for container in starting:
        if container not in lasting:
            for name, count in _sum_requests([container]).items():
                total[name] = max(total.get(name, 0.0), count)
    for name, count in _parse_resources(spec.get("overhead")).items():
        total[name] = total.get(name, 0.0) + count
    return {name: count for name, count in total.items() if count}


def _sum_requests(containers: Iterable[Object]) -> dict[str, float]:
    total: dict[str, float] = {}
    for container in containers:
        resources = container.get("resources") or {}
        for name, count in _parse_resources(
            {**(resources.get("limits") or {}), **(resources.get("requests") or {})}
        ).items():
            total[name] = total.get(name, 0.0) + count
    return total


def _find_distant_volumes(node: Object, pod: Object, placement: PlacementFacts) -> Iterator[str]:
    """Bound volumes that cannot be mounted on the node, for example those of another zone."""
    claims = {objects.name_of(claim): claim for claim in placement.claims}
    volumes = {objects.name_of(volume): volume for volume in placement.volumes}
    for entry in pod["spec"].get("volumes") or []:
        name = (entry.get("persistentVolumeClaim") or {}).get("claimName", "")
        volume = volumes.get(((claims.get(name) or {}).get("spec") or {}).get("volumeName", ""))
        required = ((volume or {"spec": {}})["spec"].get("nodeAffinity") or {}).get("required") or {}
        terms = required.get("nodeSelectorTerms") or _zone_terms(volume or {})
        if volume and terms and not any(_matches(term, node) for term in terms):
            yield (
                f"{_describe_place(node, terms)} and cannot mount PVC {name}, whose volume {objects.name_of(volume)} "
                f"requires {' or '.join(map(_describe_term, terms))}"
            )


def _zone_terms(volume: Object) -> list[Object]:
    """The zone of a volume that has it as a label, as in-tree provisioners set it: values are joined by ``__``."""
    labels = (volume.get("metadata") or {}).get("labels") or {}
    entries = [{"key": key, "operator": "In", "values": labels[key].split("__")} for key in _ZONES if key in labels]
    return [{"matchExpressions": entries}] if entries else []


def _describe_place(node: Object, terms: Iterable[Object]) -> str:
    """The node's values of the labels that the terms are about."""
    keys = sorted({str(entry["key"]) for term in terms for entry in term.get("matchExpressions") or []})
    labels = _labels_of(node)
    return " and ".join(f"has {key}={labels[key]}" if key in labels else f"has no label {key}" for key in keys)

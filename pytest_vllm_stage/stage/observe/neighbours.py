"""Which pods keep a pod away from a node (anti-affinity, affinity, topology spread): pure functions over objects."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object

_REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
_MOST_NAMES = 3


def find_neighbour_obstacles(
    node: Object, pod: Object, nodes: Sequence[Object], pods: Sequence[Object], *, eligible: Sequence[Object]
) -> list[str]:
    """Why the pods that run do not let the pod onto the node; nothing is judged where they may not be listed.

    Args:
        node: The node.
        pod: The pod.
        nodes: All nodes.
        pods: The pods of all namespaces.
        eligible: The nodes that the pod's node selector and affinity allow.
    """
    running = [
        one
        for one in pods
        if one["spec"].get("nodeName")
        and (one.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        and one["metadata"].get("uid") != pod["metadata"].get("uid")
    ]
    if not running:
        return []
    by_name = {objects.name_of(one): one for one in nodes}
    return [
        *_find_repelling_pods(node, pod, by_name, running),
        *_find_lacking_pods(node, pod, by_name, running),
        *_find_uneven_spread(node, pod, by_name, running, eligible),
    ]


def _find_repelling_pods(
    node: Object, pod: Object, nodes: Mapping[str, Object], running: Sequence[Object]
) -> Iterator[str]:
    """Required anti-affinity of the pod against others, and of others against the pod."""
    for term in _terms(pod, "podAntiAffinity"):
        met = [other for other in _in_domain(node, term, nodes, running) if _selects(term, pod, other)]
        if met:
            yield f"runs {_name(met)}, which the pod's anti-affinity excludes from one {term['topologyKey']}"
    for other in running:
        for term in _terms(other, "podAntiAffinity"):
            if _in_domain(node, term, nodes, [other]) and _selects(term, other, pod):
                yield f"is kept free of the pod by the anti-affinity of {_name([other])} ({term['topologyKey']})"


def _find_lacking_pods(
    node: Object, pod: Object, nodes: Mapping[str, Object], running: Sequence[Object]
) -> Iterator[str]:
    """Required affinity; the first pod of a group that it selects itself may go anywhere."""
    for term in _terms(pod, "podAffinity"):
        matching = [other for other in running if _selects(term, pod, other)]
        is_first = not matching and _selects(term, pod, pod)
        if not is_first and not _in_domain(node, term, nodes, matching):
            labels = _describe_selector(term.get("labelSelector"))
            yield f"runs no pod with {labels}, which the pod's affinity requires in its {term['topologyKey']}"


def _find_uneven_spread(
    node: Object, pod: Object, nodes: Mapping[str, Object], running: Sequence[Object], eligible: Sequence[Object]
) -> Iterator[str]:
    """A constraint counts on the nodes that the pod may choose (nodeAffinityPolicy Honor), unless it says otherwise."""
    for rule in pod["spec"].get("topologySpreadConstraints") or []:
        if rule.get("whenUnsatisfiable", "DoNotSchedule") != "DoNotSchedule":
            continue
        key, most = rule["topologyKey"], int(rule.get("maxSkew", 1))
        place = _labels(node).get(key)
        if place is None:
            yield f"has no label {key} (topology spread constraint)"
            continue
        counted = (
            nodes if rule.get("nodeAffinityPolicy") == "Ignore" else {objects.name_of(one): one for one in eligible}
        )
        counts = {place: 0} | {_labels(one)[key]: 0 for one in counted.values() if key in _labels(one)}
        for other in running:
            found = _labels(counted.get(other["spec"]["nodeName"], {})).get(key)
            if found is not None and _selects(rule, pod, other):
                counts[found] += 1
        if counts[place] + 1 - min(counts.values()) > most:
            yield (
                f"is in {key}={place} with {counts[place]} such pods, at most {most} more than elsewhere "
                "(topology spread constraint)"
            )


def _terms(pod: Object, kind: str) -> list[Object]:
    return ((pod["spec"].get("affinity") or {}).get(kind) or {}).get(_REQUIRED) or []


def _labels(item: Object) -> Mapping[str, str]:
    return (item.get("metadata") or {}).get("labels") or {}


def _in_domain(node: Object, term: Object, nodes: Mapping[str, Object], pods: Sequence[Object]) -> list[Object]:
    """The pods that run in the node's part of the cluster, for example its zone."""
    key = term["topologyKey"]
    place = _labels(node).get(key)
    if key == "kubernetes.io/hostname":
        return [pod for pod in pods if pod["spec"]["nodeName"] == objects.name_of(node)]
    return [
        pod for pod in pods if place is not None and _labels(nodes.get(pod["spec"]["nodeName"], {})).get(key) == place
    ]


def _selects(term: Object, owner: Object, other: Object) -> bool:
    """The owner's term is about the other pod; a selector of namespaces by their labels is not judged."""
    own, its = owner["metadata"].get("namespace"), other["metadata"].get("namespace")
    if term.get("namespaceSelector"):
        return False
    if "namespaceSelector" not in term and its not in (term.get("namespaces") or [own]):
        return False
    selector = term.get("labelSelector")
    return selector is not None and _matches(selector, _labels(other))


def _matches(selector: Object, labels: Mapping[str, str]) -> bool:
    for key, value in (selector.get("matchLabels") or {}).items():
        if labels.get(key) != value:
            return False
    for entry in selector.get("matchExpressions") or []:
        found, values = labels.get(entry["key"]), entry.get("values") or []
        met = {
            "In": found in values,
            "NotIn": found not in values,
            "Exists": found is not None,
            "DoesNotExist": found is None,
        }
        if not met.get(entry["operator"], False):
            return False
    return True


def _describe_selector(selector: Object | None) -> str:
    labels = [f"{key}={value}" for key, value in ((selector or {}).get("matchLabels") or {}).items()]
    labels += [
        f"{entry['key']} {entry['operator']} {entry.get('values') or ''}".strip()
        for entry in (selector or {}).get("matchExpressions") or []
    ]
    return ", ".join(labels) or "any labels"


def _name(pods: Sequence[Object]) -> str:
    names = [f"{pod['metadata'].get('namespace', '')}/{objects.name_of(pod)}" for pod in pods]
    more = f" and {len(names) - _MOST_NAMES} more" if len(names) > _MOST_NAMES else ""
    return f"{', '.join(names[:_MOST_NAMES])}{more}"

"""What refuses a replacement of a running pod: quotas, limit ranges, webhooks. Pure functions, a line per problem."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pytest_vllm_stage.checks.stage.drift.platform import limit_defaults
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import rollout
from pytest_vllm_stage.stage.quantities import parse_quantity


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


#: The labels ``control-plane`` of controllers whose webhooks see each pod of a model, or its InferenceService.
_CONTROLLERS = ("kserve-controller-manager", "odh-model-controller")


def check_controllers(pods: Iterable[Object]) -> list[str]:
    """Report controllers of models of which no pod is Ready; one without a pod here runs elsewhere, or not in pods.

    Args:
        pods: The pods of all namespaces; those that this user may not list are not judged.
    """
    found: dict[str, list[Object]] = {}
    for pod in pods:
        name = (pod["metadata"].get("labels") or {}).get("control-plane")
        if name in _CONTROLLERS:
            found.setdefault(name, []).append(pod)
    return [
        f"controller {name} is not Ready: pod {made[0]['metadata'].get('namespace')}/{objects.name_of(made[0])}: "
        f"{rollout.pod_states(made[:1])}; its webhook refuses new pods, and no change of a model takes effect"
        for name, made in sorted(found.items())
        if not any(objects.is_true(pod, "Ready") for pod in made)
    ]


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
    name = objects.name_of(limit_range)
    for entry in limit_range["spec"].get("limits") or []:
        for pod in pods:
            containers = pod["spec"]["containers"]
            judged = {
                f"container {one['name']} of pod {objects.name_of(pod)}": one.get("resources") for one in containers
            }
            if entry.get("type") == "Pod":
                judged = {f"pod {objects.name_of(pod)}": _sum_resources(containers)}
            for who, resources in judged.items() if entry.get("type") in ("Container", "Pod") else ():
                for line in _find_refusals(entry, resources or {}):
                    yield f"LimitRange {name} {line.format(who=who)}: a replaced pod is not admitted"


def _find_refusals(entry: Object, resources: Object) -> Iterator[str]:
    """What a limit range refuses of specified resources; what is not specified gets its defaults."""
    limits, requests = resources.get("limits") or {}, resources.get("requests") or {}
    for resource, most in (entry.get("max") or {}).items():
        if resource in limits and parse_quantity(limits[resource]) > parse_quantity(most):
            yield f"allows {resource} up to {most}, {{who}} has {limits[resource]}"
    for resource, least in (entry.get("min") or {}).items():
        if resource in requests and parse_quantity(requests[resource]) < parse_quantity(least):
            yield f"demands {resource} from {least} on, {{who}} requests {requests[resource]}"
    for resource, ratio in (entry.get("maxLimitRequestRatio") or {}).items():
        if resource in limits and parse_quantity(requests.get(resource, 0)):
            found = parse_quantity(limits[resource]) / parse_quantity(requests[resource])
            if found > parse_quantity(ratio):
                yield f"allows {resource} limits of {ratio} times the request, {{who}} has {found:.3g} times"


def _sum_resources(containers: Sequence[Object]) -> Object:
    """The containers' resources together; one that a container does not specify is left out."""
    total: Object = {}
    for part in ("limits", "requests"):
        found = [(container.get("resources") or {}).get(part) or {} for container in containers]
        names = set.intersection(*map(set, found)) if found else set()
        total[part] = {name: sum(parse_quantity(one[name]) for one in found) for name in sorted(names)}
    return total

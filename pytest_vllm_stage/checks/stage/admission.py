"""Quotas and limit ranges that refuse a replacement of a running pod: pure functions, one line per problem."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pytest_vllm_stage.checks.stage.drift.platform import limit_defaults
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
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

"""Whether Services lead to the pods that their clients expect: pure functions over objects, one line per problem."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object


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

"""Whether Services lead to the pods that their clients expect: pure functions over objects, one line per problem."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from pytest_vllm_stage.checks.stage.engine_arguments import read_arguments
from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.objects import Object


def check_services(services: Iterable[Object], pods: Sequence[Object]) -> list[str]:
    """Report Services that select no Ready pod, pods of several models, or none with their target port."""
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
            lines += [*_check_ports(service, hit), *_check_models(service, hit)]
    return lines


def _check_ports(service: Object, pods: Sequence[Object]) -> Iterator[str]:
    """A port by name has to be declared; one by number is judged where every container declares its ports."""
    containers = [
        one for pod in pods for part in ("containers", "initContainers") for one in pod["spec"].get(part) or []
    ]
    ports = [port for container in containers for port in container.get("ports") or []]
    named, numbers = {str(port.get("name")) for port in ports}, {str(port.get("containerPort")) for port in ports}
    targets = [str(port.get("targetPort") or port.get("port")) for port in service["spec"].get("ports") or []]
    name = objects.name_of(service)
    for target in targets:
        if not target.isdigit() and target not in named:
            known = ", ".join(sorted(named - {"None"})) or "none"
            yield f"service {name} sends to port {target}, which no container has (named: {known})"
    all_declare = all(container.get("ports") for pod in pods for container in pod["spec"]["containers"])
    if targets and all_declare and all(target.isdigit() and target not in numbers for target in targets):
        declared = ", ".join(sorted(numbers))
        yield f"service {name} sends to port {', '.join(targets)}, and its pods declare {declared} alone"


def _check_models(service: Object, pods: Sequence[Object]) -> Iterator[str]:
    """Pods of several models behind one Service, unless it is there to read their metrics."""
    served: dict[str, str] = {}
    for pod in pods:
        model = (pod["metadata"].get("labels") or {}).get(objects.SERVICE_LABEL)
        if model:
            container = drift.serving_container(pod["spec"])
            words = [*(container.get("command") or []), *(container.get("args") or [])]
            served[model] = read_arguments(words).get("served-model-name") or model
    ports = [str(port.get("name") or "") for port in service["spec"].get("ports") or []]
    names = " ".join([objects.name_of(service), *ports])
    if len(set(served.values())) > 1 and "metrics" not in names and "prom" not in names:
        models = ", ".join(sorted(served))
        yield f"service {objects.name_of(service)} sends each request to one of the models {models}: clients get either"

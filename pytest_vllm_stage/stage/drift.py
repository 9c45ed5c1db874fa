"""Drift between declared and live objects, and within the manifests: pure functions.

Each check returns one line per difference, and an empty list where there is none.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.quantities import parse_quantity

#: KServe's name of the container that serves the model.
SERVING_CONTAINER = "kserve-container"
MODEL_LABEL = "vllm-stage/model"
VERSION_LABEL = "vllm-stage/version"
#: Images that the local cluster builds and loads itself; no registry can change what such a tag refers to.
OWN_IMAGES = "vllm-stage.local/"
_PINNED = re.compile(r".+@sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Demand:
    """The serving container that an InferenceService and its runtime request together.

    Attributes:
        image: The runtime's image, unless the service overrides it.
        command: The entry point.
        args: The runtime's arguments, then the service's, placeholders replaced.
        env: Variables with plain values.
        resources: Requests and limits by name, ``requests.memory`` to a quantity.
    """

    image: str
    command: tuple[str, ...]
    args: tuple[str, ...]
    env: dict[str, str]
    resources: dict[str, str]


def demand(service: Object, runtime: Object) -> Demand:
    """The serving container that KServe should create for a service and its runtime."""
    model = service["spec"]["predictor"].get("model") or {}
    base = serving_container(runtime["spec"])
    args = [*(base.get("args") or []), *(model.get("args") or [])]
    return Demand(
        image=model.get("image") or base.get("image", ""),
        command=tuple(model.get("command") or base.get("command") or ()),
        args=tuple(_replaced(arg, service) for arg in args),
        env=_plain_env(base) | _plain_env(model),
        resources=_resources(base) | _resources(model),
    )


def runtime_name(service: Object) -> str:
    """The ServingRuntime that a service names; empty where it leaves the choice to KServe."""
    return str(service["spec"]["predictor"].get("model", {}).get("runtime", ""))


def serving_container(spec: Object) -> Object:
    """The serving container of a runtime's or a pod's spec; its first container where none has the name."""
    containers = spec.get("containers") or [{}]
    return dict(next((found for found in containers if found.get("name") == SERVING_CONTAINER), containers[0]))


def _replaced(text: str, service: Object) -> str:
    for key, value in (("Name", objects.name_of(service)), ("Namespace", service["metadata"].get("namespace", ""))):
        text = re.sub(rf"\{{\{{\s*\.{key}\s*\}}\}}", value, text)
    return text


def replace_placeholders(value: Any, service: Object) -> Any:
    """The value with the placeholders of a ServingRuntime replaced in every string of it."""
    if isinstance(value, str):
        return _replaced(value, service)
    if isinstance(value, dict):
        return {key: replace_placeholders(item, service) for key, item in value.items()}
    return [replace_placeholders(item, service) for item in value] if isinstance(value, list) else value


def _plain_env(container: Object) -> dict[str, str]:
    return {entry["name"]: str(entry["value"]) for entry in container.get("env") or [] if "value" in entry}


def _resources(container: Object) -> dict[str, str]:
    declared = container.get("resources") or {}
    kinds = ("requests", "limits")
    return {f"{kind}.{name}": str(value) for kind in kinds for name, value in (declared.get(kind) or {}).items()}


def compare_serving(wanted: Demand, spec: Object) -> list[str]:
    """Compare the serving container of a live pod or template with the demand."""
    live = serving_container(spec)
    lines = compare_args(wanted.args, tuple(live.get("args") or ()))
    for field, declared, found in (
        ("image", wanted.image, live.get("image", "")),
        ("command", list(wanted.command), live.get("command") or []),
    ):
        if declared != found:
            lines.append(f"{field}: declared {declared}, live {found}")
    env = _plain_env(live)
    lines += [
        f"env {name}: declared {value}, live {env.get(name, '(absent)')}"
        for name, value in wanted.env.items()
        if env.get(name) != value
    ]
    resources = _resources(live)
    for name, value in wanted.resources.items():
        if name not in resources or parse_quantity(resources[name]) != parse_quantity(value):
            lines.append(f"resources {name}: declared {value}, live {resources.get(name, '(absent)')}")
    return lines


def compare_args(declared: tuple[str, ...], live: tuple[str, ...]) -> list[str]:
    """Compare arguments, and their order, since the last of a repeated flag wins."""
    lines = [f"argument declared, not live: {arg}" for arg in declared if arg not in live]
    lines += [f"argument live, not declared: {arg}" for arg in live if arg not in declared]
    if not lines and declared != live:
        lines.append(f"arguments in another order: declared {' '.join(declared)}, live {' '.join(live)}")
    return lines


def images(manifests: list[Object]) -> dict[str, str]:
    """Map each place that names an image to the image: ``Job/download containers[loader]``."""
    found: dict[str, str] = {}
    for manifest in manifests:
        for path, container in _containers(manifest.get("spec"), f"{manifest['kind']}/{objects.name_of(manifest)}"):
            found[path] = container["image"]
    return found


def _containers(value: Any, path: str) -> list[tuple[str, Object]]:
    found: list[tuple[str, Object]] = []
    if isinstance(value, dict):
        for key, item in value.items():
            if key in ("containers", "initContainers") and isinstance(item, list):
                found += [(f"{path} {key}[{c.get('name', '')}]", c) for c in item if c.get("image")]
            else:
                found += _containers(item, path)
    elif isinstance(value, list):
        for item in value:
            found += _containers(item, path)
    return found


def unpinned(manifests: list[Object]) -> list[str]:
    """Images that are not named by digest, so that what runs can change without a change of the manifests."""
    return [
        f"{where}: {image} is not pinned by digest (name@sha256:...)"
        for where, image in images(manifests).items()
        if not _PINNED.fullmatch(image) and not image.startswith(OWN_IMAGES)
    ]


def labels(manifests: list[Object]) -> list[str]:
    """Model and version labels that do not agree over a model's service, volume and download."""
    lines = []
    for service in render.select_kind(manifests, "InferenceService"):
        want, name = _model_labels(service), objects.name_of(service)
        if None in want:
            lines.append(f"InferenceService/{name} lacks the labels {MODEL_LABEL} and {VERSION_LABEL}")
            continue
        lines += [
            f"{item['kind']}/{objects.name_of(item)} is labelled {_model_labels(item)}, InferenceService/{name} {want}"
            for item in find_model_objects(manifests, service)
            if _model_labels(item) != want
        ]
    return lines


def _model_labels(item: Object) -> tuple[str | None, str | None]:
    found = item["metadata"].get("labels") or {}
    return found.get(MODEL_LABEL), found.get(VERSION_LABEL)


def claim_name(service: Object) -> str | None:
    """The PersistentVolumeClaim that a service's ``pvc://`` storage URI names."""
    uri = str(service["spec"]["predictor"].get("model", {}).get("storageUri", ""))
    return uri.removeprefix("pvc://").split("/")[0] if uri.startswith("pvc://") else None


def find_model_objects(manifests: list[Object], service: Object) -> list[Object]:
    """Return the volume of a service's model, and the Jobs that mount it."""
    name = claim_name(service)
    claim = render.named(manifests, "PersistentVolumeClaim", name) if name else None
    jobs = [job for job in render.select_kind(manifests, "Job") if name and name in claims_of(job["spec"]["template"])]
    return [*([claim] if claim else []), *jobs]


def claims_of(template: Object) -> list[str]:
    """The claims that a pod template mounts."""
    volumes = template["spec"].get("volumes") or []
    return [volume["persistentVolumeClaim"]["claimName"] for volume in volumes if "persistentVolumeClaim" in volume]

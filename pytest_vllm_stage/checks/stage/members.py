"""Which live objects belong to the stage: a namespace may hold others too. Pure functions over objects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object


def select_pods(pods: Iterable[Object], declared: list[Object]) -> list[Object]:
    """The pods of declared Deployments and InferenceServices that are on a node and neither finished nor leaving."""
    models = {objects.name_of(item) for item in render.select_kind(declared, "InferenceService")}
    workloads = tuple(f"{objects.name_of(item)}-" for item in render.select_kind(declared, "Deployment"))
    return [
        pod
        for pod in pods
        if pod["spec"].get("nodeName")
        and not pod["metadata"].get("deletionTimestamp")
        and (pod.get("status") or {}).get("phase") not in ("Succeeded", "Failed")
        and (_model_of(pod) in models or objects.name_of(pod).startswith(workloads))
    ]


def select_services(services: Iterable[Object], declared: list[Object]) -> list[Object]:
    """The declared Services and those that KServe generates for a declared model; Knative's have no pod when idle."""
    names = {objects.name_of(item) for item in render.select_kind(declared, "Service")}
    models = {objects.name_of(item) for item in render.select_kind(declared, "InferenceService")}
    return [
        item
        for item in services
        if objects.name_of(item) in names
        or (_model_of(item) in models and not any("knative.dev" in key for key in _labels(item)))
    ]


def select_declared(items: Iterable[Object], declared: Sequence[Object]) -> list[Object]:
    """The live objects that a manifest declares, and those that an object owns."""
    names = {(item["kind"], objects.name_of(item)) for item in declared}
    return [
        item
        for item in items
        if (item["kind"], objects.name_of(item)) in names or item["metadata"].get("ownerReferences")
    ]


def select_own(items: Sequence[Object], declared: Sequence[Object]) -> list[Object]:
    """The declared objects, those of a declared model, and whatever they own, directly or not."""
    names = {(item["kind"], objects.name_of(item)) for item in declared}
    models = {objects.name_of(item) for item in declared if item["kind"] == "InferenceService"}
    own: list[Object] = []
    others = list(items)
    while others:
        uids = {item["metadata"].get("uid") for item in own}
        added = [
            item
            for item in others
            if (item.get("kind"), objects.name_of(item)) in names
            or _model_of(item) in models
            or uids & {owner.get("uid") for owner in item["metadata"].get("ownerReferences") or []}
        ]
        if not added:
            break
        own, others = own + added, [item for item in others if item not in added]
    return own


def _model_of(item: Object) -> str | None:
    return _labels(item).get(objects.SERVICE_LABEL)


def _labels(item: Object) -> dict[str, str]:
    return item["metadata"].get("labels") or {}

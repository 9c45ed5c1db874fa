"""Take away what a run made, wait until it is gone, and list what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from lightkube import Client
from lightkube.types import CascadeType

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.api_errors import Refused, Unreachable, told
from pytest_vllm_stage.stage.deploy.apply import RUN_ID_LABEL, run_id_of
from pytest_vllm_stage.stage.objects import Object

#: Never made by an overlay: the cluster's own.
_NOT_OURS = ("Event", "Node", "PersistentVolume", "StorageClass", "Namespace")


def teardown(
    cluster: ClusterFacts, namespace: str, run_id: str, waits_s: Mapping[str, float], journal: Journal
) -> list[str]:
    """Delete the objects that carry the run's label, the namespace with them if it does, and wait until they are gone.

    Returns:
        A line for each thing that is left, with what holds it; normally none.
    """
    with client.connection(cluster, namespace) as kube:
        return _teardown(kube, namespace, run_id, waits_s["teardown_s"], journal)


def _teardown(kube: Client, namespace: str, run_id: str, timeout_s: float, journal: Journal) -> list[str]:
    found = objects.get(kube, "Namespace", namespace)
    if found is None:
        return _volumes_left(kube, namespace)
    whole = run_id_of(found) == run_id
    for item in [found] if whole else _labelled(kube, namespace, run_id):
        _delete(kube, item, namespace)
    try:
        wait_until(
            f"everything of run {run_id} in namespace/{namespace} deleted",
            lambda: _gone(kube, namespace, run_id, whole),
            timeout_s=timeout_s,
            journal=journal,
        )
    except StageFailure:
        return _left(kube, namespace, run_id, whole)
    return []


def _labelled(kube: Client, namespace: str, run_id: str) -> list[Object]:
    """The run's own objects; what they own goes with them. Services of models first: their controller must see it."""
    kinds = sorted(
        (kind for kind in objects.KINDS if kind not in _NOT_OURS), key=lambda kind: kind != "InferenceService"
    )
    return [
        {**item, "kind": kind}
        for kind in kinds
        for item in _listed(kube, kind, namespace, run_id)
        if not item["metadata"].get("ownerReferences")
    ]


def _listed(kube: Client, kind: str, namespace: str, run_id: str) -> list[Object]:
    try:
        return objects.listed(kube, kind, namespace, {RUN_ID_LABEL: run_id})
    except Unreachable:
        raise
    except EnvironmentUnusable:  # what this user may not list, it did not make
        return []


def _delete(kube: Client, item: Object, namespace: str) -> None:
    kind, name = item["kind"], objects.name_of(item)
    scope: dict[str, Any] = {"namespace": namespace} if objects.is_namespaced(kind) else {}
    try:
        with told(f"delete {objects.reference(item)}"):
            kube.delete(objects.resource_of(kind), name, cascade=CascadeType.FOREGROUND, **scope)
    except Refused as error:
        if error.code != 404:  # gone by itself
            raise


def _gone(kube: Client, namespace: str, run_id: str, whole: bool) -> Observation:
    left = _left(kube, namespace, run_id, whole)
    return Observation(not left, "; ".join(left[:3]) or "gone")


def _left(kube: Client, namespace: str, run_id: str, whole: bool) -> list[str]:
    if whole:
        found = objects.get(kube, "Namespace", namespace)
        return [*([_holding(found)] if found else []), *_volumes_left(kube, namespace)]
    return [_holding(item) for item in _labelled(kube, namespace, run_id)]


def _holding(item: Object) -> str:
    """An object that is still there, and why it stays."""
    finalizers = [*(item["metadata"].get("finalizers") or []), *((item.get("spec") or {}).get("finalizers") or [])]
    conditions = (item.get("status") or {}).get("conditions") or []
    reasons = [
        str(condition.get("message"))
        for condition in conditions
        if item.get("kind") == "Namespace" and condition.get("status") == "True" and "Remaining" in condition["type"]
    ]
    held = f" (finalizers {', '.join(finalizers)})" if finalizers else ""
    return f"{objects.reference(item)} is still there{held}{': ' + '; '.join(reasons) if reasons else ''}"


def _volumes_left(kube: Client, namespace: str) -> list[str]:
    """PersistentVolumes that outlive their claims: their reclaim policy is Retain, or reclaiming failed."""
    try:
        volumes = objects.listed(kube, "PersistentVolume")
    except EnvironmentUnusable:  # volumes are cluster-wide, and not everyone may list them
        return []
    return [
        f"persistentvolume/{objects.name_of(volume)} was claimed by {namespace} and is {volume['status']['phase']}"
        for volume in volumes
        if (volume["spec"].get("claimRef") or {}).get("namespace") == namespace
        and (volume.get("status") or {}).get("phase") in ("Released", "Failed")
    ]

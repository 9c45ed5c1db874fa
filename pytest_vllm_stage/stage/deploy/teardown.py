"""Delete what a run created, wait until it is gone, and list what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pytest_vllm_stage.cluster.api_errors import ApiServerUnreachable, RequestRejected
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.deploy.apply import RUN_ID_LABEL, run_id_of
from pytest_vllm_stage.stage.objects import Object

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

#: They repeat the labels of a Service, belong to no owner, and are deleted with it.
_MADE_BY_CONTROLLERS = ("Endpoints",)


def teardown(
    cluster: ClusterFacts, namespace: str, run_id: str, waits_s: Mapping[str, float], journal: Journal
) -> list[str]:
    """Delete the objects that carry the run's label, the namespace with them if it does, and wait until they are gone.

    Returns:
        One line per object that is left, with what holds it; normally none.
    """
    with client.connection(cluster, namespace) as kube:
        return _teardown(kube, namespace, run_id, waits_s["teardown_s"], journal)


def _teardown(kube: DynamicClient, namespace: str, run_id: str, timeout_s: float, journal: Journal) -> list[str]:
    found = objects.get(kube, "Namespace", namespace)
    if found is None:
        return _volumes_left(kube, namespace)
    made = [found] if run_id_of(found) == run_id else _labelled(kube, namespace, run_id)
    for item in made:
        objects.delete(kube, item, namespace)
    try:
        wait_until(
            f"everything of run {run_id} in namespace/{namespace} deleted",
            lambda: _observe_removal(kube, namespace, made),
            timeout_s=timeout_s,
            journal=journal,
        )
    except StageFailure:
        return _left(kube, namespace, made)
    return []


def _labelled(kube: DynamicClient, namespace: str, run_id: str) -> list[Object]:
    """The run's own objects of every kind that the cluster serves; what they own is deleted with them.

    InferenceServices come first: their controller must see the deletion while it can act on it.
    """
    kinds = [kind for kind in objects.served_kinds(kube, "list", "delete") if kind not in _MADE_BY_CONTROLLERS]
    return [
        item
        for kind in sorted(kinds, key=lambda kind: not kind.startswith("InferenceService."))
        for item in _listed(kube, kind, namespace, run_id)
        if not item["metadata"].get("ownerReferences")
    ]


def _listed(kube: DynamicClient, kind: str, namespace: str, run_id: str) -> list[Object]:
    try:
        return objects.listed(kube, kind, namespace, {RUN_ID_LABEL: run_id})
    except ApiServerUnreachable:
        raise
    except EnvironmentUnusable:  # what this user may not list, the run did not create
        return []
    except RequestRejected:  # an aggregated API that lists nothing by label
        return []


def _observe_removal(kube: DynamicClient, namespace: str, made: list[Object]) -> Observation:
    left = _left(kube, namespace, made)
    return Observation(not left, "; ".join(left[:3]) or "gone")


def _left(kube: DynamicClient, namespace: str, made: list[Object]) -> list[str]:
    found = [objects.get(kube, objects.kind_of(item), objects.name_of(item), namespace) for item in made]
    whole = any(item["kind"] == "Namespace" for item in made)
    return [*(_holding(item) for item in found if item), *(_volumes_left(kube, namespace) if whole else [])]


def _holding(item: Object) -> str:
    """Describe an object that still exists, and why."""
    finalizers = [*(item["metadata"].get("finalizers") or []), *((item.get("spec") or {}).get("finalizers") or [])]
    conditions = (item.get("status") or {}).get("conditions") or []
    reasons = [
        str(condition.get("message"))
        for condition in conditions
        if item.get("kind") == "Namespace" and condition.get("status") == "True" and "Remaining" in condition["type"]
    ]
    held = f" (finalizers {', '.join(finalizers)})" if finalizers else ""
    return f"{objects.reference(item)} still exists{held}{': ' + '; '.join(reasons) if reasons else ''}"


def _volumes_left(kube: DynamicClient, namespace: str) -> list[str]:
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

"""Kubernetes objects as plain dicts, whatever their kind: what is read is judged by pure functions over dicts."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightkube import Client
from lightkube.generic_resource import GenericGlobalResource, GenericNamespacedResource, create_api_info

from pytest_vllm_stage.stage.api_errors import Refused, told

Object = dict[str, Any]
Resource = type[GenericNamespacedResource] | type[GenericGlobalResource]

#: Kind to API group, version and plural. What a stage may consist of, and what is looked at to judge it.
_NAMESPACED = {
    "ConfigMap": ("", "v1", "configmaps"),
    "Event": ("", "v1", "events"),
    "LimitRange": ("", "v1", "limitranges"),
    "PersistentVolumeClaim": ("", "v1", "persistentvolumeclaims"),
    "Pod": ("", "v1", "pods"),
    "ResourceQuota": ("", "v1", "resourcequotas"),
    "Secret": ("", "v1", "secrets"),
    "Service": ("", "v1", "services"),
    "ServiceAccount": ("", "v1", "serviceaccounts"),
    "Deployment": ("apps", "v1", "deployments"),
    "ReplicaSet": ("apps", "v1", "replicasets"),
    "StatefulSet": ("apps", "v1", "statefulsets"),
    "CronJob": ("batch", "v1", "cronjobs"),
    "Job": ("batch", "v1", "jobs"),
    "NetworkPolicy": ("networking.k8s.io", "v1", "networkpolicies"),
    "Role": ("rbac.authorization.k8s.io", "v1", "roles"),
    "RoleBinding": ("rbac.authorization.k8s.io", "v1", "rolebindings"),
    "Route": ("route.openshift.io", "v1", "routes"),
    "InferenceService": ("serving.kserve.io", "v1beta1", "inferenceservices"),
    "ServingRuntime": ("serving.kserve.io", "v1alpha1", "servingruntimes"),
    "Notebook": ("kubeflow.org", "v1", "notebooks"),
    "Pipeline": ("tekton.dev", "v1", "pipelines"),
    "Task": ("tekton.dev", "v1", "tasks"),
}
_GLOBAL = {
    "Namespace": ("", "v1", "namespaces"),
    "Node": ("", "v1", "nodes"),
    "PersistentVolume": ("", "v1", "persistentvolumes"),
    "StorageClass": ("storage.k8s.io", "v1", "storageclasses"),
}


def _classes() -> dict[str, Resource]:
    made: dict[str, Resource] = {}
    for table, base in ((_NAMESPACED, GenericNamespacedResource), (_GLOBAL, GenericGlobalResource)):
        for kind, (group, version, plural) in table.items():
            made[kind] = type(kind, (base,), {"_api_info": create_api_info(group, version, kind, plural)})
    return made


_RESOURCES = _classes()
KINDS = tuple(sorted(_RESOURCES))


def resource_of(kind: str) -> Any:
    """The class by which the client knows a kind; `KINDS` are known."""
    return _RESOURCES[kind]


def is_namespaced(kind: str) -> bool:
    """Objects of this kind lie in a namespace."""
    return kind in _NAMESPACED


def get(kube: Client, kind: str, name: str, namespace: str | None = None) -> Object | None:
    """One object, or None where there is none of that name."""
    scope = {"namespace": namespace} if is_namespaced(kind) else {}
    try:
        with told(f"get {kind.lower()}/{name}"):
            return plain(kube.get(resource_of(kind), name, **scope))
    except Refused as error:
        if error.code == 404:
            return None
        raise


def listed(
    kube: Client,
    kind: str,
    namespace: str | None = None,
    labels: dict[str, Any] | None = None,
    fields: dict[str, Any] | None = None,
) -> list[Object]:
    """The objects of a kind that carry the labels and match the fields; empty where the kind is not served."""
    scope: dict[str, Any] = {"namespace": namespace} if is_namespaced(kind) else {}
    try:
        with told(f"list {resource_of(kind)._api_info.plural}"):
            found = kube.list(resource_of(kind), labels=labels, fields=fields, **scope)
            return [plain(item) for item in found]
    except Refused as error:
        if error.code == 404:
            return []
        raise


def plain(item: Any) -> Object:
    """The object as nested dicts and lists."""
    return dict(item.to_dict()) if hasattr(item, "to_dict") else dict(item)


def name_of(item: Object) -> str:
    """``metadata.name``."""
    return str(item.get("metadata", {}).get("name", ""))


def reference(item: Object) -> str:
    """The object as kubectl names it: ``job/download``."""
    return f"{str(item.get('kind', '')).lower()}/{name_of(item)}"


def owned_by(items: Iterable[Object], owner: Object) -> list[Object]:
    """The items whose controller is the owner."""
    uid = owner.get("metadata", {}).get("uid")
    return [
        item
        for item in items
        if any(ref.get("uid") == uid for ref in item.get("metadata", {}).get("ownerReferences") or [])
    ]


def condition(item: Object, kind: str) -> Object:
    """One of ``status.conditions`` by its type; empty where it is not there."""
    conditions = (item.get("status") or {}).get("conditions") or []
    return next((dict(found) for found in conditions if found.get("type") == kind), {})


def is_true(item: Object, kind: str) -> bool:
    """The condition is there with status True."""
    return bool(condition(item, kind).get("status") == "True")

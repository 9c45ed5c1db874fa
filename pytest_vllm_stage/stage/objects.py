"""Kubernetes objects as plain dicts, whatever their kind: what is read is judged by pure functions over dicts.

A kind is written as kubectl accepts it: ``Pod``, or with its group where several groups have it,
``Route.route.openshift.io``. Discovery knows the rest: version, plural, and whether its objects are in a namespace.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.cluster.api_errors import KindNotServed, RequestRejected, translate_api_errors

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient, Resource

Object = dict[str, Any]
#: Owner of the fields that this project sets by server-side apply.
FIELD_MANAGER = "pytest-vllm-stage"
#: Label of the pods and Services that KServe generates, with the InferenceService's name.
SERVICE_LABEL = "serving.kserve.io/inferenceservice"


def find_resource(kube: DynamicClient, kind: str, api_version: str = "") -> Resource:
    """How the client reaches objects of a kind; the server's preference decides between groups, as for kubectl.

    Args:
        kube: The cluster.
        kind: ``Kind`` or ``Kind.group``.
        api_version: The exact ``group/version``, as manifests name it; any where it is empty.

    Raises:
        KindNotServed: the cluster has no such kind, even after a fresh discovery.
    """
    name, _, group = kind.partition(".")
    wanted: dict[str, str] = {"kind": name} | ({"group": group} if group else {})
    if api_version:
        wanted["group"], _, wanted["api_version"] = api_version.rpartition("/")
    with translate_api_errors(f"discover {kind}"):
        found: list[Resource] = [
            resource for resource in kube.resources.search(**wanted) if _is_exact(resource, wanted)
        ]
    if not found:
        raise KindNotServed(f"the cluster serves no {kind}{f' ({api_version})' if api_version else ''}")
    return found[0]


def _is_exact(resource: Resource, wanted: Mapping[str, str]) -> bool:
    """The client takes an empty group for any group."""
    return "group" not in wanted or (resource.group or "") == wanted["group"]


def served_kinds(kube: DynamicClient, *verbs: str) -> list[str]:
    """Every namespaced kind that supports all of the verbs, as ``Kind.group``."""
    with translate_api_errors("discover all kinds"):
        resources = [resource for group in kube.resources for resource in group]
    found = {
        f"{resource.kind}.{resource.group}" if resource.group else str(resource.kind)
        for resource in resources
        if not resource.kind.endswith("List") and resource.namespaced and set(verbs) <= set(resource.verbs or [])
    }
    return sorted(found)


def get(kube: DynamicClient, kind: str, name: str, namespace: str | None = None) -> Object | None:
    """One object, or None where there is none of that name, or no such kind."""
    try:
        resource = find_resource(kube, kind)
        with translate_api_errors(f"get {kind.lower()}/{name}"):
            return _decode(resource.get(name=name, namespace=_scope(resource, namespace), serialize=False))
    except RequestRejected as error:
        if error.code == 404:
            return None
        raise


def listed(
    kube: DynamicClient,
    kind: str,
    namespace: str | None = None,
    labels: Mapping[str, str] | None = None,
    fields: Mapping[str, str] | None = None,
) -> list[Object]:
    """The objects of a kind that carry the labels and match the fields; empty where the kind is not served."""
    try:
        resource = find_resource(kube, kind)
        with translate_api_errors(f"list {resource.name}"):
            response = resource.get(
                namespace=_scope(resource, namespace),
                label_selector=_selector(labels),
                field_selector=_selector(fields),
                serialize=False,
            )
            items = _decode(response).get("items") or []
    except RequestRejected as error:
        if error.code == 404:
            return []
        raise
    # The items of a list carry no kind: only the list itself names it.
    return [{"apiVersion": resource.group_version, "kind": resource.kind, **item} for item in items]


def apply(kube: DynamicClient, manifest: Object, namespace: str) -> Object:
    """Server-side apply, never taking over fields of another owner; return the object as the server holds it.

    Raises:
        RequestRejected: the server does not accept it; code 409 where a field has another owner.
    """
    resource = find_resource(kube, manifest["kind"], manifest.get("apiVersion", ""))
    if not resource.namespaced:
        metadata = {key: value for key, value in manifest["metadata"].items() if key != "namespace"}
        manifest = {**manifest, "metadata": metadata}
    with translate_api_errors(f"apply {reference(manifest)}"):
        response = resource.server_side_apply(
            body=manifest,
            name=name_of(manifest),
            namespace=_scope(resource, namespace),
            field_manager=FIELD_MANAGER,
            serialize=False,
        )
        return _decode(response)


def patch(kube: DynamicClient, kind: str, name: str, namespace: str, body: Object) -> Object:
    """Change fields by a JSON merge patch, in which null removes a field; return the object as the server holds it."""
    resource = find_resource(kube, kind)
    with translate_api_errors(f"patch {kind.lower()}/{name}"):
        response = resource.patch(
            name=name,
            namespace=_scope(resource, namespace),
            body=body,
            content_type="application/merge-patch+json",
            serialize=False,
        )
        return _decode(response)


def evict(kube: DynamicClient, namespace: str, pod: str) -> None:
    """Evict a pod as a drain does: its disruption budget and its grace period apply.

    Raises:
        RequestRejected: code 429 where a PodDisruptionBudget does not allow it now.
    """
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": namespace}}
    with translate_api_errors(f"evict pod/{pod}"):
        kube.request("post", f"/api/v1/namespaces/{namespace}/pods/{pod}/eviction", body=body, serialize=False)


def read_pod_path(kube: DynamicClient, namespace: str, pod: str, port: int, path: str) -> str:
    """What a pod's own HTTP server answers, through the API server's proxy."""
    url = f"/api/v1/namespaces/{namespace}/pods/{pod}:{port}/proxy/{path.lstrip('/')}"
    with translate_api_errors(f"read {path} of pod/{pod}"):
        response = kube.request("get", url, header_params={"Accept": "*/*"}, serialize=False)
        return bytes(response.data).decode("utf-8", "replace")


def delete(kube: DynamicClient, item: Object, namespace: str, propagation: str = "Foreground") -> None:
    """Delete an object, by default after everything that it owns; no error where it does not exist."""
    try:
        resource = find_resource(kube, item["kind"], item.get("apiVersion", ""))
        with translate_api_errors(f"delete {reference(item)}"):
            response = resource.delete(
                name=name_of(item),
                namespace=_scope(resource, namespace),
                propagation_policy=propagation,
                serialize=False,
            )
            _decode(response)
    except RequestRejected as error:
        if error.code != 404:
            raise


def read_log(kube: DynamicClient, namespace: str, pod: str, container: str, *, previous: bool, lines: int) -> str:
    """The last lines of a container's log, or of its previous instance.

    Raises:
        RequestRejected: there is none.
    """
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/log"
    query = [("container", container), ("tailLines", str(lines)), ("previous", str(previous).lower())]
    with translate_api_errors(f"read the log of pod/{pod} container {container}"):
        response = kube.request("get", path, query_params=query, header_params={"Accept": "*/*"}, serialize=False)
        return bytes(response.data).decode("utf-8", "replace")


def follow_log(
    kube: DynamicClient, namespace: str, pod: str, container: str, read_timeout_s: float = 30.0
) -> Iterator[str]:
    """A container's log as it is written, line by line, from its beginning to its end.

    Raises:
        ApiServerUnreachable: the connection broke, or nothing came for `read_timeout_s`.
        RequestRejected: there is no log.
    """
    from kubernetes.client import CoreV1Api

    with translate_api_errors(f"follow the log of pod/{pod} container {container}"):
        response: Any = CoreV1Api(kube.client).read_namespaced_pod_log(
            pod,
            namespace,
            container=container,
            follow=True,
            _preload_content=False,
            _request_timeout=(read_timeout_s, read_timeout_s),
        )
        try:
            pending = b""
            for piece in response.stream(65536):
                *lines, pending = (pending + piece).split(b"\n")
                yield from (line.decode("utf-8", "replace") for line in lines)
            if pending:
                yield pending.decode("utf-8", "replace")
        finally:
            response.close()


def annotate(kube: DynamicClient, kind: str, name: str, namespace: str, annotations: Mapping[str, str]) -> None:
    """Set annotations of an object that another owner made, and nothing else."""
    resource = find_resource(kube, kind)
    with translate_api_errors(f"annotate {kind.lower()}/{name}"):
        resource.patch(
            name=name,
            namespace=_scope(resource, namespace),
            body={"metadata": {"annotations": dict(annotations)}},
            content_type="application/merge-patch+json",
            serialize=False,
        )


def _scope(resource: Resource, namespace: str | None) -> str | None:
    return namespace if resource.namespaced else None


def _selector(wanted: Mapping[str, str] | None) -> str | None:
    return ",".join(f"{key}={value}" for key, value in wanted.items()) if wanted else None


def _decode(response: Any) -> Object:
    return dict(json.loads(response.data))


def name_of(item: Object) -> str:
    """``metadata.name``."""
    return str(item.get("metadata", {}).get("name", ""))


def reference(item: Object) -> str:
    """The object as kubectl names it: ``job/download``."""
    return f"{str(item.get('kind', '')).lower()}/{name_of(item)}"


def kind_of(manifest: Object) -> str:
    """The kind of a manifest with its group, as `find_resource` accepts it."""
    group = str(manifest.get("apiVersion", "")).rpartition("/")[0]
    return f"{manifest['kind']}.{group}" if group else str(manifest["kind"])


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

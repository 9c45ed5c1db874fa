"""Reads the objects that may publish an address, and names the right that is missing where it may not."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pytest_vllm_stage.cluster.access import Right
from pytest_vllm_stage.cluster.api_errors import ApiServerUnreachable, KindNotServed, RequestRejected
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.reach.published import Backend, Listing, Publishers, find_parents

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

ROUTE = "Route.route.openshift.io"
INGRESS = "Ingress.networking.k8s.io"
HTTP_ROUTE = "HTTPRoute.gateway.networking.k8s.io"
GATEWAY = "Gateway.gateway.networking.k8s.io"


def read_publishers(kube: DynamicClient, backend: Backend) -> Publishers:
    """What may publish an address for a Service of a namespace."""
    http_routes = list_readable(kube, HTTP_ROUTE, backend.namespace)
    return Publishers(
        routes=list_readable(kube, ROUTE, backend.namespace),
        ingresses=list_readable(kube, INGRESS, backend.namespace),
        http_routes=http_routes,
        gateways={place: _read_gateway(kube, *place) for place in find_parents(http_routes.items, backend)},
    )


def list_readable(kube: DynamicClient, kind: str, namespace: str | None) -> Listing:
    """The objects of a kind, in one namespace or in all; or why they cannot be read.

    Raises:
        ApiServerUnreachable: the API server does not answer.
    """
    try:
        resource = objects.find_resource(kube, kind)
    except KindNotServed as error:
        return Listing(unread=error.message)
    try:
        return Listing(tuple(objects.listed(kube, kind, namespace)))
    except ApiServerUnreachable:
        raise
    except (EnvironmentUnusable, RequestRejected) as error:
        return Listing(unread=_refusal(Right("list", resource.name, resource.group), namespace, error))


def _read_gateway(kube: DynamicClient, namespace: str, name: str) -> Object | str:
    try:
        return objects.get(kube, GATEWAY, name, namespace) or "it does not exist"
    except ApiServerUnreachable:
        raise
    except (EnvironmentUnusable, RequestRejected) as error:
        return _refusal(Right("get", "gateways", "gateway.networking.k8s.io"), namespace, error)


def _refusal(right: Right, namespace: str | None, error: EnvironmentUnusable | RequestRejected) -> str:
    """The right that is missing; another refusal in the API server's words."""
    if "forbidden" not in error.message:
        return error.message
    place = f"in namespace {namespace}" if namespace else "in all namespaces"
    return f"not readable: the right to {right.verb} {right.resource_and_group} {place} is missing"

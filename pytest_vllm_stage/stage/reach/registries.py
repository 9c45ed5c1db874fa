"""OpenShift AI's Model Registries, found by their custom resources in whatever namespace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.reach.address import AccessWay, Candidate
from pytest_vllm_stage.stage.reach.published import Listing
from pytest_vllm_stage.stage.reach.read import list_readable

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

KIND = "ModelRegistry.modelregistry.opendatahub.io"
#: Where OpenShift AI and Open Data Hub keep their registries, unless an administrator names another namespace.
NAMESPACES = ("rhoai-model-registries", "odh-model-registries")
#: On a registry's Service: host and port of its REST API for clients outside, where its Route is in another namespace.
EXTERNAL_ADDRESS = "routing.opendatahub.io/external-address-rest"


def list_registries(kube: DynamicClient, namespace: str) -> Listing:
    """The cluster's registries; where they may not be listed in all namespaces, those of `NAMESPACES`.

    Args:
        kube: The cluster.
        namespace: The stage's.
    """
    everywhere = list_readable(kube, KIND, None)
    if "is missing" not in everywhere.unread:
        return everywhere
    places = [list_readable(kube, KIND, place) for place in dict.fromkeys((namespace, *NAMESPACES))]
    found = tuple(item for place in places for item in place.items)
    refusals = [place.unread for place in places if place.unread]
    return Listing(found, "" if found or not refusals else "; ".join([everywhere.unread, *refusals]))


def choose_registry(registries: Sequence[Object]) -> Object:
    """The one registry of a cluster; one that is available before one that is not.

    Raises:
        ConfigError: there are several; names each.
    """
    available = [registry for registry in registries if objects.is_true(registry, "Available")] or list(registries)
    if len(available) > 1:
        names = ", ".join(sorted(_describe(registry) for registry in available))
        raise ConfigError(
            f"the cluster has {len(available)} Model Registries: {names}",
            hint="name the one that the stage publishes to: --stage-registry-url=https://HOST",
        )
    return available[0]


def find_registry_candidates(registry: Object, service: Object | None) -> Iterator[Candidate]:
    """The addresses that a registry's Service and its status name for clients outside the cluster."""
    annotations = ((service or {}).get("metadata") or {}).get("annotations") or {}
    address = str(annotations.get(EXTERNAL_ADDRESS) or "")
    hosts = [address.removeprefix("https://").rstrip("/")] if address else _rest_hosts(registry)
    for host in hosts:
        url = f"https://{host.removesuffix(':443')}"
        yield Candidate(AccessWay.REGISTRY_STATUS, f"modelregistry/{objects.name_of(registry)}", url)
    if not hosts:
        yield Candidate(AccessWay.REGISTRY_STATUS, problem="modelregistry publishes no host for clients outside")


def _describe(registry: Object) -> str:
    place = f"{registry['metadata'].get('namespace', '')}/{objects.name_of(registry)}"
    hosts = _rest_hosts(registry)
    return f"{place} (https://{hosts[0]})" if hosts else place


def _rest_hosts(registry: Object) -> list[str]:
    """The hosts of the status that the REST API has outside the cluster."""
    hosts = [str(host) for host in (registry.get("status") or {}).get("hosts") or []]
    outside = [host for host in hosts if "." in host and not _is_cluster_local(host)]
    return [host for host in outside if not host.split(".")[0].endswith("-grpc")]


def _is_cluster_local(host: str) -> bool:
    return host.endswith((".svc", ".svc.cluster.local")) or host.count(".") == 1

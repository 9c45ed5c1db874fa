"""Where the stage's servers answer, seen from this machine or this pod."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError, StageFailure
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.reach import forwards, registries
from pytest_vllm_stage.stage.reach.address import AccessWay, Candidate, ChosenAddress, NoAddress, choose_address
from pytest_vllm_stage.stage.reach.forward import find_pod_port, find_port
from pytest_vllm_stage.stage.reach.published import Backend, find_candidates, is_placeholder
from pytest_vllm_stage.stage.reach.read import read_publishers

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

MINIO = "minio"
REGISTRY = "model-registry"
CONNECT_TIMEOUT_S = 3.0
_TLS_PORTS = (443, 8443)
#: In a pod of the cluster, what the cluster's own network reaches comes first.
_INSIDE = (
    AccessWay.STATUS_ADDRESS,
    AccessWay.SERVICE,
    AccessWay.ROUTE,
    AccessWay.INGRESS,
    AccessWay.HTTP_ROUTE,
    AccessWay.REGISTRY_STATUS,
    AccessWay.STATUS_URL,
    AccessWay.PORT_FORWARD,
)


def find_model_address(
    kube: DynamicClient, cluster: ClusterFacts, namespace: str, service: Object
) -> ChosenAddress | NoAddress:
    """The address of an InferenceService's server.

    Where cluster IPs answer it is the predictor's Service. Elsewhere it is the first that accepts a connection: a
    Route, an Ingress, an HTTPRoute, what the InferenceService publishes, the Service for a machine that happens to be
    inside the cluster's network, and a port-forward last. In a pod of the cluster the published cluster-local address
    comes first, then the Service, and the addresses for clients outside follow.

    Raises:
        StageFailure: cluster IPs answer, and the predictor has no Service.
    """
    name = objects.name_of(service)
    if cluster.reaches_services:
        return _choose_near(kube, cluster, namespace, _predictor(name), "80")
    return _choose(kube, cluster, Backend(namespace, (_predictor(name), name)), "80", service)


def find_address_inside(kube: DynamicClient, cluster: ClusterFacts, namespace: str, service: Object, known: str) -> str:
    """The address of an InferenceService's server for the pods of its cluster.

    Args:
        kube: The cluster.
        cluster: The same.
        namespace: The stage's.
        service: The InferenceService.
        known: The address that this process uses, which pods use too where it is a cluster's own.

    Raises:
        StageFailure: the service publishes no cluster-local address, and its predictor has no Service, or a headless
            one without a Ready pod.
    """
    if cluster.reaches_services or cluster.in_cluster:
        return known
    published = str(((service.get("status") or {}).get("address") or {}).get("url") or "").rstrip("/")
    if published and not is_placeholder(published):
        return published
    name = _predictor(objects.name_of(service))
    found = objects.get(kube, "Service", name, namespace)
    if found is None:
        raise StageFailure(f"service/{name} does not exist", hint=f"{cluster.kubectl_for(namespace)} get services")
    chosen = find_port(found, "80")
    port = _find_pod(kube, cluster, namespace, found, chosen)[1] if _is_headless(found) else chosen["port"]
    return _url(f"{name}.{namespace}.svc", port, tls=_speaks_tls(chosen))


def judge_unreachable(cluster: ClusterFacts, namespace: str, service: Object, found: NoAddress) -> StageError:
    """The error that a model without an address is: the stage's failure where its InferenceService is not Ready."""
    name = objects.name_of(service)
    ways = "".join(f"\n  {line}" for line in found.passed_over)
    if not objects.is_true(service, "Ready"):
        ready = objects.condition(service, "Ready")
        reason = f"{ready.get('reason', '')}: {ready.get('message', '')}".strip(": ") or "no reason given"
        return StageFailure(
            f"inferenceservice/{name} is not Ready ({reason}) and no address answers; "
            f"tried: {', '.join(found.tried) or 'nothing'}{ways}",
            hint=f"{cluster.kubectl_for(namespace)} describe inferenceservice {name}",
        )
    check = "get networkpolicies" if cluster.in_cluster else "auth can-i create pods/portforward"
    return EnvironmentUnusable(
        f"inferenceservice/{name} is not reachable from here; tried: {', '.join(found.tried) or 'nothing'}{ways}",
        hint=f"{cluster.kubectl_for(namespace)} {check}",
    )


def _predictor(name: str) -> str:
    """The Service of an InferenceService's predictor."""
    return f"{name}-predictor"


def find_minio_address(kube: DynamicClient, cluster: ClusterFacts, namespace: str) -> ChosenAddress | NoAddress:
    """The address of MinIO's S3 API, which is never that of its console."""
    return _find_service_address(kube, cluster, namespace, MINIO, "9000")


def find_registry_address(kube: DynamicClient, cluster: ClusterFacts, namespace: str) -> ChosenAddress | NoAddress:
    """The address of a Model Registry's REST API: the stage's own one, else the one of the cluster's platform.

    Raises:
        ConfigError: the stage has none, and the cluster has several.
    """
    own = _find_service_address(kube, cluster, namespace, REGISTRY, "8080")
    if isinstance(own, ChosenAddress) or objects.get(kube, "Service", REGISTRY, namespace):
        return own
    listing = registries.list_registries(kube, namespace)
    if not listing.items:
        return NoAddress((*own.passed_over, f"ModelRegistry: {listing.unread or 'the cluster has none'}"))
    registry = registries.choose_registry(listing.items)
    place, name = str(registry["metadata"].get("namespace") or namespace), objects.name_of(registry)
    try:
        service = objects.get(kube, "Service", name, place)
    except EnvironmentUnusable:  # not readable for this user: the registry's status remains
        service = None
    more = list(registries.find_registry_candidates(registry, service))
    if service is None:
        return choose_address(more, probe)
    return _find_service_address(kube, cluster, place, name, "8080", more)


def _find_service_address(
    kube: DynamicClient,
    cluster: ClusterFacts,
    namespace: str,
    name: str,
    port: str,
    published: Sequence[Candidate] = (),
) -> ChosenAddress | NoAddress:
    service = objects.get(kube, "Service", name, namespace)
    if service is None:
        return NoAddress((f"service/{name} does not exist in namespace {namespace}",))
    if cluster.reaches_services:
        return _choose_near(kube, cluster, namespace, name, port)
    chosen = find_port(service, port)
    names = frozenset(str(chosen[key]) for key in ("port", "name", "targetPort") if chosen.get(key))
    return _choose(kube, cluster, Backend(namespace, (name,), names), port, published=published)


def _choose_near(kube: DynamicClient, cluster: ClusterFacts, namespace: str, name: str, port: str) -> ChosenAddress:
    url = _find_service_url(kube, cluster, namespace, name, port)
    return ChosenAddress(url, AccessWay.SERVICE, "cluster IPs answer from this machine")


def _choose(
    kube: DynamicClient,
    cluster: ClusterFacts,
    backend: Backend,
    port: str,
    service: Object | None = None,
    published: Sequence[Candidate] = (),
) -> ChosenAddress | NoAddress:
    candidates = [
        *find_candidates(backend, read_publishers(kube, backend), service),
        *published,
        _find_service(kube, cluster, backend, port),
        _find_forward(kube, backend, port),
    ]
    if cluster.in_cluster:
        candidates.sort(key=lambda candidate: _INSIDE.index(candidate.way))
    return choose_address(candidates, lambda url: probe(url) if not forwards.is_forward(url) else _try(cluster, url))


def _find_forward(kube: DynamicClient, backend: Backend, port: str) -> Candidate:
    """A port-forward to the Service's pods."""
    name = backend.names[0]
    service = objects.get(kube, "Service", name, backend.namespace)
    if service is None:
        return Candidate(AccessWay.PORT_FORWARD, problem=f"service/{name} does not exist")
    chosen = find_port(service, port)
    url = forwards.forward_url(backend.namespace, name, str(chosen["port"]), tls=_speaks_tls(chosen))
    return Candidate(AccessWay.PORT_FORWARD, "", url)


def _speaks_tls(port: Object) -> bool:
    return port["port"] in _TLS_PORTS or str(port.get("name", "")).startswith("https")


def _try(cluster: ClusterFacts, url: str) -> str:
    """Why a port-forward leads nowhere; empty where it does."""
    try:
        forwards.check(cluster, url)
    except StageError as error:
        return f"leads nowhere: {error.message}"
    return ""


def _find_service(kube: DynamicClient, cluster: ClusterFacts, backend: Backend, port: str) -> Candidate:
    """The Service itself, by its name or its cluster IP."""
    name = backend.names[0]
    try:
        url = _find_service_url(kube, cluster, backend.namespace, name, port)
    except StageFailure as error:
        return Candidate(AccessWay.SERVICE, problem=error.message)
    return Candidate(AccessWay.SERVICE, f"service/{name}", url)


def _find_service_url(kube: DynamicClient, cluster: ClusterFacts, namespace: str, name: str, port: str) -> str:
    found = objects.get(kube, "Service", name, namespace)
    if found is None:
        raise StageFailure(f"service/{name} does not exist", hint=f"{cluster.kubectl_for(namespace)} get services")
    spec = found["spec"]
    chosen = find_port(found, port)
    if spec.get("clusterIP") not in (None, "", "None"):
        if cluster.in_cluster and _resolves(f"{name}.{namespace}.svc"):
            return _url(f"{name}.{namespace}.svc", chosen["port"], tls=_speaks_tls(chosen))
        return _url(spec["clusterIP"], chosen["port"], tls=_speaks_tls(chosen))
    if spec.get("type") == "ExternalName":
        return _url(spec["externalName"], chosen["port"])
    address, number = _find_pod(kube, cluster, namespace, found, chosen)
    if not _speaks_tls(chosen):
        return _url(address, number)
    # Its certificate is for its name: OpenShift's for Services has no address.
    host = f"{name}.{namespace}.svc"
    if not (cluster.in_cluster and _resolves(host)):
        raise StageFailure(f"service/{name} is headless and speaks TLS for {host}, a name without an address here")
    return _url(host, number, tls=True)


def _is_headless(service: Object) -> bool:
    """Its name stands for its pods, with their addresses and ports instead of its own."""
    return bool(service["spec"].get("clusterIP") == "None")


def _find_pod(
    kube: DynamicClient, cluster: ClusterFacts, namespace: str, service: Object, port: Object
) -> tuple[str, int | str]:
    """Address and port of a Ready pod of a headless Service.

    Raises:
        StageFailure: no pod is Ready.
    """
    pods = objects.listed(kube, "Pod", namespace, service["spec"].get("selector"))
    ready = [pod for pod in pods if objects.is_true(pod, "Ready")]
    if not ready:
        raise StageFailure(
            f"service/{objects.name_of(service)} has no Ready pod to answer",
            hint=f"{cluster.kubectl_for(namespace)} get pods",
        )
    return ready[0]["status"]["podIP"], find_pod_port(ready[0], port.get("targetPort") or port["port"])


def _url(host: str, port: int | str, *, tls: bool = False) -> str:
    return f"{'https' if tls else 'http'}://{f'[{host}]' if ':' in host else host}:{port}"


def _resolves(host: str) -> bool:
    """The name has an address here: a pod with ``dnsPolicy: Default`` does not know the cluster's names."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def answers(url: str) -> bool:
    """Something accepts connections at the URL's host and port."""
    return not probe(url)


def probe(url: str) -> str:
    """Why nothing accepts connections at the URL's host and port; empty where something does."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), CONNECT_TIMEOUT_S):
            return ""
    except socket.gaierror:
        return "has a host name without an address here"
    except TimeoutError:
        return f"accepts no connection within {CONNECT_TIMEOUT_S:g} s"
    except OSError as error:
        return f"accepts no connection: {error.strerror or error}"

"""Where the stage's servers answer, seen from this machine or this pod."""

from __future__ import annotations

import socket
from urllib.parse import urlsplit

from kubernetes.dynamic import DynamicClient

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object

MINIO = "minio"
REGISTRY = "model-registry"
CONNECT_TIMEOUT_S = 3.0
#: ``ingressDomain`` of KServe's configuration as it is delivered; nothing of the stage can ever answer there.
PLACEHOLDER_DOMAIN = "example.com"


def find_model_url(kube: DynamicClient, cluster: ClusterFacts, namespace: str, service: Object) -> str:
    """Root URL of an InferenceService's server.

    Where cluster IPs answer it is the predictor's Service, else what the service itself publishes, if it answers; the
    Service last, for a machine that happens to be inside the cluster's network. In a pod of the cluster the published
    cluster-local address comes first, then the Service, and the URL for clients outside last.

    Raises:
        StageFailure: the predictor has no Service, or nothing answers and the InferenceService is not Ready.
        EnvironmentUnusable: the service is Ready and no URL of it is reachable from here; names the tried ones.
    """
    name = objects.name_of(service)
    if cluster.reaches_services:
        return _find_service_url(kube, cluster, namespace, f"{name}-predictor", "80")
    status = service.get("status") or {}
    outer, inner = _published(status.get("url")), _published((status.get("address") or {}).get("url"))
    own = []
    if objects.get(kube, "Service", f"{name}-predictor", namespace):
        own.append(_find_service_url(kube, cluster, namespace, f"{name}-predictor", "80"))
    tried = [*inner, *own, *outer] if cluster.in_cluster else [*outer, *inner, *own]
    found = next(filter(answers, tried), None)
    if found:
        return found
    if not objects.is_true(service, "Ready"):
        ready = objects.condition(service, "Ready")
        reason = f"{ready.get('reason', '')}: {ready.get('message', '')}".strip(": ") or "no reason given"
        raise StageFailure(
            f"inferenceservice/{name} is not Ready ({reason}) and no address answers; "
            f"tried: {', '.join(tried) or 'nothing'}",
            hint=f"{cluster.kubectl_for(namespace)} describe inferenceservice {name}",
        )
    forward = f"port-forward service/{name}-predictor 8080:80, then --stage-endpoint"
    raise EnvironmentUnusable(
        f"inferenceservice/{name} is not reachable from here; tried: {', '.join(tried) or 'nothing'}",
        hint=f"{cluster.kubectl_for(namespace)} {'get networkpolicies' if cluster.in_cluster else forward}",
    )


def _published(url: object) -> list[str]:
    """A URL of an InferenceService's status, unless it is absent or a placeholder."""
    return [str(url).rstrip("/")] if url and not _is_placeholder(str(url)) else []


def _is_placeholder(url: str) -> bool:
    """KServe publishes hosts below ``example.com`` until an administrator names a domain."""
    host = urlsplit(url).hostname or ""
    return host == PLACEHOLDER_DOMAIN or host.endswith(f".{PLACEHOLDER_DOMAIN}")


def find_minio_url(kube: DynamicClient, cluster: ClusterFacts, namespace: str) -> str | None:
    """Root URL of MinIO's S3 API, or None where the stage has none that is reachable from here."""
    near = cluster.reaches_services or cluster.in_cluster
    route = None if near else objects.get(kube, "Route.route.openshift.io", MINIO, namespace)
    if route and route["spec"].get("host"):
        return f"https://{route['spec']['host']}"
    if objects.get(kube, "Service", MINIO, namespace) is None:
        return None
    url = _find_service_url(kube, cluster, namespace, MINIO, "9000")
    return url if cluster.reaches_services or answers(url) else None


def find_registry_url(kube: DynamicClient, cluster: ClusterFacts, namespace: str) -> str | None:
    """Root URL of the Model Registry's REST API, or None where the stage has none that is reachable from here."""
    if objects.get(kube, "Service", REGISTRY, namespace) is None:
        return None
    url = _find_service_url(kube, cluster, namespace, REGISTRY, "8080")
    return url if cluster.reaches_services or answers(url) else None


def _find_service_url(kube: DynamicClient, cluster: ClusterFacts, namespace: str, name: str, port: str) -> str:
    found = objects.get(kube, "Service", name, namespace)
    if found is None:
        raise StageFailure(f"service/{name} does not exist", hint=f"{cluster.kubectl_for(namespace)} get services")
    spec = found["spec"]
    ports = {str(entry["port"]): entry for entry in spec.get("ports") or []}
    chosen = ports.get(port) or next(iter(ports.values()), {"port": int(port)})
    if spec.get("clusterIP") not in (None, "", "None"):
        if cluster.in_cluster and _resolves(f"{name}.{namespace}.svc"):
            return _url(f"{name}.{namespace}.svc", chosen["port"])
        return _url(spec["clusterIP"], chosen["port"])
    if spec.get("type") == "ExternalName":
        return _url(spec["externalName"], chosen["port"])
    # A headless Service has the pods' addresses and ports instead of its own.
    pods = objects.listed(kube, "Pod", namespace, spec.get("selector"))
    ready = [pod for pod in pods if objects.is_true(pod, "Ready")]
    if not ready:
        raise StageFailure(
            f"service/{name} has no Ready pod to answer", hint=f"{cluster.kubectl_for(namespace)} get pods"
        )
    return _url(ready[0]["status"]["podIP"], _find_pod_port(ready[0], chosen.get("targetPort", chosen["port"])))


def _find_pod_port(pod: Object, target: int | str) -> int | str:
    """The number of a port that a Service may name; the name itself where no container declares it."""
    declared = [port for container in pod["spec"]["containers"] for port in container.get("ports") or []]
    return next((port["containerPort"] for port in declared if port.get("name") == target), target)


def _url(host: str, port: int | str) -> str:
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _resolves(host: str) -> bool:
    """The name has an address here: a pod with ``dnsPolicy: Default`` does not know the cluster's names."""
    try:
        return bool(socket.getaddrinfo(host, None))
    except OSError:
        return False


def answers(url: str) -> bool:
    """Something accepts connections at the URL's host and port."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), CONNECT_TIMEOUT_S):
            return True
    except OSError:
        return False

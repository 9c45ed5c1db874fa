"""Whether the engine's counters can be judged where several replicas serve a model."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.replicas import Replicas, find_replicas
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import SERVICE_LABEL
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.pods import find_serving_port


def prepare_counters(endpoint: EndpointClient, reader: StageReader | None) -> str:
    """Let a client read the metrics of every replica; why its counters decide nothing, empty where they do.

    Args:
        endpoint: The client.
        reader: The stage that serves its model; None where only the address is known.

    Raises:
        RequestFailed: only the address is known, and its ``/metrics`` has no usable answer.
    """
    if reader is None:
        return find_replicas(endpoint)
    pods = _list_serving(reader, endpoint.target.model)
    endpoint.scrapes.forget()
    if len(pods) < 2:
        return ""
    replicas = Replicas(len(pods), lambda: _read_all(reader, endpoint.target.model, pods))
    try:
        replicas.read()
    except StageError as error:
        return f"{len(pods)} replicas serve {endpoint.target.model}, and not all can be read: {error.message}"
    endpoint.scrapes.replicas = replicas
    return ""


def _list_serving(reader: StageReader, service: str) -> dict[str, int]:
    """Name to port of each pod that gets requests."""
    pods = reader.listed("Pod", {SERVICE_LABEL: service})
    ready = [pod for pod in pods if objects.is_true(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")]
    return {objects.name_of(pod): find_serving_port(pod) for pod in ready}


def _read_all(reader: StageReader, service: str, pods: dict[str, int]) -> Sequence[str]:
    """The text of ``/metrics`` of each pod.

    Raises:
        EnvironmentUnusable: a pod serves no more, so that the counters are not those of before; or this user may not
            read through the API server's proxy.
        RequestRejected: a pod does not answer.
    """
    now = _list_serving(reader, service)
    if not now.keys() >= pods.keys():
        raise EnvironmentUnusable(f"the pods of {service} changed from {', '.join(pods)} to {', '.join(now) or 'none'}")
    # An autoscaler may add pods, whose counters begin at 0.
    pods |= now
    return [objects.read_pod_path(reader.kube, reader.namespace, pod, port, "metrics") for pod, port in pods.items()]

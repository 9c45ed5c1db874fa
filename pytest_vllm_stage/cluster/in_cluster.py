"""The cluster that this process runs in, reached with the ServiceAccount of its pod."""

from __future__ import annotations

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.cluster.kubeconfig import find_kubectl


def connect() -> ClusterFacts:
    """The facts of the pod's own cluster, after its API server has answered.

    Raises:
        ConfigError: this process is not in a pod, or the pod has no token; it names which.
        EnvironmentUnusable: kubectl is missing, or the API server does not answer.
    """
    from pytest_vllm_stage.cluster import client

    kubectl = find_kubectl()
    connected = client.connect_in_cluster()
    try:
        version = connected.version["kubernetes"]["gitVersion"]
    finally:
        connected.client.close()
    return ClusterFacts(
        kind="in-cluster",
        kubeconfig="",
        context="",
        kubernetes_version=version,
        kubectl=kubectl,
        reaches_services=False,
        owned=False,
    )

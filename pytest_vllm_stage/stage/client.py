"""The connection to a cluster that can hold a stage."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from pytest_vllm_stage.cluster.api_errors import KindNotServed, retry_while_busy
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.stage import objects

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient


def connect(cluster: ClusterFacts, namespace: str) -> DynamicClient:
    """The official client for a cluster, after it has answered and KServe is known to be installed.

    The caller closes it: ``kube.client.close()``.

    Raises:
        ConfigError: the kubeconfig or its context is wrong.
        EnvironmentUnusable: the cluster does not answer, refuses the credentials, or lacks KServe; it names which.
    """
    from pytest_vllm_stage.cluster.client import connect_to

    kube = connect_to(cluster)
    try:
        for kind in ("ServingRuntime.serving.kserve.io", "InferenceService.serving.kserve.io"):
            _require(kube, namespace, kind)
    except BaseException:
        kube.client.close()
        raise
    return kube


@contextmanager
def connection(cluster: ClusterFacts, namespace: str) -> Iterator[DynamicClient]:
    """`connect` for a ``with`` statement, which closes the client."""
    kube = connect(cluster, namespace)
    try:
        yield kube
    finally:
        kube.client.close()


def _require(kube: DynamicClient, namespace: str, kind: str) -> None:
    try:
        resource = objects.find_resource(kube, kind)
    except KindNotServed:
        raise EnvironmentUnusable(
            f"the cluster has no KServe: it serves no {kind}", hint="kubectl get crd | grep serving.kserve.io"
        ) from None
    what = f"list {resource.name}.{resource.group} in namespace {namespace}"
    retry_while_busy(what, lambda: objects.listed(kube, kind, namespace))

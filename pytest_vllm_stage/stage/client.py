"""The connection to the cluster."""

from __future__ import annotations

from contextlib import AbstractContextManager, closing

import httpx2
from lightkube import Client, KubeConfig
from lightkube.core.exceptions import ConfigError as KubeconfigError

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.api_errors import Refused, patiently, told

#: Owner of the fields that this project sets by server-side apply.
FIELD_MANAGER = "pytest-vllm-stage"
REQUEST_TIMEOUT_S = 15.0


def connect(cluster: ClusterFacts, namespace: str) -> Client:
    """A client for a namespace of the cluster, after seeing that it answers and that KServe is installed.

    Whoever asks for it closes it.

    Raises:
        ConfigError: the kubeconfig or its context is wrong.
        EnvironmentUnusable: the cluster does not answer, refuses the credentials, or lacks KServe; it names which.
    """
    try:
        config = KubeConfig.from_file(cluster.kubeconfig).get(cluster.context)
    except (KubeconfigError, KeyError, OSError) as error:
        raise ConfigError(f"kubeconfig {cluster.kubeconfig}, context {cluster.context}: {error}") from None
    timeout = httpx2.Timeout(REQUEST_TIMEOUT_S)
    # A proxy of the environment is for the internet: a cluster on this machine is not behind it.
    trust_env = cluster.kind != "local"
    kube = Client(config, namespace, timeout, field_manager=FIELD_MANAGER, trust_env=trust_env)
    try:
        for kind in ("ServingRuntime", "InferenceService"):
            _require_kserve(kube, namespace, kind)
    except BaseException:
        kube.close()
        raise
    return kube


def connection(cluster: ClusterFacts, namespace: str) -> AbstractContextManager[Client]:
    """`connect` for a ``with`` statement, which closes the client."""
    return closing(connect(cluster, namespace))


def _require_kserve(kube: Client, namespace: str, kind: str) -> None:
    resource = objects.resource_of(kind)
    definition = f"{resource._api_info.plural}.{resource._api_info.resource.group}"
    what = f"list {definition} in namespace {namespace}"

    def look() -> None:
        with told(what):
            list(kube.list(resource, namespace=namespace))

    try:
        patiently(what, look)
    except Refused as error:
        if error.code != 404:
            raise
        raise EnvironmentUnusable(
            f"the cluster has no KServe: CustomResourceDefinition {definition} "
            f"({resource._api_info.resource.version}) is missing",
            hint="kubectl get crd | grep serving.kserve.io",
        ) from None

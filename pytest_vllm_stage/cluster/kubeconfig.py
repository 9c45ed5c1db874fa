"""An existing cluster, named by a context of the user's kubeconfig."""

from __future__ import annotations

import shutil

from pytest_vllm_stage.cluster import kubeconfig_files
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable


def connect(context: str) -> ClusterFacts:
    """The cluster of a context, after its API server has answered.

    Raises:
        ConfigError: there is no kubeconfig, or no such context in it.
        EnvironmentUnusable: kubectl is missing, or the API server does not answer.
    """
    from pytest_vllm_stage.cluster import client

    kubectl = find_kubectl()
    paths = kubeconfig_files.configured_paths()
    with client.connection(paths, context) as connected:
        version = connected.version["kubernetes"]["gitVersion"]
    return ClusterFacts(
        kind="kubeconfig",
        kubeconfig=paths,
        context=context,
        kubernetes_version=version,
        kubectl=kubectl,
        reaches_services=False,
        owned=False,
    )


def find_kubectl() -> str:
    """The path of kubectl, or of oc, which renders manifests in the same way.

    Raises:
        EnvironmentUnusable: neither is on the PATH.
    """
    found = shutil.which("kubectl") or shutil.which("oc")
    if found is None:
        raise EnvironmentUnusable("neither kubectl nor oc is on the PATH", hint="install kubectl")
    return found

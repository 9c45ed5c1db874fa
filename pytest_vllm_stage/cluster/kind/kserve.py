"""KServe in a cluster of kind: the manifests of its pinned module, with the manager as a pod.

The manager's image is an archive with nothing but the program that the local cluster runs too: no registry is needed.
Its webhooks' certificate is made here instead of by cert-manager.
"""

from __future__ import annotations

import base64
import copy
from pathlib import Path
from typing import Any

from pytest_vllm_stage.cluster.kind.runtime import LOADED
from pytest_vllm_stage.cluster.local import bootstrap, kserve_files
from pytest_vllm_stage.cluster.local.images import Image

Object = dict[str, Any]
IMAGE = f"{LOADED}kserve-manager:1"
NAMESPACE = bootstrap.KSERVE_NAMESPACE
MANAGER = "kserve-controller-manager"
#: Names under which the API server calls the webhooks.
WEBHOOK_HOSTS = (f"kserve-webhook-server-service.{NAMESPACE}.svc", f"kserve-webhook-server-service.{NAMESPACE}")
_CERTIFICATE = "kserve-webhook-server-cert"
_USER = 65532


def manager_image(program: Path) -> Image:
    """The image with the manager and nothing else."""
    return Image(IMAGE, ("/manager",), {"manager": program}, rooted=False)


def build_manager_manifests(files: Path, certificate: bytes, key: bytes) -> list[Object]:
    """What runs the manager, in the order in which it is applied: its namespace, rights, settings and Deployment."""
    namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}}
    found = [_in_namespace(item) for item in kserve_files.manager(files) if item["kind"] not in ("Secret", "Namespace")]
    for item in found:
        if item["kind"] == "Deployment":
            _run_loaded_image(item)
    config = bootstrap.kserve_config(kserve_files.config_map(files))
    return [namespace, config, _certificate_secret(certificate, key), *found]


def build_webhooks(files: Path, authority: bytes) -> list[Object]:
    """The webhook configurations, merged by kind and name, which call the manager's Service."""
    bundle = base64.b64encode(authority).decode()
    merged = kserve_files.merge_webhooks(kserve_files.webhooks(files))
    for hook in (hook for configuration in merged for hook in configuration["webhooks"]):
        hook["clientConfig"]["caBundle"] = bundle
        hook["clientConfig"]["service"]["namespace"] = NAMESPACE
        hook["clientConfig"]["service"]["name"] = WEBHOOK_HOSTS[0].partition(".")[0]
    return merged


def _in_namespace(item: Object) -> Object:
    item = copy.deepcopy(item)
    if not item["kind"].startswith("Cluster"):
        item["metadata"]["namespace"] = NAMESPACE
    for subject in item.get("subjects") or []:
        subject["namespace"] = NAMESPACE
    return item


def _run_loaded_image(deployment: Object) -> None:
    """The module names its image by Go package, and expects the user to come from the image."""
    template = deployment["spec"]["template"]["spec"]
    template["securityContext"]["runAsUser"] = _USER
    for container in template["containers"]:
        container |= {"image": IMAGE, "imagePullPolicy": "IfNotPresent"}
        # A tenth of a core does not start a manager next to a model server within its probes' time.
        container["resources"] = {"requests": {"cpu": "100m", "memory": "200Mi"}, "limits": {"memory": "500Mi"}}
        container["readinessProbe"] |= {"initialDelaySeconds": 1, "periodSeconds": 1}


def _certificate_secret(certificate: bytes, key: bytes) -> Object:
    data = {"tls.crt": base64.b64encode(certificate).decode(), "tls.key": base64.b64encode(key).decode()}
    metadata = {"name": _CERTIFICATE, "namespace": NAMESPACE}
    return {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/tls", "metadata": metadata, "data": data}

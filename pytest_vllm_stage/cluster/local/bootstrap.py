"""The setup of a new cluster: storage, and KServe's types, configuration and webhooks."""

from __future__ import annotations

import base64
import copy
import json
from pathlib import Path
from typing import Any

from pytest_vllm_stage.cluster.local import kserve_files
from pytest_vllm_stage.cluster.local.api import BootstrapApi, BootstrapCallRejected
from pytest_vllm_stage.cluster.local.layout import MOUNTS, WEBHOOK_PORT, Layout
from pytest_vllm_stage.cluster.local.pki import NODE_NAME
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until

Object = dict[str, Any]

STORAGE_CLASS = "vllm-stage-local"
#: A stage of two models takes three until its last pod has ended: enough for several that are being removed.
VOLUMES = 16
VOLUME_SIZE = "5Gi"
KSERVE_NAMESPACE = "kserve"

_HOOKS = "/apis/admissionregistration.k8s.io/v1"


def storage_class() -> Object:
    """The default StorageClass; nothing provisions, so claims bind to the volumes below."""
    return {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {
            "name": STORAGE_CLASS,
            "annotations": {"storageclass.kubernetes.io/is-default-class": "true"},
        },
        "provisioner": "kubernetes.io/no-provisioner",
        "volumeBindingMode": "WaitForFirstConsumer",
    }


def volume_name(number: int) -> str:
    """Name of a PersistentVolume and of the folder that backs it."""
    return f"vllm-stage-{number}"


def persistent_volume(number: int) -> Object:
    """One PersistentVolume, backed by a folder that pods' mount namespaces see."""
    node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE_NAME]}
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": volume_name(number)},
        "spec": {
            "capacity": {"storage": VOLUME_SIZE},
            "accessModes": ["ReadWriteOnce", "ReadOnlyMany", "ReadWriteMany"],
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": STORAGE_CLASS,
            "hostPath": {"path": str(MOUNTS / "volumes" / volume_name(number)), "type": "Directory"},
            "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [node]}]}},
        },
    }


def kserve_config(original: Object) -> Object:
    """KServe's ConfigMap, changed where its defaults need Knative or an ingress."""
    config = copy.deepcopy(original)
    data = config["data"]
    _change(data, "deploy", {"defaultDeploymentMode": "Standard"})
    _change(data, "ingress", {"disableIngressCreation": True, "disableIstioVirtualHost": True})
    _change(data, "service", {"serviceClusterIPNone": False})
    config["metadata"]["namespace"] = KSERVE_NAMESPACE
    return config


def _change(data: dict[str, str], section: str, fields: Object) -> None:
    data[section] = json.dumps({**json.loads(data.get(section, "{}")), **fields}, indent=2)


def kserve_webhooks(originals: list[Object], address: str, ca: bytes) -> list[Object]:
    """KServe's webhook configurations, merged by kind and name, pointing at the manager's process."""
    merged = kserve_files.merge_webhooks(originals)
    for hook in (hook for configuration in merged for hook in configuration["webhooks"]):
        path = hook["clientConfig"]["service"]["path"]
        url = f"https://{address}:{WEBHOOK_PORT}{path}"
        hook["clientConfig"] = {"url": url, "caBundle": base64.b64encode(ca).decode()}
    return merged


def apply_storage(api: BootstrapApi) -> None:
    """Create the StorageClass and its volumes."""
    api.create("/apis/storage.k8s.io/v1/storageclasses", storage_class())
    for number in range(1, VOLUMES + 1):
        api.create("/api/v1/persistentvolumes", persistent_volume(number))


def apply_kserve(api: BootstrapApi, layout: Layout, files: Path, journal: Journal) -> None:
    """Create what KServe's manager needs, then let it start.

    Args:
        api: The API server.
        layout: The cluster's layout.
        files: The folder with KServe's files.
        journal: Records the waits.
    """
    api.create("/api/v1/namespaces", {"metadata": {"name": KSERVE_NAMESPACE}})
    config = kserve_config(kserve_files.config_map(files))
    api.create(f"/api/v1/namespaces/{KSERVE_NAMESPACE}/configmaps", config)
    crds = kserve_files.crds(files)
    wait_until(
        "types of KServe served",
        lambda: _observe_served(api, crds),
        timeout_s=60,
        journal=journal,
        interval_s=0.2,
        error=EnvironmentUnusable,
    )
    layout.kserve_gate.touch()
    ca = Path(layout.pki.certificate("ca")).read_bytes()
    for hook in kserve_webhooks(kserve_files.webhooks(files), str(layout.addresses.node), ca):
        api.create(f"{_HOOKS}/{hook['kind'].lower()}s", hook)


def _observe_served(api: BootstrapApi, crds: list[Object]) -> Observation:
    """The definitions were stored before the API server started; see `stored_types`."""
    wanted = {
        (crd["spec"]["group"], version["name"], crd["spec"]["names"]["plural"])
        for crd in crds
        for version in crd["spec"]["versions"]
        if version["served"]
    }
    served = {
        (group, version, resource["name"])
        for group, version in {(group, version) for group, version, _ in wanted}
        for resource in _discover(api, f"/apis/{group}/{version}")
    }
    return Observation(wanted <= served, f"{len(wanted & served)} of {len(wanted)} served")


def _discover(api: BootstrapApi, path: str) -> list[Object]:
    """The resources of a group's version; none where the API server does not know it yet."""
    try:
        resources: list[Object] = api.get(path)["resources"]
    except BootstrapCallRejected as error:
        if error.status != 404:
            raise
        return []
    return resources


def is_established(crd: Object) -> bool:
    """The API server serves the type; a definition that was just created has no conditions at all."""
    conditions = crd.get("status", {}).get("conditions") or []
    return any(item["type"] == "Established" and item["status"] == "True" for item in conditions)

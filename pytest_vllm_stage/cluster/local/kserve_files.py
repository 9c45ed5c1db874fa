"""The files of KServe's module that the cluster applies: copied when it is built, as JSON into the cache.

Nothing of it is in the repository, and starting a cluster needs neither Go nor the module.
"""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

#: Part of the component's fingerprint; another value makes new copies.
FORMAT = "2"

_CRDS = ("config/crd/full/serving.kserve.io_*.yaml", "config/crd/full/clusterstoragecontainer/serving.kserve.io_*.yaml")
_CRD_FILE = "crds.json"
_WEBHOOK_FILE = "webhooks.json"
_CONFIG_FILE = "configmap.json"
_MANAGER_FILE = "manager.json"
#: What runs the manager in a pod: the local cluster starts it as a process instead.
MANAGER = (
    "config/rbac/service_account.yaml",
    "config/rbac/role.yaml",
    "config/rbac/role_binding.yaml",
    "config/rbac/leader_election_role.yaml",
    "config/rbac/leader_election_role_binding.yaml",
    "config/webhook/service.yaml",
    "config/manager/manager.yaml",
)


def copy(module: Path, folder: Path) -> None:
    """Read the module's YAML and write it as JSON files into ``folder``."""
    crds = [document for pattern in _CRDS for path in sorted(module.glob(pattern)) for document in _documents(path)]
    _write(folder / _CRD_FILE, crds)
    _write(folder / _WEBHOOK_FILE, _documents(module / "config/webhook/manifests.yaml"))
    _write(folder / _CONFIG_FILE, _documents(module / "config/configmap/inferenceservice.yaml"))
    _write(folder / _MANAGER_FILE, [document for name in MANAGER for document in _documents(module / name)])


def crds(folder: Path) -> list[dict[str, Any]]:
    """The CustomResourceDefinitions."""
    return _read(crds_file(folder))


def crds_file(folder: Path) -> Path:
    """The file that holds the CustomResourceDefinitions."""
    return folder / _CRD_FILE


def webhooks(folder: Path) -> list[dict[str, Any]]:
    """The webhook configurations, which name a Service."""
    return _read(folder / _WEBHOOK_FILE)


def merge_webhooks(originals: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Copies of webhook configurations, merged by kind and name: KServe's files have one document per webhook."""
    merged: dict[tuple[str, str], dict[str, Any]] = {}
    for original in deepcopy(originals):
        key = (original["kind"], original["metadata"]["name"])
        if key in merged:
            merged[key]["webhooks"] += original["webhooks"]
        else:
            merged[key] = original
    return list(merged.values())


def config_map(folder: Path) -> dict[str, Any]:
    """The ConfigMap ``inferenceservice-config`` with KServe's defaults."""
    return _read(folder / _CONFIG_FILE)[0]


def manager(folder: Path) -> list[dict[str, Any]]:
    """What runs the manager in a pod: account, roles, Deployment and the Service of its webhooks."""
    return _read(folder / _MANAGER_FILE)


def _documents(path: Path) -> list[dict[str, Any]]:
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    with path.open(encoding="utf-8") as file:
        return [document for document in yaml.load_all(file, Loader=loader) if document]


def _write(path: Path, documents: list[dict[str, Any]]) -> None:
    if not documents:
        raise FileNotFoundError(f"KServe's module has nothing for {path.name}")
    path.write_text(json.dumps(documents), encoding="utf-8")


def _read(path: Path) -> list[dict[str, Any]]:
    documents: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
    return documents

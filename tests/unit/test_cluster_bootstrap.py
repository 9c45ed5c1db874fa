"""The setup of a new cluster: storage, and KServe's files with this package's changes."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any, cast

import pytest

from pytest_vllm_stage.cluster.local import bootstrap, kserve_files, stored_types, volumes
from pytest_vllm_stage.cluster.local.api import BootstrapApi, BootstrapCallRejected
from pytest_vllm_stage.core.waiting import Observation

CONFIG = {
    "apiVersion": "v1",
    "kind": "ConfigMap",
    "metadata": {"name": "inferenceservice-config", "namespace": "kserve"},
    "data": {
        "_example": "not json",
        "deploy": '{"defaultDeploymentMode": "Serverless"}',
        "ingress": '{"ingressDomain": "example.com", "disableIngressCreation": false}',
    },
}


def hook(kind: str, name: str, path: str) -> dict[str, Any]:
    service = {"name": "webhook", "namespace": "kserve", "path": path}
    return {
        "kind": kind,
        "metadata": {"name": name},
        "webhooks": [{"name": path, "clientConfig": {"service": service}}],
    }


def test_claims_bind_on_first_use_to_existing_volumes() -> None:
    storage = bootstrap.storage_class()
    assert storage["volumeBindingMode"] == "WaitForFirstConsumer"
    assert storage["metadata"]["annotations"] == {"storageclass.kubernetes.io/is-default-class": "true"}
    volume = bootstrap.persistent_volume(2)
    assert volume["spec"]["storageClassName"] == storage["metadata"]["name"] == "vllm-stage-local"
    assert volume["spec"]["capacity"] == {"storage": "5Gi"}
    assert volume["spec"]["hostPath"]["path"] == f"/mnt/vllm-stage/volumes/{volume['metadata']['name']}"


def test_kserve_runs_deployments_without_ingress() -> None:
    config = bootstrap.kserve_config(CONFIG)
    data = config["data"]
    assert json.loads(data["deploy"])["defaultDeploymentMode"] == "Standard"
    assert json.loads(data["ingress"])["disableIngressCreation"] is True
    assert json.loads(data["ingress"])["ingressDomain"] == "example.com", "other settings stay"
    assert json.loads(data["service"])["serviceClusterIPNone"] is False
    assert data["_example"] == "not json"
    assert CONFIG["data"]["deploy"] == '{"defaultDeploymentMode": "Serverless"}', "the original is not changed"  # type: ignore[index]


def test_webhooks_reach_the_managers_process() -> None:
    originals = [
        hook("MutatingWebhookConfiguration", "inferenceservice", "/mutate"),
        hook("ValidatingWebhookConfiguration", "inferenceservice", "/validate"),
        hook("ValidatingWebhookConfiguration", "inferenceservice", "/validate-more"),
    ]
    hooks = bootstrap.kserve_webhooks(originals, "10.219.0.2", b"the authority")
    assert [(item["kind"], len(item["webhooks"])) for item in hooks] == [
        ("MutatingWebhookConfiguration", 1),
        ("ValidatingWebhookConfiguration", 2),
    ]
    client = hooks[1]["webhooks"][1]["clientConfig"]
    assert client["url"] == "https://10.219.0.2:9443/validate-more"
    assert base64.b64decode(client["caBundle"]) == b"the authority"
    assert "service" not in client


def test_kserves_files_are_taken_from_its_module(tmp_path: Path) -> None:
    module, folder = tmp_path / "module", tmp_path / "component"
    for path, text in {
        "config/crd/full/serving.kserve.io_inferenceservices.yaml": "kind: A",
        "config/crd/full/kustomization.yaml": "kind: Kustomization",
        "config/crd/full/llmisvc/serving.kserve.io_llminferenceservices.yaml": "kind: Unused",
        "config/crd/full/clusterstoragecontainer/serving.kserve.io_clusterstoragecontainers.yaml": "kind: B",
        "config/webhook/manifests.yaml": "---\nkind: H1\n---\nkind: H2\n",
        "config/configmap/inferenceservice.yaml": "kind: ConfigMap",
        **{path: f"kind: K{number}" for number, path in enumerate(kserve_files.MANAGER)},
    }.items():
        (module / path).parent.mkdir(parents=True, exist_ok=True)
        (module / path).write_text(text)
    folder.mkdir()
    kserve_files.copy(module, folder)
    assert [crd["kind"] for crd in kserve_files.crds(folder)] == ["A", "B"]
    assert [webhook["kind"] for webhook in kserve_files.webhooks(folder)] == ["H1", "H2"]
    assert kserve_files.config_map(folder) == {"kind": "ConfigMap"}
    assert [item["kind"] for item in kserve_files.manager(folder)] == [
        f"K{n}" for n in range(len(kserve_files.MANAGER))
    ]


def test_a_module_without_the_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing for crds"):
        kserve_files.copy(tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("conditions", "expected"),
    [
        (None, False),
        ([], False),
        ([{"type": "Established", "status": "False"}], False),
        ([{"type": "Established", "status": "True"}], True),
    ],
)
def test_a_type_is_usable_once_established(conditions: list[dict[str, str]] | None, expected: bool) -> None:
    assert bootstrap.is_established({"status": {"conditions": conditions}}) is expected
    assert bootstrap.is_established({}) is False


CRD: dict[str, Any] = {
    "apiVersion": "apiextensions.k8s.io/v1",
    "kind": "CustomResourceDefinition",
    "metadata": {"name": "tools.example.org", "annotations": {"a": "b"}},
    "spec": {
        "group": "example.org",
        "names": {"kind": "Tool", "plural": "tools"},
        "versions": [
            {"name": "v1beta1", "served": True, "storage": True},
            {"name": "v1alpha1", "served": True, "storage": False},
            {"name": "v1", "served": False, "storage": False},
        ],
    },
}


def test_stored_definition_is_accepted_and_established() -> None:
    stored = stored_types.to_stored(CRD, "2026-01-02T03:04:05Z")
    assert bootstrap.is_established(stored)
    assert stored["spec"]["names"] == stored["status"]["acceptedNames"]
    assert stored["spec"]["names"] == {"kind": "Tool", "plural": "tools", "listKind": "ToolList"}
    assert stored["status"]["storedVersions"] == ["v1beta1"]
    assert stored["metadata"]["name"] == "tools.example.org"
    assert stored["metadata"]["annotations"] == {"a": "b"}
    assert stored["metadata"]["uid"] != stored_types.to_stored(CRD, "")["metadata"]["uid"]


@pytest.mark.parametrize(
    ("served", "expected"),
    [
        ({}, Observation(False, "0 of 2 served")),
        ({"v1beta1": ["tools"]}, Observation(False, "1 of 2 served")),
        ({"v1beta1": ["tools"], "v1alpha1": ["tools/status", "others"]}, Observation(False, "1 of 2 served")),
        ({"v1beta1": ["tools"], "v1alpha1": ["tools"]}, Observation(True, "2 of 2 served")),
    ],
)
def test_manager_waits_until_every_served_version_is_discovered(
    served: dict[str, list[str]], expected: Observation
) -> None:
    class Discovery:
        def get(self, path: str) -> dict[str, Any]:
            version = path.removeprefix("/apis/example.org/")
            if version not in served:
                raise BootstrapCallRejected("not found", 404)
            return {"resources": [{"name": name} for name in served[version]]}

    assert bootstrap._observe_served(cast("BootstrapApi", Discovery()), [CRD]) == expected


class FakeApi:
    """Answers with volumes, and records the requested changes."""

    def __init__(self, phases: dict[str, str]) -> None:
        self.phases = phases
        self.merged: list[tuple[str, Any]] = []

    def get(self, _path: str) -> dict[str, Any]:
        """The volumes, whatever is asked for."""
        items = [{"metadata": {"name": name}, "status": {"phase": phase}} for name, phase in self.phases.items()]
        return {"items": [*items, {"metadata": {"name": "new"}}]}

    def merge(self, path: str, changes: Any) -> None:
        """Note the change."""
        self.merged.append((path, changes))


def test_released_volumes_are_emptied_before_reuse(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "two"):
        (tmp_path / name / "folder").mkdir(parents=True)
        (tmp_path / name / "folder" / "file").write_text("old")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "file").write_text("not ours")
    (tmp_path / "one" / "link").symlink_to(elsewhere)
    fake = FakeApi({"one": "Released", "two": "Bound"})
    api: BootstrapApi = fake  # type: ignore[assignment]
    assert volumes.reclaim(api, tmp_path) == ["one"]
    assert list((tmp_path / "one").iterdir()) == []
    assert (tmp_path / "two" / "folder" / "file").exists()
    assert (elsewhere / "file").exists()
    assert fake.merged == [("/api/v1/persistentvolumes/one", {"spec": {"claimRef": None}})]

"""Ownership: nothing that was there is taken over, and what is ours says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage.deploy import apply
from pytest_vllm_stage.stage.deploy.apply import Ownership
from tests.unit.made_api import ApiServer, served, status

OURS = Ownership("r1", "2026-01-02T00:00:00Z")
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"a": "b"}}}


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with served() as server:
        yield server


@pytest.fixture
def kube(api: ApiServer, tmp_path: Path) -> Iterator[Any]:
    facts = api.facts(tmp_path)
    with client.connection(facts.kubeconfig, facts.context) as connected:
        yield connected


def applied(kube: Any, manifest: dict[str, Any], values: dict[str, Secret] | None = None) -> list[dict[str, Any]]:
    return apply.apply(kube, [manifest], "ns", OURS, values or {})


def test_what_is_applied_carries_run_and_expiry_and_keeps_its_labels(api: ApiServer, kube: Any) -> None:
    applied(kube, CONFIG_MAP)
    assert api.bodies[0]["metadata"] == {
        "name": "c",
        "labels": {"a": "b", "vllm-stage/run-id": "r1"},
        "annotations": {"vllm-stage/expires-at": "2026-01-02T00:00:00Z"},
    }


def test_pod_templates_carry_no_run_id(api: ApiServer, kube: Any) -> None:
    template = {"metadata": {"labels": {"app": "x"}}, "spec": {}}
    applied(
        kube, {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": template}}
    )
    assert api.bodies[0]["spec"]["template"] == template


def test_an_object_of_this_run_is_applied_again(api: ApiServer, kube: Any) -> None:
    api.add(OURS.mark(CONFIG_MAP))
    applied(kube, CONFIG_MAP)
    assert len(api.bodies) == 1


@pytest.mark.parametrize(
    ("metadata", "owner"),
    [
        (
            {
                "labels": {"vllm-stage/run-id": "r0"},
                "annotations": {"vllm-stage/expires-at": "2025-01-01T00:00:00Z"},
            },
            r"run r0 \(expires 2025-01-01T00:00:00Z\)",
        ),
        (
            {"managedFields": [{"manager": "argocd-controller"}, {"manager": "helm"}]},
            "field manager argocd-controller, helm",
        ),
        ({}, "an unknown owner"),
    ],
)
def test_an_object_of_another_owner_is_refused_by_name(
    api: ApiServer, kube: Any, metadata: dict[str, Any], owner: str
) -> None:
    api.add({"kind": "ConfigMap", "metadata": {"name": "c", **metadata}})
    with pytest.raises(ConfigError, match=f"configmap/c in namespace ns exists already and belongs to {owner}"):
        applied(kube, CONFIG_MAP)
    assert api.bodies == []


def test_nothing_is_applied_when_a_later_object_is_foreign(api: ApiServer, kube: Any) -> None:
    api.add({"kind": "ConfigMap", "metadata": {"name": "c"}})
    first = {"apiVersion": "v1", "kind": "Service", "metadata": {"name": "s"}}
    with pytest.raises(ConfigError):
        apply.apply(kube, [first, CONFIG_MAP], "ns", OURS, {})
    assert api.bodies == []


def test_a_conflict_of_fields_is_an_error(api: ApiServer, kube: Any) -> None:
    api.answers[f"PATCH {api.path_of(CONFIG_MAP)}"] = (409, status(409, 'conflict with "kubectl": .data.a'))
    with pytest.raises(ConfigError, match=r'configmap/c in namespace ns has fields of another owner: .*"kubectl"'):
        applied(kube, CONFIG_MAP)


def test_the_answer_of_a_denying_webhook_is_repeated(api: ApiServer, kube: Any) -> None:
    denied = status(400, "admission webhook denied the request: PYTHONPATH is not allowed")
    api.answers[f"PATCH {api.path_of(CONFIG_MAP)}"] = (400, denied)
    with pytest.raises(ConfigError, match=r"rejects configmap/c: .*PYTHONPATH is not allowed"):
        applied(kube, CONFIG_MAP)


def test_secret_values_are_filled_in_the_request_alone(api: ApiServer, kube: Any) -> None:
    manifest = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": {"name": "s"},
        "stringData": {"k": "${MINIO_SECRET_KEY}"},
    }
    applied(kube, manifest, {"MINIO_SECRET_KEY": Secret("value")})
    assert api.bodies[0]["stringData"] == {"k": "value"}
    assert manifest["stringData"] == {"k": "${MINIO_SECRET_KEY}"}


def test_a_kind_that_the_cluster_does_not_serve_is_a_configuration_error(kube: Any) -> None:
    gizmo = {"apiVersion": "example.org/v1", "kind": "Gizmo", "metadata": {"name": "g"}}
    with pytest.raises(ConfigError, match=r"gizmo/g cannot be applied: the cluster serves no Gizmo \(example.org/v1\)"):
        applied(kube, gizmo)

"""Ownership: nothing that was there is taken over, and what is ours says so."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
from lightkube import ApiError

from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage import api_errors, objects
from pytest_vllm_stage.stage.deploy import apply
from pytest_vllm_stage.stage.deploy.apply import Ownership

OURS = Ownership("r1", "2026-01-02T00:00:00Z")
CONFIG_MAP = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"a": "b"}}}


def api_error(code: int, message: str) -> ApiError:
    status: Any = SimpleNamespace(code=code, message=message)
    error = ApiError.__new__(ApiError)
    Exception.__init__(error, message)
    error.status = status
    return error


class FakeKube:
    """An API server with some objects, which keeps what is applied."""

    def __init__(self, *there: dict[str, Any], refusal: ApiError | None = None) -> None:
        self.there = {(item["kind"], item["metadata"]["name"]): item for item in there}
        self.applied: list[dict[str, Any]] = []
        self.refusal = refusal

    def get(self, resource: type, name: str, **_scope: Any) -> dict[str, Any]:
        found = self.there.get((resource.__name__, name))
        if found is None:
            raise api_error(404, "not found")
        return found

    def apply(self, item: dict[str, Any], **options: Any) -> dict[str, Any]:
        assert options["field_manager"] == "pytest-vllm-stage"
        assert "force" not in options
        if self.refusal:
            raise self.refusal
        self.applied.append(dict(item))
        return item


def applied(kube: Any, manifest: dict[str, Any], values: dict[str, Secret] | None = None) -> list[dict[str, Any]]:
    return apply.apply(kube, [manifest], "ns", OURS, values or {})


def test_what_is_applied_carries_run_and_expiry_and_keeps_its_labels() -> None:
    kube = FakeKube()
    applied(kube, CONFIG_MAP)
    assert kube.applied[0]["metadata"] == {
        "name": "c",
        "labels": {"a": "b", "vllm-stage/run-id": "r1"},
        "annotations": {"vllm-stage/expires-at": "2026-01-02T00:00:00Z"},
    }


def test_pod_templates_carry_no_run_id() -> None:
    kube = FakeKube()
    template = {"metadata": {"labels": {"app": "x"}}, "spec": {}}
    applied(kube, {"kind": "Deployment", "metadata": {"name": "d"}, "spec": {"template": template}})
    assert kube.applied[0]["spec"]["template"] == template


def test_an_object_of_this_run_is_applied_again() -> None:
    kube = FakeKube(OURS.mark(CONFIG_MAP))
    applied(kube, CONFIG_MAP)
    assert len(kube.applied) == 1


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
def test_an_object_of_somebody_else_is_refused_by_name(metadata: dict[str, Any], owner: str) -> None:
    kube = FakeKube({"kind": "ConfigMap", "metadata": {"name": "c", **metadata}})
    with pytest.raises(ConfigError, match=f"configmap/c in namespace ns is there already and belongs to {owner}"):
        applied(kube, CONFIG_MAP)
    assert kube.applied == []


def test_nothing_is_applied_when_a_later_object_is_foreign() -> None:
    kube: Any = FakeKube({"kind": "ConfigMap", "metadata": {"name": "c"}})
    first = {"kind": "Service", "metadata": {"name": "s"}}
    with pytest.raises(ConfigError):
        apply.apply(kube, [first, CONFIG_MAP], "ns", OURS, {})
    assert kube.applied == []


def test_a_conflict_of_fields_is_no_success() -> None:
    kube = FakeKube(refusal=api_error(409, 'conflict with "kubectl": .data.a'))
    with pytest.raises(ConfigError, match=r'configmap/c in namespace ns has fields of another owner: .*"kubectl"'):
        applied(kube, CONFIG_MAP)


def test_a_refusing_webhook_is_told() -> None:
    kube = FakeKube(refusal=api_error(400, "admission webhook denied the request: PYTHONPATH is not allowed"))
    with pytest.raises(ConfigError, match=r"does not take configmap/c: .*PYTHONPATH is not allowed"):
        applied(kube, CONFIG_MAP)


def test_secret_values_are_filled_in_the_request_alone() -> None:
    kube = FakeKube()
    manifest = {"kind": "Secret", "metadata": {"name": "s"}, "stringData": {"k": "${MINIO_SECRET_KEY}"}}
    applied(kube, manifest, {"MINIO_SECRET_KEY": Secret("value")})
    assert kube.applied[0]["stringData"] == {"k": "value"}
    assert manifest["stringData"] == {"k": "${MINIO_SECRET_KEY}"}


@pytest.mark.parametrize(
    ("code", "message", "kind"),
    [
        (401, "Unauthorized", EnvironmentUnusable),
        (403, 'pods is forbidden: User "x" cannot list', EnvironmentUnusable),
        (403, "pods is forbidden: exceeded quota", api_errors.Refused),
        (500, "failed calling webhook", api_errors.Unreachable),
        (429, "storage is (re)initializing", api_errors.Busy),
        (404, "not found", api_errors.Refused),
        (500, "failed to create typed patch object (ns/j; batch/v1, Kind=Job): duplicate entries", api_errors.Refused),
    ],
)
def test_the_servers_answers_are_told_apart(code: int, message: str, kind: type[Exception]) -> None:
    with pytest.raises(kind) as failed, api_errors.told("list pods"):
        raise api_error(code, message)
    assert type(failed.value) is kind
    assert "list pods" in str(failed.value)


def test_a_busy_server_is_asked_again_and_not_for_ever() -> None:
    asked = []

    def busy_once() -> str:
        asked.append(1)
        if len(asked) == 1:
            raise api_errors.Busy("come back")
        return "answer"

    assert api_errors.patiently("ask", busy_once) == "answer"
    with pytest.raises(EnvironmentUnusable, match="come back"):
        api_errors.patiently("ask", lambda: (_ for _ in ()).throw(api_errors.Busy("come back")), timeout_s=0)
    with pytest.raises(api_errors.Unreachable, match="gone"):
        api_errors.patiently("ask", lambda: (_ for _ in ()).throw(api_errors.Unreachable("gone")))


def test_no_answer_is_unreachable() -> None:
    told = r"list pods: the cluster does not answer \(ConnectError: refused\)"
    with pytest.raises(api_errors.Unreachable, match=told), api_errors.told("list pods"):
        raise httpx2.ConnectError("refused")


def test_absent_objects_and_kinds_are_none_and_empty() -> None:
    kube: Any = FakeKube()
    assert objects.get(kube, "ConfigMap", "c", "ns") is None
    kube.list = lambda *_args, **_options: (_ for _ in ()).throw(api_error(404, "no such kind"))
    assert objects.listed(kube, "Route", "ns") == []

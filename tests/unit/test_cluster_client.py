"""The connection: discovery in memory, a timeout on every request, no proxy for this machine, no files left."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3

from pytest_vllm_stage.cluster import api_errors, client
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.stage import objects
from tests.unit.made_api import KSERVE, ApiServer, kubeconfig, served, status


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with served() as server:
        yield server


@pytest.fixture
def kube(api: ApiServer, tmp_path: Path) -> Iterator[Any]:
    facts = api.facts(tmp_path)
    with client.connection(facts.kubeconfig, facts.context) as connected:
        yield connected


def test_discovery_takes_two_requests_and_is_done_once(api: ApiServer, kube: Any) -> None:
    for _ in range(3):
        assert objects.find_resource(kube, "Pod").name == "pods"
        assert objects.find_resource(kube, "InferenceService").group_version == "serving.kserve.io/v1beta1"
    assert api.asked("GET") == ["GET /version", "GET /api", "GET /apis"]


def test_discovery_of_an_older_server_finds_the_same(tmp_path: Path) -> None:
    with served(ApiServer(aggregated=False)) as api:
        facts = api.facts(tmp_path)
        with client.connection(facts.kubeconfig, facts.context) as kube:
            assert objects.find_resource(kube, "Pod").name == "pods"
            assert objects.find_resource(kube, "ServingRuntime").group_version == "serving.kserve.io/v1alpha1"
            assert not objects.find_resource(kube, "Namespace").namespaced
            before = len(api.requests)
            objects.find_resource(kube, "ServingRuntime")
            assert len(api.requests) == before


def test_a_kind_of_several_groups_is_the_core_one_unless_its_group_is_named(kube: Any) -> None:
    assert objects.find_resource(kube, "Service").group_version == "v1"
    assert objects.find_resource(kube, "Event").group_version == "v1"
    assert objects.find_resource(kube, "Service.serving.knative.dev").group_version == "serving.knative.dev/v1"
    assert objects.find_resource(kube, "Service", "serving.knative.dev/v1").group == "serving.knative.dev"
    assert objects.find_resource(kube, "Service", "v1").group == ""


def test_a_kind_installed_meanwhile_is_found(tmp_path: Path) -> None:
    with served(ApiServer(kinds=[("", "v1", "Pod", "pods", True)])) as api:
        facts = api.facts(tmp_path)
        with client.connection(facts.kubeconfig, facts.context) as kube:
            with pytest.raises(api_errors.KindNotServed, match="the cluster serves no InferenceService"):
                objects.find_resource(kube, "InferenceService")
            assert objects.listed(kube, "InferenceService", "ns") == []
            api.kinds += KSERVE
            assert objects.find_resource(kube, "InferenceService").namespaced


def test_discovery_leaves_no_file(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    facts = api.facts(tmp_path)
    with client.connection(facts.kubeconfig, facts.context) as kube:
        objects.find_resource(kube, "Pod")
        assert list(temporary.iterdir()) == []


def test_silent_server_times_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, api: ApiServer, kube: Any) -> None:
    timeouts = []
    request = kube.client.rest_client.request

    def note(*args: Any, **kwargs: Any) -> Any:
        timeouts.append(kwargs["_request_timeout"])
        return request(*args, **kwargs)

    monkeypatch.setattr(kube.client.rest_client, "request", note)
    objects.listed(kube, "Pod", "ns")
    kube.resources.get(api_version="v1", kind="Pod").get(namespace="ns")
    assert timeouts == [(client.REQUEST_TIMEOUT_S, client.REQUEST_TIMEOUT_S)] * 2


def test_environment_proxies_are_not_used_for_this_machine(
    api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    facts = api.facts(tmp_path)
    with client.connection(facts.kubeconfig, facts.context) as kube:
        assert kube.version["kubernetes"]["gitVersion"] == "v1.34.4"
    far = tmp_path / "far"
    far.write_text(str(kubeconfig("http://203.0.113.1:6443")))
    with pytest.raises(EnvironmentUnusable, match=r"ProxyError|Connection refused"):
        client.connect(str(far), "ctx")
    opened = client._open_api_client(str(far), "ctx", uses_env_proxy=False)
    assert not isinstance(opened.rest_client.pool_manager, urllib3.ProxyManager)
    opened.close()


def test_connection_that_the_server_closed_is_reopened(api: ApiServer, kube: Any) -> None:
    objects.listed(kube, "Pod", "ns")
    api.drops = 1
    assert objects.listed(kube, "Pod", "ns") == []
    api.drops = 2
    with pytest.raises(api_errors.ApiServerUnreachable, match="without response"):
        objects.listed(kube, "Pod", "ns")


def test_listed_objects_know_their_kind(api: ApiServer, kube: Any) -> None:
    api.add({"kind": "Pod", "metadata": {"name": "p", "labels": {"a": "b"}}})
    api.add({"kind": "Pod", "metadata": {"name": "q"}})
    (found,) = objects.listed(kube, "Pod", "ns", {"a": "b"})
    assert (found["kind"], found["apiVersion"], found["metadata"]["name"]) == ("Pod", "v1", "p")


def test_absent_objects_and_kinds_are_none_and_empty(kube: Any) -> None:
    assert objects.get(kube, "ConfigMap", "c", "ns") is None
    assert objects.get(kube, "Route.route.openshift.io", "r", "ns") is None
    assert objects.listed(kube, "Route.route.openshift.io", "ns") == []


def test_apply_is_server_side_and_takes_over_no_fields(api: ApiServer, kube: Any) -> None:
    objects.apply(kube, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "n", "namespace": "n"}}, "ns")
    assert api.requests[-1] == "PATCH /api/v1/namespaces/n?fieldManager=pytest-vllm-stage"
    assert api.headers["Content-Type"] == "application/apply-patch+yaml"
    assert api.bodies[-1]["metadata"] == {"name": "n"}


def test_delete_is_foreground_and_accepts_absent_objects(api: ApiServer, kube: Any) -> None:
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}}
    api.add(job)
    objects.delete(kube, job, "ns")
    objects.delete(kube, job, "ns")
    assert api.requests[-1] == "DELETE /apis/batch/v1/namespaces/ns/jobs/j?propagationPolicy=Foreground"


def test_logs_are_text_also_where_they_look_like_json(api: ApiServer, kube: Any) -> None:
    api.answers["GET /api/v1/namespaces/ns/pods/p/log"] = (200, '{"level": "error"}')
    assert objects.read_log(kube, "ns", "p", "c", previous=True, lines=5) == '{"level": "error"}'
    assert api.requests[-1].endswith("?container=c&tailLines=5&previous=true")


@pytest.mark.parametrize(
    ("code", "body", "kind", "message"),
    [
        (401, status(401, "Unauthorized"), EnvironmentUnusable, "rejects the credentials"),
        (403, status(403, 'pods is forbidden: User "x" cannot list'), EnvironmentUnusable, "not allowed to list pods"),
        (403, status(403, "pods is forbidden: exceeded quota"), api_errors.RequestRejected, "exceeded quota"),
        (
            403,
            "RBAC: access denied",
            api_errors.ApiServerUnreachable,
            "HTTP 403 from another server.*RBAC: access denied",
        ),
        (500, status(500, "failed calling webhook"), api_errors.ApiServerUnreachable, "failed calling webhook"),
        (502, "<html>Bad gateway</html>", api_errors.ApiServerUnreachable, "502.*Bad gateway"),
        (302, "", api_errors.ApiServerUnreachable, "302"),
        (200, "<html>log in</html>", api_errors.ApiServerUnreachable, "not JSON"),
        (429, status(429, "storage is (re)initializing"), api_errors.ApiServerBusy, "busy"),
        (409, status(409, "conflict"), api_errors.RequestRejected, "conflict"),
        (
            500,
            status(500, "failed to create typed patch object (ns/j; batch/v1, Kind=Job): duplicate entries"),
            api_errors.RequestRejected,
            "duplicate entries",
        ),
    ],
)
def test_error_answers_are_classified(
    api: ApiServer, kube: Any, code: int, body: Any, kind: type[Exception], message: str
) -> None:
    api.answers["GET /api/v1/namespaces/ns/pods"] = (code, body)
    with pytest.raises(kind, match=message) as failed:
        objects.listed(kube, "Pod", "ns")
    assert type(failed.value) is kind
    assert "list pods" in str(failed.value)


def test_no_answer_is_unreachable_and_the_error_holds_no_credentials(tmp_path: Path) -> None:
    with served() as api:
        path = tmp_path / "kubeconfig"
        path.write_text(str(kubeconfig(api.url, token="very-secret-token")))
        with client.connection(str(path), "ctx") as kube:
            assert api.headers["authorization"] == "Bearer very-secret-token"
            api.answers["GET /api/v1/namespaces/ns/pods"] = (401, status(401, "Unauthorized"))
            with pytest.raises(EnvironmentUnusable) as refused:
                objects.listed(kube, "Pod", "ns")
    with pytest.raises(
        api_errors.ApiServerUnreachable, match=f"first request to {api.url} .*Connection refused"
    ) as failed:
        client.connect(str(path), "ctx")
    assert "very-secret-token" not in f"{refused.value!r}{failed.value!r}{failed.value.__context__!r}"


def test_busy_server_is_retried_until_the_timeout() -> None:
    asked = []

    def busy_once() -> str:
        asked.append(1)
        if len(asked) == 1:
            raise api_errors.ApiServerBusy("come back")
        return "answer"

    def fail(error: Exception) -> str:
        raise error

    assert api_errors.retry_while_busy("ask", busy_once) == "answer"
    with pytest.raises(EnvironmentUnusable, match="come back"):
        api_errors.retry_while_busy("ask", lambda: fail(api_errors.ApiServerBusy("come back")), timeout_s=0)
    with pytest.raises(api_errors.ApiServerUnreachable, match="gone"):
        api_errors.retry_while_busy("ask", lambda: fail(api_errors.ApiServerUnreachable("gone")))

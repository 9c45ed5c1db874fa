"""Where servers answer, by what the cluster lets this machine reach."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy import addresses
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.reach import forwards
from pytest_vllm_stage.stage.reach.address import AccessWay, ChosenAddress, NoAddress, choose_address
from pytest_vllm_stage.stage.reach.published import Backend, Publishers, find_candidates
from tests.unit.made_objects import admitted_route, condition, pod, service

NEAR = ClusterFacts("local", "kc", "ctx", "v1", "kubectl", reaches_services=True, owned=True)
FAR = dataclasses.replace(NEAR, kind="kubeconfig", reaches_services=False)
INSIDE = dataclasses.replace(FAR, kind="in-cluster", kubeconfig="", context="")
NO_KUBE: Any = None


def a_service(name: str, ip: str, port: int = 80, target: int = 8080) -> Object:
    spec = {"clusterIP": ip, "ports": [{"port": port, "targetPort": target}], "selector": {"app": "m"}}
    return {"kind": "Service", "metadata": {"name": name}, "spec": spec}


def no_forward(_cluster: object, _url: str) -> None:
    raise EnvironmentUnusable("not allowed")


@pytest.fixture
def there(monkeypatch: pytest.MonkeyPatch) -> list[Object]:
    """The namespace's objects."""
    held: list[Object] = []

    def get(_kube: object, kind: str, name: str, _namespace: str) -> Object | None:
        return next((i for i in held if i["kind"] == kind.partition(".")[0] and i["metadata"]["name"] == name), None)

    def listed(_kube: object, kind: str, *_: object) -> list[Object]:
        return [item for item in held if item["kind"] == kind.partition(".")[0]]

    monkeypatch.setattr(objects, "get", get)
    monkeypatch.setattr(forwards, "check", no_forward)
    monkeypatch.setattr(objects, "find_resource", lambda _kube, kind: SimpleNamespace(name=kind, group=""))
    monkeypatch.setattr(objects, "listed", listed)
    return held


@pytest.fixture
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def closed_port(listener: int) -> int:
    """A port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def model(item: Object, cluster: ClusterFacts) -> str:
    found = addresses.find_model_address(NO_KUBE, cluster, "ns", item)
    if isinstance(found, NoAddress):
        raise addresses.judge_unreachable(cluster, "ns", item, found)
    return found.url


def minio(cluster: ClusterFacts) -> str:
    return addresses.find_minio_address(NO_KUBE, cluster, "ns").url


def test_a_near_cluster_answers_on_the_cluster_ip(there: list[Object]) -> None:
    there.append(a_service("m-predictor", "10.0.0.7"))
    assert model(service(), NEAR) == "http://10.0.0.7:80"
    there[0]["spec"]["clusterIP"] = "fd00::7"
    assert model(service(), NEAR) == "http://[fd00::7]:80"


def test_a_headless_service_answers_on_a_ready_pod(there: list[Object]) -> None:
    there += [a_service("m-predictor", "None"), pod("a", ready=False, podIP="10.1.0.1"), pod("b", podIP="10.1.0.2")]
    assert model(service(), NEAR) == "http://10.1.0.2:8080"
    there.pop()
    with pytest.raises(StageFailure, match="service/m-predictor has no Ready pod"):
        model(service(), NEAR)


def test_a_named_port_of_a_headless_service_is_the_pods_number(there: list[Object]) -> None:
    there += [a_service("m-predictor", "None"), pod("b", podIP="10.1.0.2")]
    there[0]["spec"]["ports"][0]["targetPort"] = "http"
    there[1]["spec"]["containers"][0]["ports"] = [
        {"name": "metrics", "containerPort": 9},
        {"name": "http", "containerPort": 8443},
    ]
    assert model(service(), NEAR) == "http://10.1.0.2:8443"


def test_an_external_name_is_the_address(there: list[Object]) -> None:
    there.append(a_service("m-predictor", ""))
    there[0]["spec"] |= {"type": "ExternalName", "externalName": "models.example.org"}
    assert model(service(), NEAR) == "http://models.example.org:80"


def test_a_service_that_is_not_there_is_the_stages_failure(there: list[Object]) -> None:
    with pytest.raises(StageFailure, match="service/m-predictor does not exist"):
        model(service(), NEAR)


def test_a_far_cluster_answers_where_it_publishes(there: list[Object], listener: int, closed_port: int) -> None:
    made = service()
    made["status"] |= {
        "url": f"http://127.0.0.1:{closed_port}",
        "address": {"url": f"http://127.0.0.1:{listener}/"},
    }
    assert model(made, FAR) == f"http://127.0.0.1:{listener}"


def test_a_pod_uses_the_address_in_the_cluster_before_the_one_for_clients_outside(
    there: list[Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = service()
    made["status"] |= {"url": "https://m.apps.test", "address": {"url": "http://m-predictor.ns.svc.cluster.local"}}
    there.append(a_service("m-predictor", "10.0.0.7"))
    tried: list[str] = []
    answering = {"http://m-predictor.ns.svc.cluster.local"}

    def probe(url: str) -> str:
        tried.append(url)
        return "" if url in answering else "is closed"

    monkeypatch.setattr(addresses, "_resolves", lambda host: host == "m-predictor.ns.svc")
    monkeypatch.setattr(addresses, "probe", probe)
    assert model(made, INSIDE) == "http://m-predictor.ns.svc.cluster.local"
    answering.clear()
    tried.clear()
    with pytest.raises(EnvironmentUnusable, match="is not reachable from here") as failed:
        model(made, INSIDE)
    assert tried == [
        "http://m-predictor.ns.svc.cluster.local", "http://m-predictor.ns.svc:80", "https://m.apps.test",
    ]  # fmt: skip
    assert failed.value.hint == "kubectl -n ns get networkpolicies"


def test_a_pod_without_the_clusters_dns_uses_the_cluster_ip(
    there: list[Object], monkeypatch: pytest.MonkeyPatch
) -> None:
    route = {"kind": "Route", "metadata": {"name": "minio"}, "spec": {"host": "minio.apps.test"}}
    there += [a_service("minio", "10.0.0.9", port=9000), route]
    monkeypatch.setattr(addresses, "probe", lambda _url: "")
    monkeypatch.setattr(addresses, "_resolves", lambda _host: True)
    assert minio(INSIDE) == "http://minio.ns.svc:9000"
    monkeypatch.setattr(addresses, "_resolves", lambda _host: False)
    assert minio(INSIDE) == "http://10.0.0.9:9000"


def test_a_far_cluster_that_does_not_answer_names_what_was_tried(there: list[Object], closed_port: int) -> None:
    made = service()
    made["status"]["url"] = f"http://127.0.0.1:{closed_port}"
    there.append(a_service("m-predictor", "127.0.0.1", port=closed_port))
    with pytest.raises(EnvironmentUnusable, match=rf"tried: http://127\.0\.0\.1:{closed_port},") as failed:
        model(made, FAR)
    assert failed.value.message.splitlines()[1:] == [
        "  Route: none leads to service/m-predictor",
        "  Ingress: none leads to service/m-predictor",
        "  HTTPRoute: none leads to service/m-predictor",
        f"  status.url: http://127.0.0.1:{closed_port} accepts no connection: Connection refused",
        "  status.address: inferenceservice publishes none",
        f"  service/m-predictor: http://127.0.0.1:{closed_port} accepts no connection: Connection refused",
        f"  port-forward: port-forward://m-predictor.ns:{closed_port} leads nowhere: not allowed",
    ]
    assert failed.value.hint.endswith("-n ns auth can-i create pods/portforward")


def test_a_far_model_that_is_not_ready_has_no_address(there: list[Object], closed_port: int) -> None:
    made = service()
    made["status"]["url"] = "http://m-ns.example.com"
    made["status"]["conditions"] = [condition("Ready", "False", reason="Failed", message="no GPU")]
    there.append(a_service("m-predictor", "127.0.0.1", port=closed_port))
    with pytest.raises(StageFailure, match=rf"is not Ready \(Failed: no GPU\).*tried: http://127.0.0.1:{closed_port},"):
        model(made, FAR)


def test_the_placeholder_host_is_never_connected_to(there: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def probe(url: str) -> str:
        asked.append(url)
        return ""

    monkeypatch.setattr(addresses, "probe", probe)
    made = service()
    made["status"] |= {"url": "http://m-ns.example.com", "address": {"url": "http://m.ns.svc.cluster.local"}}
    assert model(made, FAR) == "http://m.ns.svc.cluster.local"
    assert asked == ["http://m.ns.svc.cluster.local"]


def test_minio_is_its_service_or_its_route(
    there: list[Object], closed_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert minio(NEAR) == ""
    there.append(a_service("minio", "127.0.0.1", port=9000))
    assert minio(NEAR) == "http://127.0.0.1:9000"
    there[0]["spec"]["ports"] = [{"port": closed_port}]
    assert minio(FAR) == ""
    there.append(admitted_route("minio", "minio.example"))
    monkeypatch.setattr(addresses, "probe", lambda _url: "")
    assert minio(FAR) == "https://minio.example"
    assert minio(NEAR) == f"http://127.0.0.1:{closed_port}"


def test_the_route_of_minios_console_is_not_its_api(there: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    there += [a_service("minio", "10.0.0.9", port=9000), admitted_route("minio", "api.example")]
    there[0]["spec"]["ports"][0] |= {"name": "api", "targetPort": "s3"}
    there[1]["metadata"]["name"] = "a-console"
    there[1]["spec"]["port"] = {"targetPort": "console"}
    monkeypatch.setattr(addresses, "probe", lambda _url: "")
    assert minio(FAR) == "http://10.0.0.9:9000"
    for port in ("api", "s3", 9000):
        there[1]["spec"]["port"]["targetPort"] = port
        assert minio(FAR) == "https://api.example"


def test_a_published_http_address_is_tried_with_https_where_nothing_listens() -> None:
    """KServe writes http into the status where its own configuration has no TLS; its gateway may have TLS alone."""
    made = service()
    made["status"]["url"] = "http://m.apps.test"
    candidates = find_candidates(Backend("ns", ("m-predictor",)), Publishers(), made)
    chosen = choose_address(candidates, lambda url: "" if url.startswith("https") else "accepts no connection")
    assert isinstance(chosen, ChosenAddress)
    assert (chosen.way, chosen.url) == (AccessWay.STATUS_URL, "https://m.apps.test")
    assert "status.url: http://m.apps.test accepts no connection" in chosen.passed_over
    for inside in ("http://m.ns.svc.cluster.local", "http://m.apps.test:8080"):
        made["status"]["url"] = inside
        listed = find_candidates(Backend("ns", ("m",)), Publishers(), made)
        assert not any(one.url.startswith("https") for one in listed)

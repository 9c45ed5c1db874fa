"""A model's pod with an authentication proxy as a sidecar: what is read of the pod is about the serving container."""

from __future__ import annotations

import copy
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.resilience.site import has_restarted
from pytest_vllm_stage.stage import drift, objects, revision
from pytest_vllm_stage.stage.deploy import addresses
from pytest_vllm_stage.stage.observe import health, rollout, wait
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.pods import count_restarts, find_serving_port
from pytest_vllm_stage.stage.reach.forward import find_pod_port
from pytest_vllm_stage.stage.reach.published import Backend
from tests.unit.made_auth_proxy import PORT, PROXY, add_auth_proxy
from tests.unit.made_objects import event
from tests.unit.recorded_stage import MODEL, RecordedStage

Object = dict[str, Any]


@pytest.fixture(params=[True, False], ids=["first", "last"])
def is_first(request: pytest.FixtureRequest) -> bool:
    """Where the sidecar is among the containers."""
    return bool(request.param)


@pytest.fixture
def stage(is_first: bool) -> RecordedStage:
    made = RecordedStage.load()
    add_auth_proxy(made, first=is_first)
    return made


@pytest.fixture
def pod(stage: RecordedStage) -> Object:
    return stage.pod_of(f"{MODEL}-predictor")


def reader_of(stage: RecordedStage) -> StageReader:
    def listed(kind: str, labels: Object | None = None) -> list[Object]:
        wanted = (labels or {}).items()
        return [one for one in stage.listed(kind) if wanted <= (one["metadata"].get("labels") or {}).items()]

    return cast(StageReader, SimpleNamespace(listed=listed, everywhere=stage.listed))


def status_of(pod: Object, container: str) -> Object:
    (found,) = [one for one in pod["status"]["containerStatuses"] if one["name"] == container]
    return cast(Object, found)


def test_the_sidecar_is_not_reported_as_drift(stage: RecordedStage) -> None:
    assert stage.find_drift() == []


def test_image_and_arguments_are_the_engines(stage: RecordedStage, pod: Object) -> None:
    found = revision.serving(reader_of(stage), MODEL)
    assert found.image == status_of(pod, drift.SERVING_CONTAINER)["imageID"]
    assert "--served-model-name" in found.arguments
    assert "--secure-listen-address" not in found.arguments


def test_the_running_container_is_the_declared_one(stage: RecordedStage, pod: Object) -> None:
    service, deployment = stage.get("InferenceService", MODEL), stage.get("Deployment", f"{MODEL}-predictor")
    runtime = stage.get("ServingRuntime", drift.runtime_name(service))
    assert drift.compare_serving(drift.demand(service, runtime), pod["spec"]) == []
    assert rollout.stale_reasons(service, runtime, deployment, [pod]) == []


def test_metrics_are_read_at_the_engines_port(pod: Object) -> None:
    assert find_serving_port(pod) == 8080
    (serving,) = [one for one in pod["spec"]["containers"] if one["name"] == drift.SERVING_CONTAINER]
    serving["ports"][0]["containerPort"] = 9000
    assert find_serving_port(pod) == 9000
    del serving["ports"]
    assert find_serving_port(pod) == 8080


def test_the_services_port_is_the_sidecars(pod: Object) -> None:
    assert find_pod_port(pod, "https") == PORT


def test_restarts_of_the_sidecar_are_not_the_engines(pod: Object) -> None:
    before = copy.deepcopy(pod)
    status_of(pod, PROXY)["restartCount"] = 3
    assert not has_restarted(pod, before)
    (line,) = health.check_pods([pod])
    assert line.startswith(f"container {PROXY} of pod {objects.name_of(pod)} was restarted 3 times")
    status_of(pod, drift.SERVING_CONTAINER)["restartCount"] += 1
    assert has_restarted(pod, before)
    assert count_restarts(pod) == count_restarts(before) + 1


def test_a_probe_of_the_sidecar_is_not_the_engines(pod: Object) -> None:
    failed = event(pod, "Unhealthy", "Liveness probe failed: Get https://10.1.0.2:8643/healthz: refused")
    killed = event(pod, "Killing", f"Container {PROXY} failed liveness probe, will be restarted", kind="Normal")
    for one in (failed, killed):
        one["involvedObject"]["fieldPath"] = f"spec.containers{{{PROXY}}}"
    for name in (PROXY, drift.SERVING_CONTAINER):
        status_of(pod, name)["restartCount"] = 1
    lines = {line.split()[1]: line for line in health.check_pods([pod], [failed, killed])}
    assert f"liveness probe GET :8643/healthz restarts container {PROXY}" in lines[PROXY]
    assert "probe" not in lines[drift.SERVING_CONTAINER]


def test_the_log_of_a_pod_that_is_not_ready_is_the_engines(pod: Object) -> None:
    for one in pod["status"]["containerStatuses"]:
        one |= {"ready": False, "state": {"running": {}}}
    assert wait._find_unready_container(pod) == drift.SERVING_CONTAINER
    status_of(pod, drift.SERVING_CONTAINER)["ready"] = True
    assert wait._find_unready_container(pod) == PROXY


NEAR = ClusterFacts("local", "kc", "ctx", "v1", "kubectl", reaches_services=True, owned=True)
FAR = ClusterFacts("kubeconfig", "kc", "ctx", "v1", "kubectl", reaches_services=False, owned=False)
INSIDE = ClusterFacts("in-cluster", "", "", "v1", "kubectl", reaches_services=False, owned=False)
NAME = f"{MODEL}-predictor.ns.svc"
NO_KUBE: Any = None


@pytest.fixture
def live(stage: RecordedStage, monkeypatch: pytest.MonkeyPatch) -> RecordedStage:
    """The stage as the cluster's objects; its Services' names resolve."""

    def get(_kube: object, kind: str, name: str, _namespace: str) -> Object | None:
        return next((one for one in stage.listed(kind) if objects.name_of(one) == name), None)

    def listed(_kube: object, kind: str, _namespace: str, labels: Object | None = None) -> list[Object]:
        return reader_of(stage).listed(kind, labels)

    monkeypatch.setattr(objects, "get", get)
    monkeypatch.setattr(objects, "listed", listed)
    monkeypatch.setattr(addresses, "_resolves", lambda host: host == NAME)
    return stage


@pytest.mark.parametrize("headless", [True, False])
def test_pods_of_the_cluster_speak_tls_to_the_services_name(live: RecordedStage, headless: bool) -> None:
    """Of a headless Service, as Open Data Hub makes them, at the port's number in the pod: names have none."""
    spec, service = live.get("Service", f"{MODEL}-predictor")["spec"], live.get("InferenceService", MODEL)
    spec["clusterIP"] = "None" if headless else spec["clusterIP"]
    service["status"].pop("address", None)
    wanted = f"https://{NAME}:{PORT}"
    assert addresses.find_address_inside(NO_KUBE, FAR, "ns", service, "http://127.0.0.1:5") == wanted
    assert addresses._find_service_url(NO_KUBE, INSIDE, "ns", f"{MODEL}-predictor", "80") == wanted


def test_a_certificate_for_a_name_is_not_asked_for_at_a_pods_address(live: RecordedStage) -> None:
    """From outside the cluster the port-forward is left, which verifies the certificate for the Service's name."""
    live.get("Service", f"{MODEL}-predictor")["spec"]["clusterIP"] = "None"
    backend = Backend("ns", (f"{MODEL}-predictor",))
    found = addresses._find_service(NO_KUBE, FAR, backend, "80")
    assert found.url == ""
    assert (
        found.problem
        == f"service/{MODEL}-predictor is headless and speaks TLS for {NAME}, a name without an address here"
    )
    assert addresses._find_forward(NO_KUBE, backend, "80").url == f"port-forward+tls://{MODEL}-predictor.ns:{PORT}"

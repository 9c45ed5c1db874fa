"""OpenShift AI's Model Registry, found by its custom resource, and the errors that say which one is meant."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.stage.deploy import addresses
from pytest_vllm_stage.stage.reach import registries
from pytest_vllm_stage.stage.reach.address import AccessWay, ChosenAddress, NoAddress
from tests.unit.made_api import KINDS, KSERVE, ApiServer, served, status
from tests.unit.made_objects import admitted_route, condition

Object = dict[str, Any]
GROUP = "modelregistry.opendatahub.io"
PLACE = "rhoai-model-registries"
ROUTE = ("route.openshift.io", "v1", "Route", "routes", True)
LISTING = f"/apis/{GROUP}/v1beta1"


def a_registry(name: str = "main", *hosts: str, available: str = "True") -> Object:
    state = {"conditions": [condition("Available", available)], "hosts": list(hosts)}
    return {"kind": "ModelRegistry", "metadata": {"name": name, "namespace": PLACE}, "status": state}


def its_service(port: Object | None = None, annotations: Object | None = None) -> Object:
    spec = {"clusterIP": "10.0.0.8", "ports": [port or {"port": 8443, "name": "https-api"}]}
    return {"kind": "Service", "metadata": {"name": "main", "annotations": annotations}, "spec": spec}


class Registries(ApiServer):
    """Lists registries of all namespaces as well."""

    def answer(self, method: str, target: str, accept: str, body: Object | None) -> tuple[int, Any]:
        if target == f"{LISTING}/modelregistries" and f"GET {target}" not in self.answers:
            items = [item for item in self.objects.values() if item["kind"] == "ModelRegistry"]
            return 200, {"kind": "List", "items": items}
        return super().answer(method, target, accept, body)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    kinds = [*KINDS, *KSERVE, ROUTE, (GROUP, "v1beta1", "ModelRegistry", "modelregistries", True)]
    with served(Registries(kinds=kinds)) as server:
        yield server


def find(api: ApiServer, folder: Path) -> ChosenAddress | NoAddress:
    facts = dataclasses.replace(api.facts(folder), kind="kubeconfig", reaches_services=False)
    with client.connection(facts.kubeconfig, facts.context) as kube:
        return addresses.find_registry_address(kube, facts, "ns")


@pytest.fixture(autouse=True)
def everything_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(addresses, "probe", lambda _url: "")


def forbid(api: ApiServer, *namespaces: str) -> None:
    paths = [f"{LISTING}/modelregistries", *(f"{LISTING}/namespaces/{one}/modelregistries" for one in namespaces)]
    for path in paths:
        api.answers[f"GET {path}"] = (403, status(403, 'modelregistries is forbidden: User "u" cannot list resource'))


def test_the_route_of_its_service_leads_to_the_registry(api: ApiServer, tmp_path: Path) -> None:
    api.add(a_registry(), PLACE)
    api.add(its_service(), PLACE)
    api.add(admitted_route("main", "main-rest.apps.test", port={"targetPort": "https-api"}), PLACE)
    found = find(api, tmp_path)
    assert (found.url, isinstance(found, ChosenAddress) and found.way) == (
        "https://main-rest.apps.test", AccessWay.ROUTE,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("service", "hosts", "url"),
    [
        (
            its_service(annotations={registries.EXTERNAL_ADDRESS: "m-rest.apps.test:443"}),
            (),
            "https://m-rest.apps.test",
        ),
        (
            its_service(),
            ("main", "main.rhoai.svc.cluster.local", "main-grpc.apps.test", "main-rest.apps.test"),
            "https://main-rest.apps.test",
        ),
        (None, ("main-rest.apps.test",), "https://main-rest.apps.test"),
        (its_service(), (), "https://10.0.0.8:8443"),
        (its_service({"port": 8080, "name": "http-api"}), (), "http://10.0.0.8:8080"),
    ],
    ids=["annotation", "status", "no service", "service with TLS", "plain service"],
)
def test_without_a_route_its_service_and_status_name_the_host(
    api: ApiServer, tmp_path: Path, service: Object | None, hosts: tuple[str, ...], url: str
) -> None:
    api.add(a_registry("main", *hosts), PLACE)
    if service:
        api.add(service, PLACE)
    assert find(api, tmp_path).url == url


def test_the_stages_own_service_comes_first(api: ApiServer, tmp_path: Path) -> None:
    api.add(a_registry("main", "main-rest.apps.test"), PLACE)
    own = its_service({"port": 8080})
    own["metadata"]["name"] = "model-registry"
    api.add(own)
    assert find(api, tmp_path).url == "http://10.0.0.8:8080"


def test_several_registries_are_named_and_one_that_is_available_is_preferred(api: ApiServer, tmp_path: Path) -> None:
    api.add(a_registry("main", "main-rest.apps.test"), PLACE)
    api.add(a_registry("old", "old-rest.apps.test", available="False"), PLACE)
    assert find(api, tmp_path).url == "https://main-rest.apps.test"
    api.add(a_registry("other"), PLACE)
    with pytest.raises(ConfigError) as failed:
        find(api, tmp_path)
    assert failed.value.message == (
        f"the cluster has 2 Model Registries: {PLACE}/main (https://main-rest.apps.test), {PLACE}/other"
    )
    assert "--stage-registry-url" in failed.value.hint


def test_the_platforms_namespaces_are_read_where_all_may_not_be(api: ApiServer, tmp_path: Path) -> None:
    api.add(a_registry("main", "main-rest.apps.test"), PLACE)
    forbid(api, "ns")
    assert find(api, tmp_path).url == "https://main-rest.apps.test"
    forbid(api, "ns", *registries.NAMESPACES)
    found = find(api, tmp_path)
    assert isinstance(found, NoAddress)
    assert f"list modelregistries.{GROUP} in all namespaces is missing" in found.passed_over[-1]
    assert f"in namespace {PLACE} is missing" in found.passed_over[-1]


def test_a_cluster_without_the_kind_has_no_registry(api: ApiServer, tmp_path: Path) -> None:
    api.kinds.pop()
    found = find(api, tmp_path)
    assert isinstance(found, NoAddress)
    assert found.passed_over == (
        "service/model-registry does not exist in namespace ns",
        f"ModelRegistry: the cluster serves no ModelRegistry.{GROUP}",
    )

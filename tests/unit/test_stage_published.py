"""The addresses that Routes, Ingresses, HTTPRoutes and InferenceServices publish, and the choice between them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.stage.reach import read
from pytest_vllm_stage.stage.reach.address import AccessWay, Candidate, ChosenAddress, NoAddress, choose_address
from pytest_vllm_stage.stage.reach.published import Backend, Listing, Publishers, find_candidates, find_parents
from tests.unit.made_api import KINDS, KSERVE, ApiServer, served, status
from tests.unit.made_objects import admitted_route, condition

Object = dict[str, Any]
BACKEND = Backend("ns", ("m-predictor", "m"))
PLACE = ("gateways", "public")


def an_ingress(host: str = "m.test", *, address: str = "10.9.9.9", **more: Any) -> Object:
    backend = {"service": {"name": "m-predictor", "port": {"number": 80}}}
    rule: Object = {"http": {"paths": [{"path": "/", "backend": backend}]}} | ({"host": host} if host else {})
    spec = {"ingressClassName": "nginx", "rules": [rule], **more}
    entries = [{"ip": address}] if address else []
    return {
        "kind": "Ingress",
        "metadata": {"name": "m"},
        "spec": spec,
        "status": {"loadBalancer": {"ingress": entries}},
    }


def an_http_route(*hosts: str, accepted: str = "True", **parent: Any) -> Object:
    reference = {"name": PLACE[1], "namespace": PLACE[0], **parent}
    rule: Object = {"backendRefs": [{"name": "m-predictor", "port": 80}]}
    said = condition("Accepted", accepted, reason="NotAllowedByListeners", message="wrong namespace")
    return {
        "kind": "HTTPRoute",
        "metadata": {"name": "m"},
        "spec": {"hostnames": list(hosts), "parentRefs": [reference], "rules": [rule]},
        "status": {"parents": [{"parentRef": reference, "conditions": [said]}]},
    }


def a_gateway(*listeners: Object, address: str = "10.8.8.8") -> Object:
    default = {"name": "http", "protocol": "HTTP", "port": 80}
    addresses = [{"value": address}] if address else []
    return {"spec": {"listeners": list(listeners) or [default]}, "status": {"addresses": addresses}}


def candidates(way: AccessWay, **published: Any) -> list[Candidate]:
    made: dict[str, Any] = {
        key: Listing(tuple(value)) if isinstance(value, list) else value for key, value in published.items()
    }
    return [candidate for candidate in find_candidates(BACKEND, Publishers(**made)) if candidate.way is way]


def only(way: AccessWay, **published: Any) -> Candidate:
    (found,) = candidates(way, **published)
    return found


@pytest.mark.parametrize(
    ("spec", "url"),
    [
        ({}, "https://m.apps.test"),
        ({"tls": None}, "http://m.apps.test"),
        ({"tls": {"termination": "passthrough"}}, "https://m.apps.test"),
        ({"path": "/models/m"}, "https://m.apps.test/models/m"),
        ({"path": "/v1"}, "https://m.apps.test"),
        ({"to": {"name": "m"}}, "https://m.apps.test"),
        ({"to": {"name": "other"}, "alternateBackends": [{"name": "m"}]}, "https://m.apps.test"),
    ],
)
def test_an_admitted_route_gives_its_host_scheme_and_path(spec: Object, url: str) -> None:
    found = only(AccessWay.ROUTE, routes=[admitted_route("m-predictor", "m.apps.test", **spec)])
    assert (found.url, found.problem, found.source) == (url, "", "route/m-predictor")


def test_the_host_of_a_route_is_the_one_that_its_router_gave_it() -> None:
    route = admitted_route("m", "m-ns.apps.test")
    del route["spec"]["host"]
    assert only(AccessWay.ROUTE, routes=[route]).url == "https://m-ns.apps.test"


def test_a_route_that_is_not_admitted_has_the_routers_reason() -> None:
    route = admitted_route("m", "m.test")
    route["status"]["ingress"][0]["conditions"] = [
        condition("Admitted", "False", reason="HostAlreadyClaimed", message="route other has it")
    ]
    found = only(AccessWay.ROUTE, routes=[route])
    assert (found.url, found.problem) == (
        "", "not admitted by a router (HostAlreadyClaimed: route other has it)",
    )  # fmt: skip
    route["status"] = {}
    assert only(AccessWay.ROUTE, routes=[route]).problem == "not admitted by a router (no router has reported on it)"


def test_a_route_with_tls_comes_first_and_one_that_cannot_be_used_last() -> None:
    routes = [admitted_route("m", host, **spec) for host, spec in (("a.test", {"tls": None}), ("b.test", {}))]
    routes.insert(0, admitted_route("m", "c.test") | {"status": {}})
    assert [one.url for one in candidates(AccessWay.ROUTE, routes=routes)] == ["https://b.test", "http://a.test", ""]


def test_an_object_of_another_service_is_not_the_models() -> None:
    other = admitted_route("m-metrics", "metrics.test")
    assert only(AccessWay.ROUTE, routes=[other]).problem == "none leads to service/m-predictor"
    assert only(AccessWay.INGRESS).problem == "none leads to service/m-predictor"
    assert only(AccessWay.HTTP_ROUTE).problem == "none leads to service/m-predictor"


@pytest.mark.parametrize(
    ("spec", "host", "url"),
    [
        ({}, "m.test", "http://m.test"),
        ({"tls": [{"hosts": ["m.test"]}]}, "m.test", "https://m.test"),
        ({"tls": [{"hosts": ["*.test"]}]}, "m.test", "https://m.test"),
        ({"tls": [{"secretName": "s"}]}, "m.test", "https://m.test"),
        ({"tls": [{"hosts": ["other.test"]}]}, "m.test", "http://m.test"),
        ({}, "", "http://10.9.9.9"),
    ],
)
def test_an_ingress_gives_the_host_of_its_rule(spec: Object, host: str, url: str) -> None:
    assert only(AccessWay.INGRESS, ingresses=[an_ingress(host, **spec)]).url == url


def test_the_path_of_an_ingress_is_the_servers_prefix_without_its_expression() -> None:
    ingress = an_ingress()
    ingress["spec"]["rules"][0]["http"]["paths"][0]["path"] = "/models/m(/|$)(.*)"
    assert only(AccessWay.INGRESS, ingresses=[ingress]).url == "http://m.test/models/m"


def test_an_ingress_for_everything_else_gives_the_load_balancers_address() -> None:
    ingress = an_ingress(rules=[], defaultBackend={"service": {"name": "m", "port": {"name": "http"}}})
    ingress["status"]["loadBalancer"]["ingress"] = [{"hostname": "lb.test"}]
    assert only(AccessWay.INGRESS, ingresses=[ingress]).url == "http://lb.test"


@pytest.mark.parametrize(
    ("ingress", "problem"),
    [
        (an_ingress(address=""), "no controller of ingress class nginx gave it an address"),
        (an_ingress("m-ns.example.com"), "host m-ns.example.com is the placeholder of KServe's configuration"),
        (an_ingress("*.test"), "host *.test is a pattern"),
    ],
)
def test_an_ingress_that_cannot_be_used_has_a_reason(ingress: Object, problem: str) -> None:
    found = only(AccessWay.INGRESS, ingresses=[ingress])
    assert (found.url, found.problem) == ("", problem)


HTTPS = {"name": "tls", "protocol": "HTTPS", "port": 8443}


@pytest.mark.parametrize(
    ("gateway", "route", "url"),
    [
        (a_gateway(), an_http_route("m.test"), "http://m.test"),
        (a_gateway({"name": "http", "protocol": "HTTP", "port": 80}, HTTPS), an_http_route("m.test"), "https://m.test:8443"),
        (
            a_gateway({"name": "http", "protocol": "HTTP", "port": 80}, HTTPS),
            an_http_route("m.test", sectionName="http"),
            "http://m.test",
        ),
        (a_gateway(HTTPS | {"hostname": "*.apps.test"}), an_http_route("a.test", "m.apps.test"), "https://m.apps.test:8443"),
        (a_gateway(HTTPS | {"hostname": "m.apps.test"}), an_http_route("*.apps.test"), "https://m.apps.test:8443"),
        (a_gateway(), an_http_route(), "http://10.8.8.8"),
        (a_gateway(address="fd00::8"), an_http_route(), "http://[fd00::8]"),
    ],
)  # fmt: skip
def test_an_http_route_gives_host_and_port_of_its_gateways_listener(gateway: Object, route: Object, url: str) -> None:
    assert only(AccessWay.HTTP_ROUTE, http_routes=[route], gateways={PLACE: gateway}).url == url


@pytest.mark.parametrize(
    ("matches", "url"),
    [
        ([{"path": {"type": "PathPrefix", "value": "/m"}}], "http://m.test/m"),
        ([{"path": {"type": "RegularExpression", "value": "^/.*$"}}], "http://m.test"),
        ([{"headers": []}], "http://m.test"),
    ],
)
def test_the_prefix_of_an_http_route_is_the_servers(matches: list[Object], url: str) -> None:
    route = an_http_route("m.test")
    route["spec"]["rules"][0]["matches"] = matches
    assert only(AccessWay.HTTP_ROUTE, http_routes=[route], gateways={PLACE: a_gateway()}).url == url


@pytest.mark.parametrize(
    ("route", "gateway", "problem"),
    [
        (
            an_http_route("m.test", accepted="False"),
            a_gateway(),
            "not accepted by a gateway (NotAllowedByListeners: wrong namespace)",
        ),
        (
            an_http_route("m.test") | {"status": {}},
            a_gateway(),
            "not accepted by a gateway (no controller has reported on it)",
        ),
        (
            an_http_route("m.test"),
            "it does not exist",
            "port and TLS of gateway gateways/public are unknown: it does not exist",
        ),
        (an_http_route(), a_gateway(address=""), "it names no host, and its gateway has no address"),
        (
            an_http_route("m.test"),
            a_gateway(HTTPS | {"hostname": "*.other.test"}),
            "gateway gateways/public has no HTTP listener for its hosts",
        ),
    ],
)  # fmt: skip
def test_an_http_route_that_cannot_be_used_has_a_reason(route: Object, gateway: Object | str, problem: str) -> None:
    found = only(AccessWay.HTTP_ROUTE, http_routes=[route], gateways={PLACE: gateway})
    assert (found.url, found.problem) == ("", problem)


def test_only_gateways_of_the_services_own_routes_are_read() -> None:
    other = an_http_route("o.test", name="other")
    other["spec"]["rules"][0]["backendRefs"][0]["name"] = "other"
    assert find_parents([an_http_route("m.test"), other], BACKEND) == {PLACE}


def test_a_placeholder_in_the_status_is_not_an_address() -> None:
    service = {"status": {"url": "http://m-ns.example.com", "address": {"url": "http://m.ns.svc.cluster.local/"}}}
    found = find_candidates(BACKEND, Publishers(), service)[3:]
    assert [(one.way, one.url, one.problem) for one in found] == [
        (AccessWay.STATUS_URL, "", "host m-ns.example.com is the placeholder of KServe's configuration"),
        (AccessWay.STATUS_ADDRESS, "http://m.ns.svc.cluster.local", ""),
    ]
    assert find_candidates(BACKEND, Publishers(), {})[3].problem == "inferenceservice publishes none"


def test_the_first_address_that_answers_is_used_and_each_better_way_has_a_reason() -> None:
    offered = [
        Candidate(AccessWay.ROUTE, problem="none leads to service/m"),
        Candidate(AccessWay.INGRESS, "ingress/m", "http://a.test"),
        Candidate(AccessWay.STATUS_URL, "", "http://a.test"),
        Candidate(AccessWay.STATUS_ADDRESS, "", "http://b.test"),
        Candidate(AccessWay.SERVICE, "service/m", "http://c.test"),
    ]
    probed: list[str] = []

    def probe(url: str) -> str:
        probed.append(url)
        return "" if url == "http://b.test" else "is closed"

    assert choose_address(offered, probe) == ChosenAddress(
        "http://b.test",
        AccessWay.STATUS_ADDRESS,
        "status.address accepts connections",
        ("Route: none leads to service/m", "ingress/m: http://a.test is closed", "status.url: http://a.test is closed"),
    )
    assert probed == ["http://a.test", "http://b.test"]
    nothing = choose_address(offered[:2], probe)
    assert isinstance(nothing, NoAddress)
    assert nothing.tried == ("http://a.test",)
    assert nothing.to_record() == {
        "url": "", "way": "", "reason": "no way leads there",
        "passed_over": ["Route: none leads to service/m", "ingress/m: http://a.test is closed"],
    }  # fmt: skip


GATEWAY_API = [
    ("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes", True),
    ("gateway.networking.k8s.io", "v1", "Gateway", "gateways", True),
]


@pytest.fixture
def api() -> Iterator[ApiServer]:
    ingress = ("networking.k8s.io", "v1", "Ingress", "ingresses", True)
    with served(ApiServer(kinds=[*KINDS, *KSERVE, *GATEWAY_API, ingress])) as server:
        yield server


def read_from(api: ApiServer, folder: Path) -> Publishers:
    facts = api.facts(folder)
    with client.connection(facts.kubeconfig, facts.context) as kube:
        return read.read_publishers(kube, BACKEND)


def test_the_objects_of_a_cluster_are_read_with_the_gateways_that_they_name(api: ApiServer, tmp_path: Path) -> None:
    api.add(an_ingress())
    api.add(an_http_route("m.test"))
    api.add({"kind": "Gateway", "metadata": {"name": PLACE[1]}, **a_gateway()}, PLACE[0])
    found = read_from(api, tmp_path)
    usable = [candidate.url for candidate in find_candidates(BACKEND, found) if candidate.url]
    assert usable == ["http://m.test", "http://m.test"]
    assert dataclasses.replace(found.routes) == Listing(unread="the cluster serves no Route.route.openshift.io")


def test_a_kind_that_may_not_be_read_names_the_missing_right(api: ApiServer, tmp_path: Path) -> None:
    def forbid(path: str, resource: str) -> None:
        text = f'{resource} is forbidden: User "u" cannot list resource'
        api.answers[f"GET /apis/{path}"] = (403, status(403, text))

    api.add(an_http_route("m.test"))
    forbid("networking.k8s.io/v1/namespaces/ns/ingresses", "ingresses.networking.k8s.io")
    forbid("gateway.networking.k8s.io/v1/namespaces/gateways/gateways/public", "gateways")
    found = find_candidates(BACKEND, read_from(api, tmp_path))
    problems = {candidate.way: candidate.problem for candidate in found}
    assert problems[AccessWay.INGRESS] == (
        "not readable: the right to list ingresses.networking.k8s.io in namespace ns is missing"
    )
    assert problems[AccessWay.HTTP_ROUTE].endswith(
        "not readable: the right to get gateways.gateway.networking.k8s.io in namespace gateways is missing"
    )

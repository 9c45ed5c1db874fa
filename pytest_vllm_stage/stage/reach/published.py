"""The addresses that objects of the cluster publish for a Service: Route, Ingress, HTTPRoute, InferenceService.

Everything here is a pure function over objects as the API server gives them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.reach.address import AccessWay, Candidate

#: ``ingressDomain`` of KServe's configuration as it is delivered; nothing of the stage can ever answer there.
PLACEHOLDER_DOMAIN = "example.com"
_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True)
class Listing:
    """The objects of a kind, or why they are not known.

    Attributes:
        items: The objects.
        unread: Why they could not be read; empty where they could.
    """

    items: tuple[Object, ...] = ()
    unread: str = ""


@dataclass(frozen=True)
class Publishers:
    """The objects around a Service that may publish an address for it.

    Attributes:
        routes: OpenShift Routes of its namespace.
        ingresses: Ingresses of its namespace.
        http_routes: Gateway API HTTPRoutes of its namespace.
        gateways: Namespace and name to a Gateway, or why it is not known.
    """

    routes: Listing = Listing()
    ingresses: Listing = Listing()
    http_routes: Listing = Listing()
    gateways: Mapping[tuple[str, str], Object | str] = field(default_factory=dict)


@dataclass(frozen=True)
class Backend:
    """The Service that an address must lead to.

    Attributes:
        namespace: Its namespace.
        names: Its name first, then other Services that lead to the same server.
        ports: The port's number, name and target; empty for any port.
    """

    namespace: str
    names: tuple[str, ...]
    ports: frozenset[str] = frozenset()

    def is_named(self, name: object, port: object = None) -> bool:
        """Whether a reference to a Service and one of its ports leads to it."""
        return name in self.names and (port is None or not self.ports or str(port) in self.ports)


def find_candidates(backend: Backend, publishers: Publishers, service: Object | None = None) -> list[Candidate]:
    """Every published address of a Service, in the order of preference; one with a problem for a way that has none.

    Args:
        backend: The Service.
        publishers: The objects around it.
        service: The InferenceService that it belongs to; None for a server that has none.
    """
    found = [
        *_candidates(AccessWay.ROUTE, publishers.routes, backend, _find_route),
        *_candidates(AccessWay.INGRESS, publishers.ingresses, backend, _find_ingress),
        *_candidates(AccessWay.HTTP_ROUTE, publishers.http_routes, backend, _HttpRoutes(publishers.gateways).find),
    ]
    return found if service is None else [*found, *_find_status(service)]


def find_parents(http_routes: Sequence[Object], backend: Backend) -> set[tuple[str, str]]:
    """Namespace and name of each Gateway that an HTTPRoute of the Service names."""
    return {
        (str(parent.get("namespace") or backend.namespace), str(parent["name"]))
        for route in http_routes
        if _http_rules(route, backend)
        for parent in route["spec"].get("parentRefs") or []
        if parent.get("kind", "Gateway") == "Gateway"
    }


def is_placeholder(url: str) -> bool:
    """KServe publishes hosts below ``example.com`` until an administrator names a domain."""
    host = urlsplit(url).hostname or ""
    return host == PLACEHOLDER_DOMAIN or host.endswith(f".{PLACEHOLDER_DOMAIN}")


def _candidates(
    way: AccessWay, listing: Listing, backend: Backend, find: Callable[[Object, Backend], Iterator[Candidate]]
) -> list[Candidate]:
    """Those of one kind: usable ones first, TLS before plain HTTP."""
    if listing.unread:
        return [Candidate(way, problem=listing.unread)]
    found = [candidate for item in listing.items for candidate in find(item, backend)]
    if not found:
        return [Candidate(way, problem=f"none leads to service/{backend.names[0]}")]
    return sorted(found, key=lambda one: (bool(one.problem), not one.url.startswith("https"), one.source))


def _find_route(route: Object, backend: Backend) -> Iterator[Candidate]:
    spec = route["spec"]
    port = (spec.get("port") or {}).get("targetPort")
    services = [spec.get("to") or {}, *(spec.get("alternateBackends") or [])]
    if not any(one.get("kind", "Service") == "Service" and backend.is_named(one.get("name"), port) for one in services):
        return
    source = objects.reference(route)
    routers = (route.get("status") or {}).get("ingress") or []
    admitted = [router for router in routers if objects.is_true({"status": router}, "Admitted")]
    host = next((str(router.get("host") or spec.get("host") or "") for router in admitted), "")
    if not host:
        reasons = [_because(router, "Admitted") for router in routers]
        yield Candidate(AccessWay.ROUTE, source, problem=f"not admitted by a router ({_joined(reasons, 'no router')})")
    else:
        yield _at(
            AccessWay.ROUTE, source, "https" if spec.get("tls") else "http", host, path=str(spec.get("path") or "")
        )


def _find_ingress(ingress: Object, backend: Backend) -> Iterator[Candidate]:
    source, spec = objects.reference(ingress), ingress["spec"]
    places = list(_ingress_places(spec, backend))
    if not places:
        return
    entries = ((ingress.get("status") or {}).get("loadBalancer") or {}).get("ingress") or []
    addresses = [str(entry.get("hostname") or entry.get("ip")) for entry in entries]
    if not addresses:
        controller = spec.get("ingressClassName") or "the default class"
        yield Candidate(
            AccessWay.INGRESS, source, problem=f"no controller of ingress class {controller} gave it an address"
        )
        return
    secured = spec.get("tls") or []
    for host, path in places:
        tls = any(not entry.get("hosts") or _covers(entry["hosts"], host) for entry in secured)
        yield _at(AccessWay.INGRESS, source, "https" if tls else "http", host or addresses[0], path=path)


def _ingress_places(spec: Mapping[str, Any], backend: Backend) -> Iterator[tuple[str, str]]:
    """Host and path that lead to the Service; an empty host stands for any."""
    for rule in spec.get("rules") or []:
        for place in (rule.get("http") or {}).get("paths") or []:
            if _is_ingress_backend(place.get("backend"), backend):
                yield str(rule.get("host") or ""), str(place.get("path") or "")
    if _is_ingress_backend(spec.get("defaultBackend"), backend):
        yield "", ""


def _is_ingress_backend(found: Mapping[str, Any] | None, backend: Backend) -> bool:
    service = (found or {}).get("service") or {}
    port = service.get("port") or {}
    return backend.is_named(service.get("name"), port.get("number") or port.get("name"))


@dataclass(frozen=True)
class _HttpRoutes:
    """Reads HTTPRoutes with the Gateways that they name."""

    gateways: Mapping[tuple[str, str], Object | str]

    def find(self, route: Object, backend: Backend) -> Iterator[Candidate]:
        source, rules = objects.reference(route), _http_rules(route, backend)
        if not rules:
            return
        parents = (route.get("status") or {}).get("parents") or []
        accepted = [parent for parent in parents if objects.is_true({"status": parent}, "Accepted")]
        if not accepted:
            reasons = [_because(parent, "Accepted") for parent in parents]
            problem = f"not accepted by a gateway ({_joined(reasons, 'no controller')})"
            yield Candidate(AccessWay.HTTP_ROUTE, source, problem=problem)
        for parent in accepted:
            yield self._through(source, route, rules, parent["parentRef"], backend)

    def _through(
        self, source: str, route: Object, rules: Sequence[Object], parent: Mapping[str, Any], backend: Backend
    ) -> Candidate:
        place = (str(parent.get("namespace") or backend.namespace), str(parent["name"]))
        gateway = self.gateways.get(place, "it was not read")
        if isinstance(gateway, str):
            name = "/".join(place)
            return Candidate(
                AccessWay.HTTP_ROUTE, source, problem=f"port and TLS of gateway {name} are unknown: {gateway}"
            )
        hosts = [str(host) for host in route["spec"].get("hostnames") or []]
        for listener in sorted(gateway["spec"].get("listeners") or [], key=lambda one: one.get("protocol") != "HTTPS"):
            if listener.get("protocol") not in ("HTTP", "HTTPS") or not _is_section(listener, parent):
                continue
            host = _common_host(hosts, str(listener.get("hostname") or ""))
            if host is not None:
                addresses = (gateway.get("status") or {}).get("addresses") or []
                host = host or str(next((entry.get("value") for entry in addresses), ""))
                return _at(
                    AccessWay.HTTP_ROUTE,
                    source,
                    listener["protocol"].lower(),
                    host,
                    listener.get("port"),
                    _http_path(rules),
                )
        return Candidate(
            AccessWay.HTTP_ROUTE, source, problem=f"gateway {'/'.join(place)} has no HTTP listener for its hosts"
        )


def _http_rules(route: Object, backend: Backend) -> list[Object]:
    """The rules of an HTTPRoute that lead to the Service."""
    return [
        rule
        for rule in route["spec"].get("rules") or []
        for service in rule.get("backendRefs") or []
        if service.get("kind", "Service") == "Service"
        and service.get("namespace", backend.namespace) == backend.namespace
        and backend.is_named(service.get("name"), service.get("port") if backend.ports else None)
    ]


def _http_path(rules: Sequence[Object]) -> str:
    matches = [match for rule in rules for match in rule.get("matches") or [{}]]
    paths = [match.get("path") or {} for match in matches]
    prefixes = [str(path.get("value") or "/") for path in paths if path.get("type", "PathPrefix") == "PathPrefix"]
    # A rule without a prefix of its own (KServe writes the expression ^/.*$) is for every path.
    return min(prefixes, key=len) if len(prefixes) == len(paths) else ""


def _is_section(listener: Mapping[str, Any], parent: Mapping[str, Any]) -> bool:
    """Whether a reference to a Gateway covers one of its listeners."""
    pairs = (("name", "sectionName"), ("port", "port"))
    return all(parent.get(wanted) in (None, listener.get(key)) for key, wanted in pairs)


def _common_host(hosts: Sequence[str], listened: str) -> str | None:
    """The host for which route and listener agree; empty for any, None where they do not agree."""
    if not listened or not hosts:
        return next((host for host in hosts if "*" not in host), hosts[0] if hosts else listened)
    both = [host for host in hosts if _covers([listened], host)]
    return both[0] if both else listened if _covers(hosts, listened) else None


def _covers(patterns: Sequence[str], host: str) -> bool:
    """Whether a host is one of the patterns, of which ``*.domain`` stands for names below a domain."""
    return any(
        host == pattern or (pattern.startswith("*.") and host.endswith(pattern[1:]) and host != pattern[1:])
        for pattern in patterns
    )


def _find_status(service: Object) -> Iterator[Candidate]:
    status = service.get("status") or {}
    published = (
        (AccessWay.STATUS_URL, status.get("url")),
        (AccessWay.STATUS_ADDRESS, (status.get("address") or {}).get("url")),
    )
    for way, url in published:
        parts = urlsplit(str(url or ""))
        if not parts.hostname:
            yield Candidate(way, problem="inferenceservice publishes none")
        elif problem := _host_problem(parts.hostname):
            yield Candidate(way, problem=problem)
        else:
            yield Candidate(way, url=_without_api(str(url)))
            if parts.scheme == "http" and parts.port is None and not _is_inside(parts.hostname):
                # KServe writes http where its own configuration has no TLS, whatever the gateway before it does.
                yield Candidate(way, f"{way.value} with https", _without_api(f"https{str(url)[4:]}"))


def _is_inside(host: str) -> bool:
    """A host of the cluster's own network."""
    return host.endswith((".svc", ".svc.cluster.local"))


def _at(way: AccessWay, source: str, scheme: str, host: str, port: object = None, path: str = "") -> Candidate:
    """A candidate for a host, or its problem where the host is not the name of one server."""
    problem = _host_problem(host)
    if problem:
        return Candidate(way, source, problem=problem)
    shown = f"[{host}]" if ":" in host else host
    place = shown if port in (None, _DEFAULT_PORTS[scheme]) else f"{shown}:{port}"
    literal = re.split(r"[($^*]", path)[0]  # an expression, as controllers accept it: its literal beginning
    return Candidate(way, source, _without_api(f"{scheme}://{place}{literal}"))


def _host_problem(host: str) -> str:
    if not host:
        return "it names no host, and its gateway has no address"
    if "*" in host:
        return f"host {host} is a pattern"
    return f"host {host} is the placeholder of KServe's configuration" if is_placeholder(f"http://{host}") else ""


def _without_api(url: str) -> str:
    return url.rstrip("/").removesuffix("/v1").rstrip("/")


def _because(status: Object, kind: str) -> str:
    """Reason and message of a condition."""
    found = objects.condition({"status": status}, kind)
    return ": ".join(str(found[key]) for key in ("reason", "message") if found.get(key))


def _joined(reasons: Sequence[str], nothing: str) -> str:
    return "; ".join(dict.fromkeys(reason for reason in reasons if reason)) or f"{nothing} has reported on it"

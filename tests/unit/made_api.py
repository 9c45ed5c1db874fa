"""A small API server on loopback for tests of the client: discovery, objects in memory, and answers made to order."""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

from pytest_vllm_stage.cluster.facts import ClusterFacts

Object = dict[str, Any]
#: Group, version, kind, plural, in a namespace.
KINDS = [
    ("", "v1", "Namespace", "namespaces", False),
    ("", "v1", "ConfigMap", "configmaps", True),
    ("", "v1", "Endpoints", "endpoints", True),
    ("", "v1", "Event", "events", True),
    ("", "v1", "PersistentVolume", "persistentvolumes", False),
    ("", "v1", "Pod", "pods", True),
    ("", "v1", "Secret", "secrets", True),
    ("", "v1", "Service", "services", True),
    ("apps", "v1", "Deployment", "deployments", True),
    ("batch", "v1", "Job", "jobs", True),
    ("events.k8s.io", "v1", "Event", "events", True),
    ("serving.knative.dev", "v1", "Service", "services", True),
]
KSERVE = [
    ("serving.kserve.io", "v1beta1", "InferenceService", "inferenceservices", True),
    ("serving.kserve.io", "v1alpha1", "ServingRuntime", "servingruntimes", True),
]
ALL_VERBS = ["create", "delete", "get", "list", "patch", "watch"]


@dataclass
class ApiServer:
    """What it serves, and what it was asked.

    Attributes:
        kinds: What discovery answers.
        objects: Path to object.
        answers: Method and path to a status and a body that are answered instead.
        requests: Method and path with query, in order.
        headers: The headers of the last request.
        header_lines: The same, with each value of a repeated one.
        tokens: The bearer tokens that it accepts; None for any, or none.
        bodies: The bodies of all requests.
        aggregated: It knows aggregated discovery.
        drops: So many requests are answered by closing the connection.
        url: Its address.
    """

    kinds: list[tuple[str, str, str, str, bool]] = field(default_factory=lambda: [*KINDS, *KSERVE])
    objects: dict[str, Object] = field(default_factory=dict)
    answers: dict[str, tuple[int, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    header_lines: list[tuple[str, str]] = field(default_factory=list)
    tokens: set[str] | None = None
    bodies: list[Object] = field(default_factory=list)
    aggregated: bool = True
    drops: int = 0
    url: str = ""

    def add(self, item: Object, namespace: str = "ns") -> None:
        """Hold an object."""
        self.objects[self.path_of(item, namespace)] = item

    def path_of(self, item: Object, namespace: str = "ns") -> str:
        """Where an object is."""
        group, version, _, plural, namespaced = next(
            entry
            for entry in self.kinds
            if entry[2] == item["kind"] and item.get("apiVersion", entry[0]).startswith(entry[0])
        )
        place = f"/namespaces/{namespace}" if namespaced else ""
        return f"{_prefix(group, version)}{place}/{plural}/{item['metadata']['name']}"

    def asked(self, *methods: str) -> list[str]:
        """The requests of these methods, without their queries."""
        return [line.partition("?")[0] for line in self.requests if line.split()[0] in methods]

    def facts(self, folder: Path) -> ClusterFacts:
        """The facts of a cluster with this server, its kubeconfig in a folder."""
        path = folder / "kubeconfig"
        path.write_text(yaml.safe_dump(kubeconfig(self.url)))
        return ClusterFacts("local", str(path), "ctx", "v1.34.4", "kubectl", True, True)

    def answer(self, method: str, target: str, accept: str, body: Object | None) -> tuple[int, Any]:
        """Status and body for a request."""
        parts = urlsplit(target)
        scripted = self.answers.get(f"{method} {parts.path}")
        if scripted:
            return scripted
        if parts.path == "/version":
            return 200, {"gitVersion": "v1.34.4", "major": "1", "minor": "34"}
        if parts.path in ("/api", "/apis") or parts.path.count("/") in (2, 3):
            found = self._discovery(parts.path, "as=APIGroupDiscoveryList" in accept and self.aggregated)
            if found:
                return 200, found
        return self._of_objects(method, parts.path, parse_qs(parts.query), body)

    def _of_objects(self, method: str, path: str, query: dict[str, list[str]], body: Object | None) -> tuple[int, Any]:
        if method == "PATCH" and body is not None:
            self.objects[path] = body
            return 200, body
        if path in self.objects:
            found = self.objects[path]
            if method == "DELETE" and not found["metadata"].get("finalizers"):
                for gone in [key for key in self.objects if key == path or key.startswith(f"{path}/")]:
                    del self.objects[gone]
            return 200, found
        listing = [found for key, found in self.objects.items() if key.rpartition("/")[0] == path]
        if method == "GET" and path.rpartition("/")[2] in {entry[3] for entry in self.kinds}:
            wanted = [pair.split("=", 1) for pair in query.get("labelSelector", [""])[0].split(",") if pair]
            labelled = [
                {key: value for key, value in found.items() if key not in ("kind", "apiVersion")}
                for found in listing
                if all((found["metadata"].get("labels") or {}).get(key) == value for key, value in wanted)
            ]
            return 200, {"kind": "List", "apiVersion": "v1", "items": labelled}
        return 404, status(404, f"{path} not found")

    def _discovery(self, path: str, aggregated: bool) -> Object | None:
        core = path.startswith("/api") and not path.startswith("/apis")
        kinds = [entry for entry in self.kinds if (entry[0] == "") == core]
        if path in ("/api", "/apis") and aggregated:
            return {"kind": "APIGroupDiscoveryList", "items": _aggregated(kinds)}
        if path == "/api":
            return {"kind": "APIVersions", "versions": ["v1"]}
        if path == "/apis":
            groups = [
                {
                    "name": group,
                    "versions": [{"version": version} for version in versions],
                    "preferredVersion": {"version": versions[0]},
                }
                for group, versions in _versions(kinds).items()
            ]
            return {"kind": "APIGroupList", "groups": groups}
        resources = [
            {"name": plural, "singularName": kind.lower(), "namespaced": namespaced, "kind": kind, "verbs": ALL_VERBS}
            for group, version, kind, plural, namespaced in kinds
            if _prefix(group, version) == path
        ]
        return {"kind": "APIResourceList", "resources": resources} if resources else None


def _prefix(group: str, version: str) -> str:
    return f"/apis/{group}/{version}" if group else f"/api/{version}"


def _versions(kinds: list[Any]) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for group, version, *_ in kinds:
        if version not in found.setdefault(group, []):
            found[group].append(version)
    return found


def _aggregated(kinds: list[Any]) -> list[Object]:
    groups = []
    for group, versions in _versions(kinds).items():
        entries = []
        for version in versions:
            resources = [
                {
                    "resource": plural,
                    "responseKind": {"group": group, "version": version, "kind": kind},
                    "scope": "Namespaced" if namespaced else "Cluster",
                    "singularResource": kind.lower(),
                    "verbs": ALL_VERBS,
                    "subresources": [{"subresource": "status", "verbs": ["get"]}],
                }
                for found_group, found_version, kind, plural, namespaced in kinds
                if (found_group, found_version) == (group, version)
            ]
            entries.append({"version": version, "resources": resources})
        groups.append({"metadata": {"name": group} if group else {}, "versions": entries})
    return groups


def status(code: int, message: str) -> Object:
    """An error as the API server answers it."""
    return {"kind": "Status", "apiVersion": "v1", "status": "Failure", "message": message, "code": code}


def kubeconfig(server: str, **user: Any) -> Object:
    """A kubeconfig with one context, ``ctx``."""
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "contexts": [{"name": "ctx", "context": {"cluster": "c", "user": "u"}}],
        "clusters": [{"name": "c", "cluster": {"server": server}}],
        "users": [{"name": "u", "user": user}],
    }


@contextmanager
def served(server: ApiServer | None = None, tls: ssl.SSLContext | None = None) -> Iterator[ApiServer]:
    """Run an API server, with TLS where a context is given."""
    held = server or ApiServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # header and body are two writes: the second would wait for an acknowledgement

        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            raw = self.rfile.read(length)
            body = json.loads(raw) if raw else None
            held.requests.append(f"{self.command} {self.path}")
            if held.drops:
                held.drops -= 1
                self.close_connection = True
                return
            held.headers, held.header_lines = dict(self.headers), list(self.headers.items())
            if body is not None:
                held.bodies.append(body)
            token = self.headers.get("authorization", "").removeprefix("Bearer ")
            code, answer = held.answer(self.command, self.path, self.headers.get("Accept", ""), body)
            if held.tokens is not None and token not in held.tokens:
                code, answer = 401, status(401, "Unauthorized")
            is_text = isinstance(answer, str)
            data = answer.encode() if is_text else json.dumps(answer).encode()
            self.send_response(code)
            self.send_header("Content-Type", "text/plain" if is_text else "application/json")
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        do_GET = do_POST = do_PATCH = do_DELETE = _handle  # noqa: N815 the base class's names

        def log_message(self, *_args: Any) -> None:
            pass

    web = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    web.daemon_threads = True
    if tls:
        web.socket = tls.wrap_socket(web.socket, server_side=True)
    thread = Thread(target=web.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    held.url = f"{'https' if tls else 'http'}://127.0.0.1:{web.server_port}"
    try:
        yield held
    finally:
        web.shutdown()
        web.server_close()
        thread.join()

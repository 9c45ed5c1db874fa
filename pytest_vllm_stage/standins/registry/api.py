"""The whole server: the registry under one or both versions of its prefix, and ``/standin/*`` for tests."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pytest_vllm_stage.standins.http import TEXT_TYPE, Reply, Request
from pytest_vllm_stage.standins.registry import SERVER
from pytest_vllm_stage.standins.registry import faults as f
from pytest_vllm_stage.standins.registry.refusal import RegistryRefusal, bad_request, database_error
from pytest_vllm_stage.standins.registry.resources import Registry
from pytest_vllm_stage.standins.registry.routes import RoutedCall, find_route
from pytest_vllm_stage.standins.registry.store import Store
from pytest_vllm_stage.standins.registry.values import encode, parse_object

PREFIXES = {"v1alpha3": "/api/model_registry/v1alpha3", "v1": "/api/model_registry/v1"}

#: What newer servers say about their old prefix.
_DEPRECATED = (
    ("deprecation", "true"),
    ("sunset", "Fri, 31 Dec 2027 23:59:59 GMT"),
    ("link", f'<{PREFIXES["v1"]}>; rel="successor-version"'),
)
#: Requests that the log keeps, and bytes of a body.
LOG_LENGTH, LOGGED_BODY_BYTES = 10_000, 64 * 1024


JSON_TYPE = "application/json; charset=UTF-8"


@dataclass(frozen=True)
class Response:
    """One answer; a status of 0 drops the connection instead."""

    status: int
    body: bytes = b""
    content_type: str = ""
    headers: Sequence[tuple[str, str]] = ()


def as_json(value: Any, status: int = 200) -> Response:
    """An answer of JSON."""
    return Response(status, encode(value), JSON_TYPE)


def as_text(text: str, status: int) -> Response:
    """An answer of plain text."""
    return Response(status, f"{text}\n".encode(), TEXT_TYPE)


#: The answer to any unknown path.
NOT_FOUND = as_text("404 page not found", 404)


class RegistryApi:
    """Answers requests over a store.

    Args:
        store: Holds the entities.
        versions: Which prefixes are served: keys of `PREFIXES`.
    """

    def __init__(self, store: Store, versions: Sequence[str] = tuple(PREFIXES)) -> None:
        self.store = store
        self.versions = tuple(versions)
        self.faults: list[f.RegistryFault] = []
        self.log: deque[dict[str, Any]] = deque(maxlen=LOG_LENGTH)
        self._standin: dict[tuple[str, str], Callable[[Request], Response]] = {
            ("GET", "/standin"): lambda _: as_json({"standin": SERVER, "versions": list(self.versions)}),
            ("GET", "/standin/faults"): lambda _: as_json([{"fault": x.name, **asdict(x)} for x in self.faults]),
            ("PUT", "/standin/faults"): self._put_faults,
            ("GET", "/standin/requests"): lambda _: as_json(list(self.log)),
            ("DELETE", "/standin/requests"): lambda _: self._forget(),
            ("POST", "/standin/reset"): lambda _: self._reset(),
            ("GET", "/readyz/health"): lambda _: self._health(),
        }

    def handle(self, request: Request, reply: Reply) -> None:
        """Answer one request of a server, now or after the latency of a fault."""
        faults = self.hit_by(request)
        delay_s = sum(fault.seconds for fault in f.select_faults(faults, f.Latency))
        if delay_s:
            asyncio.get_running_loop().call_later(delay_s, self._reply, request, faults, reply)
        else:
            self._reply(request, faults, reply)

    def _reply(self, request: Request, faults: Sequence[f.RegistryFault], reply: Reply) -> None:
        response = self.answer(request, faults)
        if response.status:
            reply.send(response.status, response.body, response.content_type, response.headers)
        else:
            reply.cut()

    def hit_by(self, request: Request) -> list[f.RegistryFault]:
        """The faults that hit a request; counts the request, so called once for each."""
        if not request.path.startswith(tuple(PREFIXES.values())):
            return []
        return [fault for fault in self.faults if fault.hits(request.method, request.path)]

    def answer(self, request: Request, faults: Sequence[f.RegistryFault] = ()) -> Response:
        """Answer a request that these faults hit."""
        own = self._standin.get((request.method, request.path))
        if own is not None:
            return own(request)
        version = next((key for key in self.versions if request.path.startswith(PREFIXES[key] + "/")), None)
        if version is None:
            return NOT_FOUND
        response = self._in_version(request, request.path.removeprefix(PREFIXES[version] + "/"), faults)
        if version == "v1alpha3" and len(self.versions) > 1:
            response = replace(response, headers=(*response.headers, *_DEPRECATED))
        self._record(request, response.status)
        return Response(0) if f.select_faults(faults, f.CutAnswer) else response

    def _in_version(self, request: Request, path: str, faults: Sequence[f.RegistryFault]) -> Response:
        for fault in f.select_faults(faults, f.Unavailable):
            return as_text("a fault makes the stand-in unavailable", fault.status)
        route = find_route(path)
        if route is None:
            return NOT_FOUND
        methods, id_text = route
        handler = methods.get(request.method)
        if handler is None:
            return Response(405, headers=[("allow", ", ".join(sorted(methods)))])
        try:
            if any("\0" in text for pair in request.query.items() for text in pair):
                raise bad_request("the query holds a NUL character")
            registry = Registry(self.store, faults)
            status, body = handler(RoutedCall(registry, id_text, request.query, lambda: parse_object(request.body)))
            return as_json(body, status)
        except RegistryRefusal as refusal:
            return as_json(refusal.body(), refusal.status)
        except sqlite3.Error as error:
            return as_json(database_error(str(error)).body(), 500)

    def _record(self, request: Request, status: int) -> None:
        self.log.append(
            {
                "at": time.time(),
                "method": request.method,
                "path": request.path,
                "query": dict(request.query),
                "body": request.body[:LOGGED_BODY_BYTES].decode("utf-8", "replace"),
                "content_type": request.headers.get("content-type", ""),
                "authorized": "authorization" in request.headers,
                "status": status,
            }
        )

    def _put_faults(self, request: Request) -> Response:
        try:
            self.faults = f.parse_faults(json.loads(request.body))
        except (ValueError, RecursionError, f.WrongScript) as error:
            return as_json({"error": str(error)}, 400)
        return as_json([fault.name for fault in self.faults])

    def _forget(self) -> Response:
        self.log.clear()
        return as_json({})

    def _reset(self) -> Response:
        self.faults = []
        self.log.clear()
        self.store.clear()
        return as_json({})

    def _health(self) -> Response:
        lost = f.select_faults(self.faults, f.LostDatabase)
        return as_text(f"{SERVER}: no database" if lost else f"{SERVER}: ok", 503 if lost else 200)

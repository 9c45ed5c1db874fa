"""The whole server: the registry under one or both versions of its prefix, and ``/standin/*`` for tests."""

from __future__ import annotations

import json
import sqlite3
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from pytest_vllm_stage.standins.registry import SERVER
from pytest_vllm_stage.standins.registry import faults as f
from pytest_vllm_stage.standins.registry.exchange import JSON_TYPE, NOT_FOUND, Request, Response, as_json, as_text
from pytest_vllm_stage.standins.registry.openapi import description
from pytest_vllm_stage.standins.registry.refusal import Refusal, bad_request, database_error
from pytest_vllm_stage.standins.registry.resources import Registry
from pytest_vllm_stage.standins.registry.routes import Call, route_of
from pytest_vllm_stage.standins.registry.store import Store

PREFIXES = {"v1alpha3": "/api/model_registry/v1alpha3", "v1": "/api/model_registry/v1"}

#: What newer servers say about their old prefix.
_DEPRECATED = (
    ("deprecation", "true"),
    ("sunset", "Fri, 31 Dec 2027 23:59:59 GMT"),
    ("link", f'<{PREFIXES["v1"]}>; rel="successor-version"'),
)
#: Requests that the log keeps, and bytes of a body.
LOG_LENGTH, LOGGED_BODY_BYTES = 10_000, 64 * 1024


class Api:
    """Answers requests over a store.

    Args:
        store: Where the entities are.
        versions: Which prefixes are served: keys of `PREFIXES`.
    """

    def __init__(self, store: Store, versions: Sequence[str] = tuple(PREFIXES)) -> None:
        self.store = store
        self.versions = tuple(versions)
        self.faults: list[f.Fault] = []
        self.log: deque[dict[str, Any]] = deque(maxlen=LOG_LENGTH)
        self._standin: dict[tuple[str, str], Callable[[Request], Response]] = {
            ("GET", "/standin"): lambda _: as_json({"standin": SERVER, "versions": list(self.versions)}),
            ("GET", "/standin/faults"): lambda _: as_json([{"fault": x.name, **asdict(x)} for x in self.faults]),
            ("PUT", "/standin/faults"): self._put_faults,
            ("GET", "/standin/requests"): lambda _: as_json(list(self.log)),
            ("DELETE", "/standin/requests"): lambda _: self._forget(),
            ("POST", "/standin/reset"): lambda _: self._reset(),
            ("GET", "/openapi.json"): lambda _: Response(200, description(), JSON_TYPE),
            ("GET", "/readyz/health"): lambda _: self._health(),
        }

    def hit_by(self, request: Request) -> list[f.Fault]:
        """The faults that hit a request; to be asked once a request."""
        if not request.path.startswith(tuple(PREFIXES.values())):
            return []
        return [fault for fault in self.faults if fault.hits(request.method, request.path)]

    def answer(self, request: Request, faults: Sequence[f.Fault] = ()) -> Response:
        """Answer a request that these faults hit."""
        own = self._standin.get((request.method, request.path))
        if own is not None:
            return own(request)
        version = next((key for key in self.versions if request.path.startswith(PREFIXES[key] + "/")), None)
        if version is None:
            return NOT_FOUND
        response = self._in_version(request, request.path.removeprefix(PREFIXES[version] + "/"), faults)
        if version == "v1alpha3" and len(self.versions) > 1:
            response = Response(
                response.status, response.body, response.content_type, (*response.headers, *_DEPRECATED)
            )
        self._record(request, response.status)
        return Response(0) if f.of_type(faults, f.CutAnswer) else response

    def _in_version(self, request: Request, path: str, faults: Sequence[f.Fault]) -> Response:
        for fault in f.of_type(faults, f.Unavailable):
            return as_text("the stand-in is told to be unavailable", fault.status)
        route = route_of(path)
        if route is None:
            return NOT_FOUND
        methods, ids = route
        handler = methods.get(request.method)
        if handler is None:
            return Response(405, headers=[("allow", ", ".join(sorted(methods)))])
        try:
            if any("\0" in text for pair in request.query.items() for text in pair):
                raise bad_request("the query holds a NUL character")
            return handler(Call(Registry(self.store, faults), ids, request))
        except Refusal as refusal:
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
            self.faults = f.make(json.loads(request.body))
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
        lost = f.of_type(self.faults, f.LostDatabase)
        return as_text(f"{SERVER}: no database" if lost else f"{SERVER}: ok", 503 if lost else 200)

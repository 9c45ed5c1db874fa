"""A pytest plugin for a run under test: it prints the rights that the run's requests to the API server used."""

from __future__ import annotations

import re
import sys
from typing import Any
from urllib.parse import urlsplit

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.cluster.access import Right

_LINE = "rights used: "
_RESOURCE = re.compile(
    r"/(?:api|apis/(?P<group>[^/]+))/[^/]+/(?:namespaces/[^/]+/(?=[^/]))?(?P<resource>[^/]+)"
    r"(?:/(?P<name>[^/]+)(?P<sub>/[^/]+)?(?:/.*)?)?"
)
_VERBS = {"POST": "create", "PATCH": "patch", "PUT": "update", "DELETE": "delete", "GET": "get"}
_used: set[Right] = set()


def rights_of(method: str, url: str, content_type: str = "") -> set[Right]:
    """The rights that a request needs; discovery needs none, and an apply may create.

    A path like ``/api/v1/namespaces/NS`` names the namespace itself.
    """
    parts = urlsplit(url)
    found = _RESOURCE.fullmatch(parts.path.rstrip("/"))
    if found is None or found["resource"].startswith("selfsubject"):
        return set()
    named = bool(found["name"])
    verb = _VERBS[method]
    if verb == "get" and not named:
        verb = "watch" if "watch=" in parts.query else "list"
    if verb == "delete" and not named:
        verb = "deletecollection"
    verbs = {verb, "create"} if "apply-patch" in content_type else {verb}
    return {Right(one, found["resource"] + (found["sub"] or ""), found["group"] or "") for one in verbs}


def read_rights(output: str) -> set[Right]:
    """The rights in a run's output."""
    (line,) = {line.partition(_LINE)[2] for line in output.splitlines() if _LINE in line}
    return {Right(*text.split(" ")) for text in line.split("; ")}


def pytest_configure() -> None:
    """Record every request of the client."""
    call = client._ApiClient.call_api

    def recorded(self: Any, method: str, url: str, header_params: Any = None, *more: Any, **named: Any) -> Any:
        _used.update(rights_of(method, url, str((header_params or {}).get("Content-Type", ""))))
        return call(self, method, url, header_params, *more, **named)

    client._ApiClient.call_api = recorded  # type: ignore[method-assign]


def pytest_unconfigure() -> None:
    """Print them where no capturing swallows them."""
    rights = "; ".join(f"{one.verb} {one.resource} {one.group}" for one in sorted(_used, key=str))
    print(f"{_LINE}{rights}", file=sys.__stderr__)

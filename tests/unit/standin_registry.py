"""The registry stand-in without HTTP: requests go straight to its `RegistryApi`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

from pytest_vllm_stage.standins.http import Request, parse_query
from pytest_vllm_stage.standins.registry.api import PREFIXES, RegistryApi, Response
from pytest_vllm_stage.standins.registry.store import Store

Body = dict[str, Any]


@dataclass(frozen=True)
class Answer:
    """A response, and its JSON."""

    response: Response

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def headers(self) -> dict[str, str]:
        return dict(self.response.headers)

    @property
    def text(self) -> str:
        return self.response.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.response.body)

    @property
    def names(self) -> list[str]:
        """The names of a list's items; the list must have the right shape."""
        page = self.json
        assert self.status == 200, page
        assert set(page) == {"items", "nextPageToken", "pageSize", "size"}
        assert page["size"] == len(page["items"])
        return [item["name"] for item in page["items"]]


class Standin:
    """A stand-in in memory, asked under one prefix."""

    def __init__(self, version: str = "v1", versions: tuple[str, ...] = tuple(PREFIXES)) -> None:
        self.api = RegistryApi(Store(":memory:"), versions)
        self.prefix = PREFIXES[version]

    def raw(self, method: str, target: str, body: bytes = b"", **headers: str) -> Answer:
        """Send a request to a path of the whole server."""
        path, _, query = target.partition("?")
        request = Request(method, path, parse_query(query), headers, body)
        return Answer(self.api.answer(request, self.api.hit_by(request)))

    def send(self, method: str, path: str, body: object = None, **query: str) -> Answer:
        """Send a request to a path below the prefix."""
        target = f"{self.prefix}/{path}" + (f"?{urlencode(query, quote_via=quote)}" if query else "")
        content = body if isinstance(body, bytes) else b"" if body is None else json.dumps(body).encode()
        return self.raw(method, target, content)

    def get(self, path: str, **query: str) -> Answer:
        return self.send("GET", path, **query)

    def post(self, path: str, body: object) -> Answer:
        return self.send("POST", path, body)

    def patch(self, path: str, body: object) -> Answer:
        return self.send("PATCH", path, body)

    def made(self, path: str, **body: Any) -> Body:
        """What was made by a POST, which must have succeeded."""
        answer = self.post(path, body)
        assert answer.status in (200, 201), answer.text
        made: Body = answer.json
        return made

    def model(self, name: str = "m", **body: Any) -> Body:
        return self.made("registered_models", name=name, **body)

    def version(self, model_id: str, name: str = "v", **body: Any) -> Body:
        return self.made("model_versions", name=name, registeredModelId=model_id, **body)

    def artifact(self, version_id: str, name: str = "a", artifact_type: str = "model-artifact", **body: Any) -> Body:
        return self.made(f"model_versions/{version_id}/artifacts", name=name, artifactType=artifact_type, **body)

    def faults(self, *script: object) -> None:
        answer = self.raw("PUT", "/standin/faults", json.dumps(script).encode())
        assert answer.status == 200, answer.text


def string(value: str) -> Body:
    return {"metadataType": "MetadataStringValue", "string_value": value}


def double(value: float) -> Body:
    return {"metadataType": "MetadataDoubleValue", "double_value": value}


def integer(value: str) -> Body:
    return {"metadataType": "MetadataIntValue", "int_value": value}


def boolean(value: bool) -> Body:
    return {"metadataType": "MetadataBoolValue", "bool_value": value}

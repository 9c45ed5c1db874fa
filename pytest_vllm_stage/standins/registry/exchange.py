"""A request as it came, and the answer that leaves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.standins.registry.values import encoded

JSON_TYPE = "application/json; charset=UTF-8"
TEXT_TYPE = "text/plain; charset=utf-8"


@dataclass(frozen=True)
class Request:
    """One request; header names are lower-case, and of a repeated parameter the first is kept."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes = b""


@dataclass(frozen=True)
class Response:
    """One answer; a status of 0 drops the connection instead."""

    status: int
    body: bytes = b""
    content_type: str = ""
    headers: Sequence[tuple[str, str]] = ()


def as_json(value: Any, status: int = 200) -> Response:
    """An answer of JSON."""
    return Response(status, encoded(value), JSON_TYPE)


def as_text(text: str, status: int) -> Response:
    """An answer of plain text."""
    return Response(status, f"{text}\n".encode(), TEXT_TYPE)


#: What any unknown path answers.
NOT_FOUND = as_text("404 page not found", 404)

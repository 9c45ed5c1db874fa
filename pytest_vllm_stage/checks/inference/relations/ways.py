"""The ways in which one request can be sent: all must give the same answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_stage.serving.client import EndpointClient


@dataclass(frozen=True)
class Way:
    """How a request is sent.

    Attributes:
        body_bytes: The body is padded to this size with white space, which JSON allows.
        headers: Headers beyond the client's own.
        chunked: The body is sent in chunks, without its length.
        fresh: The connection is new.
    """

    body_bytes: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    chunked: bool = False
    fresh: bool = False

    def content(self, body: dict[str, Any]) -> bytes | Iterator[bytes]:
        """The body's bytes."""
        text = json.dumps(body)
        content = (text[:-1] + " " * max(self.body_bytes - len(text), 0) + text[-1:]).encode()
        return (content[at : at + 1000] for at in range(0, len(content), 1000)) if self.chunked else content

    @contextmanager
    def client(self, endpoint: EndpointClient) -> Iterator[EndpointClient]:
        """The client to send with."""
        if not self.fresh:
            yield endpoint
            return
        with endpoint.with_new_connections() as client:
            yield client


#: HTTP/1.0 is left out: no client of today sends it, and httpx cannot.
WAYS: dict[str, Way] = {
    "kept connection": Way(),
    "new connection, Expect: 100-continue": Way(headers={"expect": "100-continue"}, fresh=True),
    "body of 16 KiB, no compression": Way(body_bytes=16 * 1024, headers={"accept-encoding": "identity"}),
    "body of 64 KiB": Way(body_bytes=64 * 1024),
    "chunked body": Way(chunked=True),
}

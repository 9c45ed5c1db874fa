"""Healthy gateways that are unlike others: they let only listed paths pass, and comment streams."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator

from tests.defects.proxy.server import Answer, Defect, Exchange


class ListedPathsOnly(Defect):
    """A mesh whose AuthorizationPolicy lists the paths and methods that clients may use."""

    LISTED = re.compile(
        r"GET /(v1/models|health|version|metrics)|POST /(v1/(chat/)?completions|tokenize|detokenize)|OPTIONS /.*"
    )

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Refuse all others, in Envoy's words."""
        if self.LISTED.fullmatch(f"{exchange.request.method} {exchange.request.path}"):
            return None
        return Answer(403, {"content-type": "text/plain", "server": "istio-envoy"}, b"RBAC: access denied")


class CommentedStream(Defect):
    """A relay that writes lines as Windows does, names each event, and keeps the connection busy with comments."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Rewrite each event."""
        yield b"retry: 3000\r\n\r\n"
        async for event in events:
            yield b": keep-alive\r\n\r\nevent: message\r\n" + event.replace(b"\n", b"\r\n")

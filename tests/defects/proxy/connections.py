"""Defects of connections: HTTP itself, time limits, and what happens after a pause."""

from __future__ import annotations

import asyncio
from weakref import WeakSet

from tests.defects import checks
from tests.defects.proxy.server import Answer, Client, ClientGone, Defect, Exchange, refuse


class Http10(
    Defect,
    by={checks.CONNECTION},
    says=r"closed the connection",
    source="https://github.com/confidential-dot-ai/c8s/pull/144",
):
    """Answers come as HTTP/1.0, which keeps no connection."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Close after each."""
        answer.version = "HTTP/1.0"
        answer.headers["connection"] = "close"
        exchange.notes["closes"] = True


class ChunksForHttp10(
    Defect,
    by={checks.ON_THE_WIRE},
    says=r"HTTP/1\.0.*not with JSON",
    source="https://github.com/http-party/node-http-proxy/pull/125",
):
    """An answer to HTTP/1.0 comes in chunks, which HTTP/1.0 does not have: their sizes are taken for text."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Write the framing into the body."""
        if exchange.request.version == "HTTP/1.0" and not answer.is_stream:
            answer.body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(answer.body), answer.body)


class ContinueNeverSent(
    Defect, by={checks.ON_THE_WIRE}, says=r"100-continue", source="https://github.com/yhirose/cpp-httplib/issues/349"
):
    """``Expect: 100-continue`` gets no answer, so that clients wait in vain before they send the body."""

    def continues(self, headers: dict[str, str]) -> bool:
        return False


class SecondRequestReset(
    Defect, by={checks.CONNECTION}, says=r"got no response", source="https://github.com/Kludex/uvicorn/issues/824"
):
    """The second request on a connection finds it dead."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Reset it."""
        if exchange.client.requests == 2:
            exchange.client.reset()
            raise ClientGone
        return None


class RoutersDiffer(
    Defect,
    by={checks.NEW_CONNECTION},
    says=r"4 of 8 new connections: GET /v1/models answered 503 .*sent by HAProxy",
    source="https://github.com/haproxytech/kubernetes-ingress/issues/795",
):
    """Of two replicas of a router one has lost its servers, and every second connection goes to it."""

    def __init__(self) -> None:
        self._count = 0
        self._lost: WeakSet[Client] = WeakSet()

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """The page of HAProxy, for each request of such a connection."""
        if exchange.client.requests == 1:
            self._count += 1
            if self._count % 2 == 0:
                self._lost.add(exchange.client)
        if exchange.client not in self._lost:
            return None
        page = b"<h1>503 Service Unavailable</h1>\nNo server is available to handle this request.\n"
        return Answer(503, {"content-type": "text/html"}, b"<html><body>%b</body></html>" % page)


class Redirected(
    Defect,
    by={checks.FACT},
    says=r"answered 301 Moved Permanently, a redirect to secure\.invalid/v1/chat/completions",
    source="https://github.com/danny-avila/LibreChat/issues/4688",
):
    """A request for text is sent to another address, where a client that follows arrives with GET and no body."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """As from http to https."""
        if not exchange.request.generates:
            return None
        return Answer(301, {"location": f"https://secure.invalid{exchange.request.target}"})


class IdleConnectionReset(
    Defect,
    by={checks.SLOW_IDLE},
    says=r"idle",
    source="https://github.com/open-webui/open-terminal/pull/148",
    slow=True,
):
    """A connection that was idle for long looks open, and the next request on it is lost."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Reset it."""
        if exchange.client.requests > 1 and asyncio.get_running_loop().time() - exchange.client.last_s > self.limit_s:
            exchange.client.reset()
            raise ClientGone
        return None


class AnswerTimesOut(
    Defect, by={checks.SLOW_ANSWER}, says=r"504", source="https://github.com/BerriAI/litellm/issues/9551", slow=True
):
    """A whole answer that takes longer than the limit becomes a 504."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Remember when it came."""
        exchange.notes["at_s"] = asyncio.get_running_loop().time()
        return None

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Replace it."""
        if not answer.is_stream and asyncio.get_running_loop().time() - exchange.notes["at_s"] > self.limit_s:
            late = refuse(504, "upstream request timeout")
            answer.status, answer.headers, answer.body = late.status, late.headers, late.body


class SlowAfterPause(
    Defect,
    by={checks.SLOW_FIRST},
    says=r"the first request after a pause is slow: it took .* the 3 after it",
    source="https://github.com/BerriAI/litellm/issues/17954",
    slow=True,
):
    """After a few idle seconds the next request waits."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Wait."""
        if exchange.request.generates and exchange.idle_s > self.limit_s:
            await asyncio.sleep(3.0)
        return None

"""The HTTP/1.1 server of the stand-ins: one core streams thousands of tokens a second and knows when each one left.

A `Connection` hands complete requests to a handler, one after the other, and the handler answers through a `Reply`, at
once or later. It is built on asyncio's protocols: the server of the standard library spends a thread per connection.
"""

from __future__ import annotations

import asyncio
import json
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
#: How long replies in progress may take when the server stops.
GRACE_S = 2.0

JSON_TYPE = "application/json"
TEXT_TYPE = "text/plain; charset=utf-8"
EVENT_STREAM_TYPE = "text/event-stream; charset=utf-8"

_REASONS = {status.value: status.phrase for status in HTTPStatus}


class BadRequest(Exception):
    """The bytes are not an HTTP request that this server accepts; the connection ends."""


@dataclass(slots=True)
class Request:
    """One complete request; header names are lower-case, and of a repeated parameter or header the first counts."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""
    version: str = "HTTP/1.1"

    @property
    def closes(self) -> bool:
        """The client expects the connection to end with the response."""
        wanted = self.headers.get("connection", "").lower()
        return wanted == "close" or (self.version == "HTTP/1.0" and wanted != "keep-alive")


class Reply:
    """The response to one request.

    Attributes:
        on_disconnect: Called once when the client goes away before the response's end.
        stream_type: Content type of a stream.
        json_type: Content type of everything else that is given none.
        closes: The connection ends with the response.
    """

    __slots__ = ("_chunked", "_connection", "_head_only", "closes", "json_type", "on_disconnect", "stream_type")

    def __init__(self, connection: Connection, request: Request | None = None) -> None:
        self._connection = connection
        self._head_only = request is not None and request.method == "HEAD"
        # HTTP/1.0 knows no chunks: the end of the connection ends the body.
        self._chunked = request is None or request.version != "HTTP/1.0"
        self.on_disconnect: Callable[[], None] | None = None
        self.stream_type = EVENT_STREAM_TYPE
        self.json_type = JSON_TYPE
        self.closes = request is None or request.closes

    def send(
        self, status: int, body: bytes, content_type: str | None = None, headers: Sequence[tuple[str, str]] = ()
    ) -> None:
        """Send a whole response; an empty content type sends no such header."""
        typed = self.json_type if content_type is None else content_type
        fields = [("content-type", typed)] if typed else []
        head = self._head(status, [*fields, *headers, ("content-length", str(len(body)))])
        self._connection.write(head if self._head_only else head + body)
        self._end()

    def send_json(self, value: Any, status: int = 200) -> None:
        """Send a whole response of JSON."""
        self.send(status, json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())

    def start_stream(self) -> None:
        """Send the head of an event stream."""
        self.closes = self.closes or not self._chunked
        framing = [("transfer-encoding", "chunked")] if self._chunked else []
        self._connection.write(self._head(200, [("content-type", self.stream_type), *framing]))

    def write(self, data: bytes) -> None:
        """Send a piece of the stream, now."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data)

    def finish(self) -> None:
        """End the stream."""
        if self._chunked:
            self._connection.write(b"0\r\n\r\n")
        self._end()

    def cut(self) -> None:
        """Drop the connection in the middle of the response, as a proxy's timeout does."""
        self.on_disconnect = None
        self._connection.close()

    def _head(self, status: int, headers: Sequence[tuple[str, str]]) -> bytes:
        server = [("server", self._connection.server_name)]
        ending = [("connection", "close")] if self.closes else []
        lines = [f"{name}: {value}" for name, value in (*server, *ending, *headers)]
        return "\r\n".join([f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}", *lines, "", ""]).encode("latin-1")

    def _end(self) -> None:
        self.on_disconnect = None
        self._connection.end_reply(closes=self.closes)


Handler = Callable[[Request, Reply], None]


class Server:
    """Serves a handler on a port.

    Args:
        handler: Answers each request through its reply, at once or later.
        name: The ``server`` header of every response.
    """

    def __init__(self, handler: Handler, name: str) -> None:
        self.handler = handler
        self.name = name
        self.connections: set[Connection] = set()
        self._server: asyncio.Server | None = None

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen, and return the address.

        Raises:
            OSError: The address cannot be used.
        """
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(lambda: Connection(self), host, port, backlog=4096)
        address = self._server.sockets[0].getsockname()
        return address[0], address[1]

    async def serve_until_stopped(self, host: str, port: int, introduction: str) -> None:
        """Listen, print the address behind the introduction, and serve until SIGTERM or SIGINT.

        Raises:
            OSError: The address cannot be used.
        """
        stopped = asyncio.Event()
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, stopped.set)
        host, port = await self.start(host, port)
        sys.stdout.write(f"{self.name}: {introduction}, listening on http://{host}:{port}\n")
        sys.stdout.flush()
        await stopped.wait()
        await self.stop()

    async def stop(self) -> None:
        """Accept nothing more, let the replies in progress end, and close every connection."""
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            connection.close_after_reply()
        deadline = asyncio.get_running_loop().time() + GRACE_S
        while self.connections and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.01)
        for connection in tuple(self.connections):
            connection.close()


class Connection(asyncio.Protocol):
    """One client; requests that come while one is being answered wait their turn."""

    def __init__(self, server: Server) -> None:
        self.server_name = server.name
        self._server = server
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._pending: Request | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP server makes no other
        self._transport = transport
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """Report to the reply in progress that the client has gone."""
        self._transport = None
        self._server.connections.discard(self)
        reply, self._reply = self._reply, None
        if reply is not None and reply.on_disconnect is not None:
            reply.on_disconnect()

    def data_received(self, data: bytes) -> None:
        """Buffer bytes, and start on the next request when it is complete."""
        self._buffer += data
        if self._reply is None:
            self._next()

    def write(self, data: bytes) -> None:
        """Send bytes, unless the client has gone."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        self._reply = None
        if self._transport is not None:
            self._transport.close()

    def close_after_reply(self) -> None:
        """End the connection now, or with the reply in progress."""
        if self._reply is None:
            self.close()
        else:
            self._reply.closes = True

    def end_reply(self, *, closes: bool) -> None:
        """The reply in progress is complete: the next request may start, unless the connection ends with it."""
        self._reply = None
        if closes:
            self.close()
        elif self._buffer and self._transport is not None:
            asyncio.get_running_loop().call_soon(self._resume)

    def _resume(self) -> None:
        if self._reply is None:
            self._next()

    def _next(self) -> None:
        try:
            request = self._take_request()
        except BadRequest as error:
            self._reply = Reply(self)
            self._reply.send(400, f"{error}\n".encode(), TEXT_TYPE)
            return
        if request is not None:
            self._reply = Reply(self, request)
            self._handle(request, self._reply)

    def _handle(self, request: Request, reply: Reply) -> None:
        """A defect of the handler is a 500 with its traceback in the log, not a connection that ends."""
        try:
            self._server.handler(request, reply)
        except Exception:
            traceback.print_exc()
            reply.send(500, b"the stand-in failed; its log has the traceback\n", TEXT_TYPE)

    def _take_request(self) -> Request | None:
        """The next complete request in the buffer."""
        request = self._pending or self._take_head()
        if request is None:
            return None
        self._pending = request
        if "chunked" in request.headers.get("transfer-encoding", "").lower():
            body = self._take_chunks()
        else:
            body = self._take_bytes(_content_length(request.headers))
        if body is None:
            return None
        self._pending = None
        request.body = body
        return request

    def _take_head(self) -> Request | None:
        end = self._buffer.find(b"\r\n\r\n")
        if (end if end >= 0 else len(self._buffer)) > MAX_HEAD_BYTES:
            raise BadRequest(f"the head is longer than {MAX_HEAD_BYTES} bytes")
        if end < 0:
            return None
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        request = _parse_head(head)
        if request.headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        return request

    def _take_bytes(self, count: int) -> bytes | None:
        if len(self._buffer) < count:
            return None
        body = bytes(self._buffer[:count])
        del self._buffer[:count]
        return body

    def _take_chunks(self) -> bytes | None:
        """A chunked body, once all of it is there; trailers are dropped."""
        chunks: list[bytes] = []
        position = 0
        while True:
            line_end = self._buffer.find(b"\r\n", position)
            if line_end < 0:
                return None
            size = _chunk_size(bytes(self._buffer[position:line_end]))
            start, end = line_end + 2, line_end + 2 + size
            if size == 0:
                stop = self._buffer.find(b"\r\n\r\n", line_end)
                if stop < 0:
                    return None
                del self._buffer[: stop + 4]
                return b"".join(chunks)
            if len(self._buffer) < end + 2:
                return None
            chunks.append(bytes(self._buffer[start:end]))
            position = end + 2


def _parse_head(head: bytes) -> Request:
    first, *lines = head.decode("latin-1").split("\r\n")
    parts = first.split(" ")
    if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise BadRequest("expected a request line of HTTP/1.1 or HTTP/1.0")
    headers: dict[str, str] = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest(f"not a header: {line[:80]!r}")
        headers.setdefault(name.lower(), value.strip())
    path, _, query = parts[1].partition("?")
    return Request(parts[0], path, parse_query(query), headers, version=parts[2])


def parse_query(text: str) -> dict[str, str]:
    """The parameters; of a repeated one the first."""
    return dict(reversed(parse_qsl(text, keep_blank_values=True))) if text else {}


def _content_length(headers: dict[str, str]) -> int:
    text = headers.get("content-length", "0")
    if not text.isascii() or not text.isdigit() or int(text) > MAX_BODY_BYTES:
        raise BadRequest(f"content-length {text[:40]!r} is not a number of bytes up to {MAX_BODY_BYTES}")
    return int(text)


def _chunk_size(line: bytes) -> int:
    try:
        size = int(line.partition(b";")[0], 16)
    except ValueError:
        raise BadRequest(f"not a chunk size: {line[:40]!r}") from None
    if not 0 <= size <= MAX_BODY_BYTES:
        raise BadRequest("the chunk is too long")
    return size

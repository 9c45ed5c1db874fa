"""The smallest HTTP/1.1 server that lets one core stream thousands of tokens a second and knows when each one left.

A `Connection` hands complete requests to a handler, one after the other, and the handler answers through a `Reply`, at
once or whenever the engine gets there.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any
from urllib.parse import parse_qsl

from pytest_vllm_stage.standins.engine import SERVER

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024

JSON_TYPE = "application/json"
EVENT_STREAM_TYPE = "text/event-stream; charset=utf-8"

_REASONS = {status.value: status.phrase for status in HTTPStatus}
_STREAM_HEAD = (
    f"HTTP/1.1 200 OK\r\nserver: {SERVER}\r\ncontent-type: %b\r\n%btransfer-encoding: chunked\r\n\r\n"
).encode()


class BadRequest(Exception):
    """The bytes are no HTTP request that this server takes; the connection ends."""


@dataclass(slots=True)
class Request:
    """One complete request; header names are lower-case."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes = b""


class Reply:
    """The answer to one request.

    Attributes:
        on_disconnect: Called once when the client goes away before the answer's end.
        stream_type: Content type of a stream.
        json_type: Content type of everything else that is given none.
        closes: The connection ends with the response.
    """

    __slots__ = ("_connection", "closes", "json_type", "on_disconnect", "stream_type", "streaming")

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self.on_disconnect: Callable[[], None] | None = None
        self.stream_type = EVENT_STREAM_TYPE
        self.json_type = JSON_TYPE
        self.closes = False
        self.streaming = False

    def send(self, status: int, body: bytes, content_type: str = "") -> None:
        """Send a whole response."""
        head = (
            f"HTTP/1.1 {status} {_REASONS.get(status, 'Unknown')}\r\nserver: {SERVER}\r\n{self._ending()}"
            f"content-type: {content_type or self.json_type}\r\ncontent-length: {len(body)}\r\n\r\n"
        )
        self._connection.write(head.encode() + body)
        self._end()

    def send_json(self, value: Any, status: int = 200) -> None:
        """Send a whole response of JSON."""
        self.send(status, json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode())

    def start_stream(self) -> None:
        """Send the head of an event stream."""
        self.streaming = True
        self._connection.write(_STREAM_HEAD % (self.stream_type.encode(), self._ending().encode()))

    def write(self, data: bytes) -> None:
        """Send a piece of the stream, now."""
        self._connection.write(b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self) -> None:
        """End the stream."""
        self._connection.write(b"0\r\n\r\n")
        self._end()

    def cut(self) -> None:
        """Drop the connection in the middle of the answer, as a proxy's timeout does."""
        self.on_disconnect = None
        self._connection.close()

    def _ending(self) -> str:
        return "connection: close\r\n" if self.closes else ""

    def _end(self) -> None:
        self.on_disconnect = None
        self._connection.answered(closes=self.closes)


Handler = Callable[[Request, Reply], None]


class Connection(asyncio.Protocol):
    """One client; requests that come while one is being answered wait their turn."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._buffer = bytearray()
        self._transport: asyncio.Transport | None = None
        self._reply: Reply | None = None
        self._pending: Request | None = None
        self._close_after = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 - a TCP server makes no other
        self._transport = transport

    def connection_lost(self, exc: Exception | None) -> None:
        """Tell the answer in progress that nobody is there any more."""
        self._transport = None
        reply, self._reply = self._reply, None
        if reply is not None and reply.on_disconnect is not None:
            reply.on_disconnect()

    def data_received(self, data: bytes) -> None:
        """Take bytes, and start on the next request when it is complete."""
        self._buffer += data
        if self._reply is None:
            self._next()

    def write(self, data: bytes) -> None:
        """Send bytes, if somebody is there."""
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def close(self) -> None:
        """End the connection."""
        self._reply = None
        if self._transport is not None:
            self._transport.close()

    def answered(self, *, closes: bool = False) -> None:
        """The answer in progress is complete: the next request may start, unless the connection ends with it."""
        self._reply = None
        if self._close_after or closes:
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
            self._close_after = True
            self._reply.send(400, f"{error}\n".encode(), "text/plain")
            return
        if request is not None:
            self._reply = Reply(self)
            self._handler(request, self._reply)

    def _take_request(self) -> Request | None:
        """The next complete request in the buffer."""
        request = self._pending or self._take_head()
        if request is None:
            return None
        self._pending = request
        if "chunked" in request.headers.get("transfer-encoding", ""):
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
        if end < 0:
            if len(self._buffer) > MAX_HEAD_BYTES:
                raise BadRequest("the head is too long")
            return None
        head = bytes(self._buffer[:end])
        del self._buffer[: end + 4]
        request = _parse_head(head)
        if request.headers.get("expect", "").lower() == "100-continue":
            self.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        self._close_after = request.headers.get("connection", "").lower() == "close"
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
    if len(parts) != 3 or parts[2] != "HTTP/1.1":
        raise BadRequest("only HTTP/1.1 is spoken here")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if not colon:
            raise BadRequest(f"no header: {line[:80]!r}")
        headers[name.lower()] = value.strip()
    path, _, query = parts[1].partition("?")
    return Request(parts[0], path, dict(parse_qsl(query)) if query else {}, headers)


def _content_length(headers: dict[str, str]) -> int:
    text = headers.get("content-length", "0")
    if not text.isascii() or not text.isdigit() or int(text) > MAX_BODY_BYTES:
        raise BadRequest(f"content-length {text[:40]!r}")
    return int(text)


def _chunk_size(line: bytes) -> int:
    try:
        size = int(line.partition(b";")[0], 16)
    except ValueError:
        raise BadRequest(f"no chunk size: {line[:40]!r}") from None
    if not 0 <= size <= MAX_BODY_BYTES:
        raise BadRequest("the chunk is too long")
    return size

"""A small HTTP/1.1 server on asyncio: one request of a connection after the other, many connections at once.

The simulated engine's server is another one: it names the engine in each head, keeps the last of repeated parameters,
and has neither HEAD nor headers of one's own, all of which this contract needs.
"""

from __future__ import annotations

import asyncio
from http import HTTPStatus
from urllib.parse import unquote_plus

from pytest_vllm_stage.standins.registry import SERVER
from pytest_vllm_stage.standins.registry import faults as f
from pytest_vllm_stage.standins.registry.api import Api
from pytest_vllm_stage.standins.registry.exchange import TEXT_TYPE, Request, Response

MAX_HEAD_BYTES = 64 * 1024
MAX_BODY_BYTES = 64 * 1024 * 1024
#: How long answers that are on their way may take when the server ends.
GRACE_S = 2.0


class WrongRequest(Exception):
    """The bytes are no HTTP request that this server takes; the connection ends."""


class Server:
    """Serves an `Api` on a port."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._server: asyncio.Server | None = None
        self._idle: set[asyncio.StreamWriter] = set()
        self._open: set[asyncio.Task[None]] = set()
        self._ending = False

    async def start(self, host: str, port: int) -> tuple[str, int]:
        """Listen; the address that was got.

        Raises:
            OSError: The address cannot be had.
        """
        self._server = await asyncio.start_server(self._serve, host, port, limit=MAX_HEAD_BYTES, backlog=512)
        address = self._server.sockets[0].getsockname()
        return address[0], address[1]

    async def stop(self) -> None:
        """Take no more, let the answers on their way out, and close."""
        self._ending = True
        if self._server is not None:
            self._server.close()
        for writer in self._idle:
            writer.close()
        if self._open:
            _, late = await asyncio.wait(self._open, timeout=GRACE_S)
            for task in late:
                task.cancel()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - a connection's callback runs as a task
        self._open.add(task)
        try:
            while await self._exchange(reader, writer):
                pass
        except (ConnectionError, asyncio.IncompleteReadError, TimeoutError):
            # The client went away: there is nobody to tell.
            pass
        finally:
            self._open.discard(task)
            self._idle.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer; whether the connection stays."""
        self._idle.add(writer)
        try:
            head = await _read_head(reader)
            self._idle.discard(writer)
            if head is None:
                return False
            request = await _read_request(head, reader, writer)
        except WrongRequest as error:
            writer.write(_head(Response(400, content_type=TEXT_TYPE), len(str(error)) + 1, close=True))
            writer.write(f"{error}\n".encode())
            await writer.drain()
            return False
        response = await self._answer(request)
        if response.status == 0:
            return False
        close = self._ending or request.headers.get("connection", "").lower() == "close"
        writer.write(_head(response, len(response.body), close=close))
        if request.method != "HEAD":
            writer.write(response.body)
        await writer.drain()
        return not close

    async def _answer(self, request: Request) -> Response:
        faults = self._api.hit_by(request)
        for fault in f.of_type(faults, f.Latency):
            await asyncio.sleep(fault.seconds)
        return self._api.answer(request, faults)


async def _read_head(reader: asyncio.StreamReader) -> list[str] | None:
    """The lines of the next request's head; None at the end of the connection."""
    try:
        head = await reader.readuntil(b"\r\n\r\n")
    except asyncio.IncompleteReadError:
        return None
    except asyncio.LimitOverrunError:
        raise WrongRequest(f"the head is longer than {MAX_HEAD_BYTES} bytes") from None
    return head[:-4].decode("latin-1").split("\r\n")


async def _read_request(head: list[str], reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> Request:
    parts = head[0].split(" ")
    if len(parts) != 3 or parts[2] not in ("HTTP/1.1", "HTTP/1.0"):
        raise WrongRequest("only HTTP/1.1 is spoken here")
    headers: dict[str, str] = {}
    for line in head[1:]:
        name, colon, value = line.partition(":")
        if not colon:
            raise WrongRequest(f"no header: {line[:80]!r}")
        headers.setdefault(name.lower(), value.strip())
    if parts[2] == "HTTP/1.0":
        headers["connection"] = "close"
    if headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "chunked" in headers.get("transfer-encoding", "").lower():
        body = await _read_chunks(reader)
    else:
        body = await reader.readexactly(_length(headers.get("content-length", "0"), 10))
    path, _, query = parts[1].partition("?")
    return Request(parts[0], path, parse_query(query), headers, body)


def parse_query(text: str) -> dict[str, str]:
    """The parameters; of a repeated one the first."""
    query: dict[str, str] = {}
    for part in text.split("&"):
        name, _, value = part.partition("=")
        query.setdefault(unquote_plus(name), unquote_plus(value))
    return query


async def _read_chunks(reader: asyncio.StreamReader) -> bytes:
    """A chunked body; trailers are dropped."""
    chunks: list[bytes] = []
    total = 0
    while True:
        line = await _read_line(reader)
        size = _length(line.partition(";")[0].strip(), 16)
        total += size
        if total > MAX_BODY_BYTES:
            raise WrongRequest("the body is too long")
        if size == 0:
            while await _read_line(reader):
                pass
            return b"".join(chunks)
        chunks.append(await reader.readexactly(size))
        await reader.readexactly(2)


async def _read_line(reader: asyncio.StreamReader) -> str:
    try:
        line = await reader.readuntil(b"\r\n")
    except asyncio.LimitOverrunError:
        raise WrongRequest("a line of the body is too long") from None
    return line[:-2].decode("latin-1")


def _length(text: str, base: int) -> int:
    try:
        length = int(text, base)
    except ValueError:
        raise WrongRequest(f"no length: {text[:40]!r}") from None
    if not 0 <= length <= MAX_BODY_BYTES:
        raise WrongRequest(f"a body of {length} bytes is not taken; at most {MAX_BODY_BYTES} are")
    return length


def _head(response: Response, length: int, *, close: bool) -> bytes:
    lines = [f"HTTP/1.1 {response.status} {HTTPStatus(response.status).phrase}", f"server: {SERVER}"]
    if response.content_type:
        lines.append(f"content-type: {response.content_type}")
    lines += [f"{name}: {value}" for name, value in response.headers]
    lines.append(f"content-length: {length}")
    if close:
        lines.append("connection: close")
    return "\r\n".join([*lines, "", ""]).encode("latin-1")

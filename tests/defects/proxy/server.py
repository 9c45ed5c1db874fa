"""The proxy: forwards every request unchanged, streams and connections included, except for what its defect changes."""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections.abc import AsyncGenerator, AsyncIterator, Iterator, Set
from contextlib import aclosing, contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, ClassVar

import httpx

#: Headers that are about one connection, and those that the proxy writes itself.
HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "te", "upgrade", "expect", "content-length", "host")
#: Seconds between two looks at whether the client is still there.
LOOK_EVERY_S = 0.02
_REASONS = {status.value: status.phrase for status in HTTPStatus}


class ClientGone(Exception):
    """The client closed its connection."""


class JsonBody:
    """A message whose body may be a JSON object."""

    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        """The body as an object; empty where it is not one."""
        try:
            value = json.loads(self.body)
        except ValueError:
            return {}
        return value if isinstance(value, dict) else {}

    @json.setter
    def json(self, value: dict[str, Any]) -> None:
        self.body = json.dumps(value).encode()


@dataclass
class Request(JsonBody):
    """A request as it is forwarded; header names are lower-case."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes
    version: str = "HTTP/1.1"

    @property
    def path(self) -> str:
        """The path without its query."""
        return self.target.partition("?")[0]

    @property
    def generates(self) -> bool:
        """Whether it asks for generated text."""
        return self.method == "POST" and self.path in ("/v1/chat/completions", "/v1/completions")


@dataclass
class Answer(JsonBody):
    """A whole answer, or the head of a stream."""

    status: int
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    version: str = "HTTP/1.1"

    @property
    def is_stream(self) -> bool:
        """Whether events follow."""
        return "event-stream" in self.headers.get("content-type", "")


def refuse(status: int, message: str) -> Answer:
    """An error of the gateway's own, as OpenAI's clients read it."""
    error = {"message": message, "type": _REASONS.get(status, "Error"), "param": None, "code": status}
    return Answer(status, {"content-type": "application/json"}, json.dumps({"error": error}).encode())


class Client:
    """The connection of one client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.requests = 0
        self.last_s = asyncio.get_running_loop().time()

    async def read_head(self) -> tuple[list[str], dict[str, str]]:
        """The request line's parts and the headers.

        Raises:
            ClientGone: no further request comes.
        """
        try:
            head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        except (asyncio.IncompleteReadError, ConnectionError):
            raise ClientGone from None
        first, *lines = head[:-4].split("\r\n")
        return first.split(" "), {
            name.lower(): value.strip() for name, _, value in (one.partition(":") for one in lines)
        }

    async def read_body(self, headers: dict[str, str]) -> bytes:
        """The body, chunked or not."""
        try:
            if "chunked" not in headers.get("transfer-encoding", "").lower():
                return await self.reader.readexactly(int(headers.get("content-length", "0")))
            body = b""
            while size := int((await self.reader.readline()).partition(b";")[0], 16):
                body += await self.reader.readexactly(size)
                await self.reader.readline()
            await self.reader.readline()
        except (asyncio.IncompleteReadError, ConnectionError):
            raise ClientGone from None
        return body

    async def write(self, data: bytes) -> None:
        """Send bytes.

        Raises:
            ClientGone: the client has closed the connection.
        """
        try:
            self.writer.write(data)
            await self.writer.drain()
        except ConnectionError:
            raise ClientGone from None

    async def send_head(self, answer: Answer, framing: dict[str, str]) -> None:
        """Send the status line and the headers."""
        headers = answer.headers | framing
        lines = [f"{name}: {value}" for name, value in headers.items()]
        first = f"{answer.version} {answer.status} {_REASONS.get(answer.status, 'Unknown')}"
        await self.write("\r\n".join([first, *lines, "", ""]).encode("latin-1", "replace"))

    async def send(self, answer: Answer, *, head_only: bool = False) -> None:
        """Send a whole answer."""
        length = answer.headers.get("content-length", str(len(answer.body)))
        await self.send_head(answer, {"content-length": length})
        if not head_only:
            await self.write(answer.body)

    def reset(self) -> None:
        """Drop the connection."""
        self.writer.transport.abort()


@dataclass
class Exchange:
    """One request and what a defect may need to know about it.

    Attributes:
        request: The request.
        client: Its connection.
        number: Its place among all requests.
        idle_s: Seconds since the last request of any client.
        notes: The defect's own.
    """

    request: Request
    client: Client
    number: int
    idle_s: float
    notes: dict[str, Any] = field(default_factory=dict)


class Defect:
    """What a gateway does wrong; this one does nothing.

    The docstring of each defect says what it is.

    Attributes:
        name: Its name.
        by: The checks that must fail.
        says: A regular expression that some message of a failed check must match: the symptom.
        source: A public report of such a defect.
        needs_key: The defect is about credentials.
        slow: It takes half a minute to show.
        limit_s: After how many seconds, where it is about time.
    """

    name: ClassVar[str] = "none"
    by: ClassVar[frozenset[str]] = frozenset()
    says: ClassVar[str] = ""
    source: ClassVar[str] = ""
    needs_key: ClassVar[bool] = False
    slow: ClassVar[bool] = False
    limit_s = 20.0

    def __init_subclass__(
        cls,
        *,
        by: Set[str] = frozenset(),
        says: str = "",
        source: str = "",
        needs_key: bool = False,
        slow: bool = False,
    ) -> None:
        """Take what is known of the defect from the class statement."""
        cls.name = re.sub(r"(?<!^)(?=[A-Z])", "_", cls.__name__).lower()
        cls.by, cls.says, cls.source, cls.needs_key, cls.slow = frozenset(by), says, source, needs_key, slow

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Change the request, or answer it."""
        return None

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Change a whole answer, or the head of a stream."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Change a stream; each event has its blank line."""
        async for event in events:
            yield event

    async def send(self, exchange: Exchange, answer: Answer) -> None:
        """Send a whole answer."""
        await exchange.client.send(answer, head_only=exchange.request.method == "HEAD")

    def copies(self, exchange: Exchange) -> int:
        """How many times the request is sent to the server."""
        return 1

    def continues(self, headers: dict[str, str]) -> bool:
        """Whether ``Expect: 100-continue`` is answered."""
        return True

    def aborts_upstream(self) -> bool:
        """Whether the connection to the server ends with that of the client."""
        return True


class Proxy:
    """The proxy.

    Args:
        upstream: Root of the server.
        defect: What it does wrong.
        key: Asked of every client under ``/v1``, and not forwarded; empty forwards what the client sends.
    """

    def __init__(self, upstream: str, defect: Defect, key: str = "") -> None:
        self._defect, self._key = defect, key
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=64, keepalive_expiry=2.0)
        self._http = httpx.AsyncClient(base_url=upstream, timeout=httpx.Timeout(600.0), trust_env=False, limits=limits)
        self._count = 0
        self._last_s = 0.0
        self._running: set[asyncio.Task[None]] = set()

    async def start(self, host: str, port: int) -> tuple[asyncio.Server, int]:
        """Listen; returns the port."""
        server = await asyncio.start_server(self._serve, host, port, limit=2**20, backlog=1024)
        chosen: int = server.sockets[0].getsockname()[1]
        return server, chosen

    async def close(self) -> None:
        """End every exchange."""
        for task in tuple(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await self._http.aclose()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        client = Client(reader, writer)
        try:
            while await self._serve_one(client):
                pass
        except (ClientGone, httpx.HTTPError, asyncio.CancelledError):
            pass
        finally:
            self._running.discard(task)
            writer.close()

    async def _serve_one(self, client: Client) -> bool:
        """One exchange; returns whether the connection goes on."""
        (method, target, version), headers = await client.read_head()
        if headers.get("expect", "").lower() == "100-continue" and self._defect.continues(headers):
            await client.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        request = Request(method, target, headers, await client.read_body(headers), version)
        now_s = asyncio.get_running_loop().time()
        exchange = Exchange(request, client, self._count, now_s - (self._last_s or now_s))
        self._count += 1
        client.requests += 1
        await self._while_there(client, self._answer(exchange))
        client.last_s = self._last_s = asyncio.get_running_loop().time()
        wanted = headers.get("connection", "").lower()
        keeps = wanted != "close" and (version != "HTTP/1.0" or wanted == "keep-alive")
        return keeps and not exchange.notes.get("closes")

    async def _while_there(self, client: Client, answering: Any) -> None:
        """Answer for as long as the client is there."""
        task = asyncio.ensure_future(answering)
        while not task.done():
            await asyncio.wait([task], timeout=LOOK_EVERY_S)
            if client.reader.at_eof() and not task.done() and self._defect.aborts_upstream():
                task.cancel()
                with suppress(asyncio.CancelledError, ClientGone, httpx.HTTPError):
                    await task
                raise ClientGone
        await task

    async def _answer(self, exchange: Exchange) -> None:
        request = exchange.request
        if self._key and not self._lets_pass(request):
            await self._reply(exchange, refuse(401, "invalid API key"))
            return
        early = await self._defect.on_request(exchange)
        if early is not None:
            await self._defect.send(exchange, early)
            return
        headers = {name: value for name, value in request.headers.items() if name not in HOP_BY_HOP}
        if self._key:
            headers.pop("authorization", None)

        async def send(*, stream: bool) -> httpx.Response:
            sent = self._http.build_request(request.method, request.target, headers=headers, content=request.body)
            return await self._http.send(sent, stream=stream)

        for _ in range(self._defect.copies(exchange) - 1):
            await send(stream=False)
        response = await send(stream=True)
        try:
            await self._relay(exchange, response)
        finally:
            await response.aclose()

    def _lets_pass(self, request: Request) -> bool:
        is_guarded = request.path.startswith("/v1") and request.method != "OPTIONS"
        return not is_guarded or request.headers.get("authorization") == f"Bearer {self._key}"

    async def _relay(self, exchange: Exchange, response: httpx.Response) -> None:
        headers = {name.lower(): value for name, value in response.headers.items() if name.lower() not in HOP_BY_HOP}
        answer = Answer(response.status_code, headers)
        if not answer.is_stream:
            answer.body = b"".join([piece async for piece in response.aiter_raw()])
            await self._reply(exchange, answer)
            return
        await self._defect.on_answer(exchange, answer)
        chunked = answer.version == exchange.request.version == "HTTP/1.1"
        exchange.notes["closes"] = exchange.notes.get("closes") or not chunked
        framing = {"transfer-encoding": "chunked"} if chunked else {"connection": "close"}
        await exchange.client.send_head(answer, framing)
        # Closed at once, so that a defect that reads on does so before the connection to the server ends.
        async with aclosing(self._defect.on_stream(exchange, _events(response))) as pieces:
            async for piece in pieces:
                if piece:
                    await exchange.client.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
        if chunked:
            await exchange.client.write(b"0\r\n\r\n")

    async def _reply(self, exchange: Exchange, answer: Answer) -> None:
        await self._defect.on_answer(exchange, answer)
        await self._defect.send(exchange, answer)


async def _events(response: httpx.Response) -> AsyncIterator[bytes]:
    pending = b""
    async for piece in response.aiter_raw():
        pending += piece
        *events, pending = pending.split(b"\n\n")
        for event in events:
            yield event + b"\n\n"
    if pending:
        yield pending


@contextmanager
def running_proxy(upstream: str, defect: Defect, *, key: str = "", port: int = 0) -> Iterator[str]:
    """Run the proxy in a thread; yields its URL."""
    started, stopped = threading.Event(), asyncio.Event()
    ports: list[int] = []
    loops: list[asyncio.AbstractEventLoop] = []

    async def serve() -> None:
        proxy = Proxy(upstream, defect, key)
        server, chosen = await proxy.start("127.0.0.1", port)
        ports.append(chosen)
        loops.append(asyncio.get_running_loop())
        started.set()
        await stopped.wait()
        server.close()
        await proxy.close()

    thread = threading.Thread(target=lambda: asyncio.run(serve()), daemon=True)
    thread.start()
    if not started.wait(60):
        raise RuntimeError("the proxy did not start in 60 s")
    try:
        yield f"http://127.0.0.1:{ports[0]}"
    finally:
        loops[0].call_soon_threadsafe(stopped.set)
        thread.join(10)

"""Keep-alive connections to one server: an idle one is always available, so that no request waits for a handshake."""

from __future__ import annotations

import asyncio
import socket
import ssl
import time
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol, cast
from urllib.parse import urlsplit

from pytest_vllm_stage.core.errors import ConfigError

#: Idle connections are closed after this time: uvicorn, and vLLM with it, closes them after 5 s.
IDLE_LIMIT_S = 4.0
#: Idle connections kept in reserve.
SPARE = 4
_UPKEEP_INTERVAL_S = 0.5


@dataclass(frozen=True)
class Address:
    """The server's address, parsed once.

    Attributes:
        host: Name or address.
        port: TCP port.
        tls: Speaks TLS; its certificate is verified against ``host``.
        prefix: Path in front of ``/v1``.
        ca_file: PEM file of the trusted authorities; None trusts the system's.
    """

    host: str
    port: int
    tls: bool
    prefix: str = ""
    ca_file: str | None = None

    @property
    def authority(self) -> str:
        """For the Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


def parse_address(url: str, ca_file: str | None = None) -> Address:
    """Parse a base URL.

    Raises:
        ConfigError: it is not an http or https URL of a host.
    """
    parts = urlsplit(url)
    try:
        port = parts.port
    except ValueError:
        port = -1
    if parts.scheme not in ("http", "https") or not parts.hostname or port == -1 or parts.username:
        raise ConfigError(f"{url!r} is not the URL of a server; it has the form http[s]://host[:port]")
    tls = parts.scheme == "https"
    return Address(parts.hostname, port or (443 if tls else 80), tls, parts.path.rstrip("/"), ca_file)


class Carried(Protocol):
    """What a connection carries: it receives the bytes of one response.

    Attributes:
        keep_alive: The connection may carry another request after this one.
    """

    @property
    def keep_alive(self) -> bool: ...

    def received(self, data: bytes, at_s: float) -> bool:
        """Take bytes; true when the response is complete and the connection free for the next one."""

    def lost(self, at_s: float, reason: str) -> None:
        """The connection is gone before the response was complete."""


class LoadConnection(asyncio.Protocol):
    """One connection, which carries one exchange at a time."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool
        self._transport: asyncio.Transport | None = None
        self._carried: Carried | None = None
        self.idle_since_s = 0.0
        self.used = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keep the transport."""
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Hand bytes over with the time at which they were read."""
        at_s = time.perf_counter()
        carried = self._carried
        if carried is None:
            self.close()
        elif carried.received(data, at_s):
            self._carried = None
            if carried.keep_alive:
                self._pool.give_back(self)
            else:
                self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        """Notify the exchange, if one is in progress."""
        self._transport = None
        self._pool.forget(self)
        carried, self._carried = self._carried, None
        if carried is not None:
            carried.lost(time.perf_counter(), f"{type(exc).__name__}: {exc}" if exc else "closed by the server")

    @property
    def open(self) -> bool:
        """Whether it can carry a request."""
        return self._transport is not None and not self._transport.is_closing()

    def send(self, data: bytes, carried: Carried) -> float:
        """Send a request; the time at which its bytes were handed over."""
        assert self._transport is not None  # noqa: S101 - callers look at `open`
        self._carried = carried
        self.used = True
        self._transport.write(data)
        return time.perf_counter()

    def close(self) -> None:
        """Close it; an exchange in progress is not notified."""
        self._carried = None
        if self._transport is not None:
            self._transport.abort()


@dataclass
class Pool:
    """The connections to one server.

    Attributes:
        address: The server.
        opened: Connections opened so far.
        fresh: Each request opens a connection of its own, as separate clients do; none is kept.
    """

    address: Address
    opened: int = 0
    fresh: bool = False
    _host: str = ""
    _idle: list[LoadConnection] = field(default_factory=list)
    _tasks: set[asyncio.Task[None]] = field(default_factory=set)
    _opening: int = 0
    _context: ssl.SSLContext | None = None
    _closed: bool = False

    def __post_init__(self) -> None:
        if self.address.tls:
            self._context = ssl.create_default_context(cafile=self.address.ca_file)

    async def connect(self) -> LoadConnection:
        """A new connection.

        Raises:
            OSError: no connection could be made; this includes a failed certificate check.
        """
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: LoadConnection(self),
            self._host or self.address.host,
            self.address.port,
            ssl=self._context,
            server_hostname=self.address.host if self._context else None,
        )
        self.opened += 1
        return connection

    def idle(self) -> LoadConnection | None:
        """An idle connection that is not too old; None where there is none."""
        now_s = time.perf_counter()
        while self._idle:
            connection = self._idle.pop()
            if connection.open and now_s - connection.idle_since_s < IDLE_LIMIT_S:
                return connection
            connection.close()
        return None

    def give_back(self, connection: LoadConnection) -> None:
        """The connection is free again."""
        if self._closed or self.fresh or not connection.open:
            connection.close()
            return
        connection.idle_since_s = time.perf_counter()
        self._idle.append(connection)

    def forget(self, connection: LoadConnection) -> None:
        """The connection is closed."""
        if connection in self._idle:
            self._idle.remove(connection)

    def top_up(self, spare: int = SPARE) -> None:
        """Open connections in the background until that many are idle."""
        if self.fresh:
            return
        for _ in range(spare - len(self._idle) - self._opening):
            self._opening += 1
            self.spawn(self._open_one())

    def spawn(self, coroutine: Coroutine[Any, Any, None]) -> None:
        """Run a coroutine and keep a reference to its task."""
        task = asyncio.get_running_loop().create_task(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _open_one(self) -> None:
        try:
            self.give_back(await self.connect())
        except OSError:
            await asyncio.sleep(_UPKEEP_INTERVAL_S)  # the next request fails in the same way and reports it
        finally:
            self._opening -= 1

    async def resolve(self) -> None:
        """Look the name up once and stay with the first address that answers: no request waits for name resolution."""
        loop = asyncio.get_running_loop()
        try:
            found = await loop.getaddrinfo(self.address.host, self.address.port, type=socket.SOCK_STREAM)
        except OSError:
            return  # every request will fail in the same way and report it
        for *_, where in found:
            self._host = str(where[0])
            try:
                self.give_back(await self.connect())
            except OSError:
                continue
            return

    async def warm(self, count: int) -> None:
        """Open this many idle connections before they are needed; requests report the failures."""
        if self.fresh:
            return
        made = await asyncio.gather(*(self.connect() for _ in range(count)), return_exceptions=True)
        for connection in made:
            if isinstance(connection, LoadConnection):
                self.give_back(connection)
            elif not isinstance(connection, OSError):
                raise connection

    def upkeep(self) -> None:
        """Close connections that the server is about to close, and refill the reserve; to be called twice a second."""
        now_s = time.perf_counter()
        old = [connection for connection in self._idle if now_s - connection.idle_since_s >= IDLE_LIMIT_S]
        for connection in old:
            self._idle.remove(connection)
            connection.close()
        self.top_up()

    async def close(self) -> None:
        self._closed = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for connection in self._idle:
            connection.close()
        self._idle.clear()
        await asyncio.sleep(0)

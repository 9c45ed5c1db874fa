"""A SOCKS5 proxy on loopback (RFC 1928, with a user and a password by RFC 1929), which alone knows some names."""

from __future__ import annotations

import contextlib
import socket
import socketserver
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import cast

Address = tuple[str, int]
_NO_CREDENTIALS, _PASSWORD = 0, 2
_CONNECT, _NAME = 1, 3


class SocksServer(socketserver.ThreadingTCPServer):
    """The proxy.

    Args:
        names: Host and port, as clients ask for them, to the address to connect to.
        user: Whom it accepts; empty for everyone.
        password: The user's.

    Attributes:
        asked: The hosts and ports that clients asked for.
    """

    daemon_threads = True

    def __init__(self, names: Mapping[Address, Address], user: str = "", password: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Client)
        self.names = names
        self.credentials = (user, password) if user else None
        self.asked: list[Address] = []
        self.port = int(self.server_address[1])


class _Client(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        proxy = cast(SocksServer, self.server)
        if not self._authenticate(proxy.credentials):
            return
        _, command, _, kind = self.rfile.read(4)
        assert (command, kind) == (_CONNECT, _NAME), "a client that resolves names itself"
        host = self._read_text()
        asked = (host, int.from_bytes(self.rfile.read(2), "big"))
        proxy.asked.append(asked)
        with socket.create_connection(proxy.names[asked], 10) as far:
            far.settimeout(None)
            self.wfile.write(bytes((5, 0, 0, 1, 0, 0, 0, 0, 0, 0)))
            thread = threading.Thread(target=_pass_on, args=(far, self.connection), daemon=True)
            thread.start()
            _pass_on(self.connection, far)
            thread.join()

    def _authenticate(self, credentials: tuple[str, str] | None) -> bool:
        offered = self.rfile.read(self.rfile.read(2)[1])
        method = _PASSWORD if credentials else _NO_CREDENTIALS
        assert method in offered
        self.wfile.write(bytes((5, method)))
        if credentials is None:
            return True
        self.rfile.read(1)
        accepted = (self._read_text(), self._read_text()) == credentials
        self.wfile.write(bytes((1, 0 if accepted else 1)))
        return accepted

    def _read_text(self) -> str:
        return self.rfile.read(self.rfile.read(1)[0]).decode()


def _pass_on(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while piece := source.recv(65536):
            sink.sendall(piece)
    with contextlib.suppress(OSError):
        sink.shutdown(socket.SHUT_WR)


@contextmanager
def socks_server(names: Mapping[Address, Address], user: str = "", password: str = "") -> Iterator[SocksServer]:
    """A proxy until the end of the block."""
    server = SocksServer(names, user, password)
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()

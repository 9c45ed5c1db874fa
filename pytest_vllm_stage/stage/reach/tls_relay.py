"""TLS over a forwarded connection: the near side speaks plain TCP on this machine, the far side is verified."""

from __future__ import annotations

import contextlib
import select
import socket
import ssl
import threading
from collections.abc import Callable
from typing import TypeVar

from pytest_vllm_stage.core.certificate_errors import explain_refused_chain, read_certificate
from pytest_vllm_stage.core.errors import EnvironmentUnusable

T = TypeVar("T")
#: Joins one end of a socket pair to the server.
Opener = Callable[[socket.socket], object]
_PIECE_BYTES = 65536
_HANDSHAKE_TIMEOUT_S = 15.0


def connect_secure(opener: Opener, server_name: str, ca_file: str | None, show: str) -> ssl.SSLSocket:
    """A verified TLS connection to a server behind a tunnel.

    Args:
        opener: Opens a tunnel.
        server_name: Sent as the server's name, and expected in its certificate.
        ca_file: The authorities that are trusted; None for the system's.
        show: A command that shows the certificate, for the error.

    Raises:
        EnvironmentUnusable: the certificate is refused, or the server speaks no TLS.
        OSError: the tunnel was closed.
    """
    context = ssl.create_default_context(cafile=ca_file)
    plain = _open(opener)
    try:
        secure = context.wrap_socket(plain, server_hostname=server_name)
    except ssl.SSLEOFError:
        plain.close()
        raise
    except ssl.SSLError as error:
        plain.close()
        found = None
        if isinstance(error, ssl.SSLCertVerificationError):
            with contextlib.suppress(OSError), _open(opener) as again:
                found = read_certificate(again, server_name)
        refused = explain_refused_chain(error, found, server_name, show, ca_file)
        raise EnvironmentUnusable(refused.reason, hint=refused.hint) from None
    except OSError:
        plain.close()
        raise
    secure.settimeout(None)
    return secure


def relay(near: socket.socket, far: ssl.SSLSocket) -> None:
    """Pass bytes in both directions, in two threads of their own, until either side closes; both are closed then."""
    end = _SecureEnd(far)
    near.setblocking(True)

    def send() -> None:
        with contextlib.suppress(OSError):
            while piece := near.recv(_PIECE_BYTES):
                end.send_all(piece)
        _shut(near, far)

    def receive() -> None:
        with contextlib.suppress(OSError):
            while piece := end.receive():
                near.sendall(piece)
        _shut(near, far)

    threads = [threading.Thread(target=one, daemon=True) for one in (send, receive)]

    def close_both() -> None:
        for one in threads:
            one.join()
        near.close()
        far.close()

    for thread in (*threads, threading.Thread(target=close_both, daemon=True)):
        thread.start()


def _open(opener: Opener) -> socket.socket:
    ours, theirs = socket.socketpair()
    ours.settimeout(_HANDSHAKE_TIMEOUT_S)
    try:
        opener(theirs)
    except BaseException:
        ours.close()
        theirs.close()
        raise
    return ours


def _shut(*ends: socket.socket) -> None:
    """Wake the other direction's thread."""
    for end in ends:
        with contextlib.suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


class _SecureEnd:
    """A TLS connection that one thread reads and another writes: OpenSSL allows one call at a time."""

    def __init__(self, secure: ssl.SSLSocket) -> None:
        self._secure = secure
        self._lock = threading.Lock()
        secure.setblocking(False)

    def receive(self) -> bytes:
        """The next bytes; none at the end."""
        return self._retry(lambda: self._secure.recv(_PIECE_BYTES))

    def send_all(self, content: bytes) -> None:
        while content:
            part = content
            content = content[self._retry(lambda part=part: self._secure.send(part)) :]  # type: ignore[misc]

    def _retry(self, act: Callable[[], T]) -> T:
        """Call it until it needs no more of the connection; the other thread works while this one waits."""
        while True:
            try:
                with self._lock:
                    return act()
            except ssl.SSLWantReadError:
                select.select([self._secure], [], [])
            except ssl.SSLWantWriteError:
                select.select([], [self._secure], [])

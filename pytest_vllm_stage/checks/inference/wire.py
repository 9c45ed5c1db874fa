"""HTTP as other clients write it: one request over a socket of its own, byte by byte as it is given."""

from __future__ import annotations

import http.client
import json
import select
import socket
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from pytest_vllm_stage.serving.client import CONNECT_TIMEOUT_S, SILENCE_TIMEOUT_S
from pytest_vllm_stage.serving.target import Target

#: Seconds that curl waits for ``100 Continue`` before it sends the body unasked, and a margin for a busy machine.
CONTINUE_TIMEOUT_S = 5.0
#: What a connection that buffers little asks of the kernel.
RECEIVE_BUFFER_BYTES, SEGMENT_BYTES = 4096, 536
#: Seconds between the two parts of a body that is sent in parts.
PAUSE_S = 0.5


@dataclass(frozen=True)
class HttpVariant:
    """How a request is written.

    Attributes:
        version: In the request line.
        write_name: Writes a header's name.
        content_type: Of the body.
        headers: Further headers.
        expects: The body waits for ``100 Continue``.
        in_parts: The body is sent in two parts with a pause between them.
    """

    version: str = "HTTP/1.1"
    write_name: Any = str.title
    content_type: str = "application/json"
    headers: Mapping[str, str] | None = None
    expects: bool = False
    in_parts: bool = False


HTTP_VARIANTS: dict[str, HttpVariant] = {
    "HTTP/1.0": HttpVariant(version="HTTP/1.0"),
    "lower-case header names": HttpVariant(write_name=str.lower),
    "upper-case header names": HttpVariant(write_name=str.upper),
    "content type with a charset": HttpVariant(content_type="application/json; charset=utf-8"),
    "headers of 4 KiB": HttpVariant(headers={f"x-trace-{number}": "0123456789abcdef" * 16 for number in range(16)}),
    "Expect: 100-continue, awaited": HttpVariant(headers={"expect": "100-continue"}, expects=True),
    "body in two parts": HttpVariant(in_parts=True),
}
#: An open refusal of HTTP/1.0, which a server need not speak: Envoy does so by default.
REFUSES_VERSION = (426, 505)


class WireFailed(AssertionError):
    """A request got no usable answer."""


@dataclass(frozen=True)
class WireAnswer:
    """What came back.

    Attributes:
        status: The HTTP status.
        headers: By lower-case name.
        body: The whole body.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body's JSON.

        Raises:
            WireFailed: it is none.
        """
        try:
            return json.loads(self.body)
        except ValueError:
            raise WireFailed(f"answered {self.status}, but not with JSON: {self.body[:200]!r}") from None


class WireConnection:
    """One connection to a target.

    Args:
        target: The served model.
        buffers_little: Neither side holds much more than 100 KiB unread, so that a slow reader is noticed.

    Raises:
        OSError: there is no connection.
    """

    def __init__(self, target: Target, *, buffers_little: bool = False) -> None:
        url = urlsplit(target.base_url)
        secure = url.scheme == "https"
        plain = _connect(url.hostname or "", url.port or (443 if secure else 80), buffers_little=buffers_little)
        plain.settimeout(SILENCE_TIMEOUT_S)
        self._socket = (
            ssl.create_default_context(cafile=target.ca_file).wrap_socket(plain, server_hostname=url.hostname)
            if secure
            else plain
        )
        self._host, self._prefix, self._key = url.netloc.rpartition("@")[2], url.path.rstrip("/"), target.api_key

    def __enter__(self) -> WireConnection:
        return self

    def __exit__(self, *_error: object) -> None:
        self._socket.close()

    @property
    def is_closed(self) -> bool:
        """Whether the other side has closed the connection."""
        readable, _, _ = select.select([self._socket], [], [], 0)
        return bool(readable)

    def post(self, path: str, body: dict[str, Any], variant: HttpVariant) -> WireAnswer:
        """Send one request and read its answer.

        Raises:
            WireFailed: there is none.
        """
        try:
            self._send(*self._request(path, body, variant), variant)
            response = self._response()
            return WireAnswer(response.status, _headers(response), response.read())
        except (OSError, http.client.HTTPException) as error:
            raise WireFailed(f"no answer: {type(error).__name__}: {error}") from None

    def begin(self, path: str, body: dict[str, Any]) -> None:
        """Send one request, and read nothing of its answer.

        Raises:
            WireFailed: it could not be sent.
        """
        try:
            self._send(*self._request(path, body, HttpVariant()), HttpVariant())
        except OSError as error:
            raise WireFailed(f"the request could not be sent: {type(error).__name__}: {error}") from None

    def open_stream(self, path: str, body: dict[str, Any]) -> Iterator[bytes]:
        """The lines of a streamed answer, each read when it is asked for.

        Raises:
            WireFailed: there is none, or it ends before its end.
        """
        try:
            self._send(*self._request(path, body, HttpVariant()), HttpVariant())
            response = self._response()
            if response.status != http.HTTPStatus.OK:
                raise WireFailed(f"answered {response.status}: {response.read()[:300]!r}")
            while line := response.readline():
                yield line
        except (OSError, http.client.HTTPException) as error:
            raise WireFailed(f"the stream was cut: {type(error).__name__}: {error}") from None

    def _request(self, path: str, body: dict[str, Any], variant: HttpVariant) -> tuple[bytes, bytes]:
        """Head and body."""
        content = json.dumps(body).encode()
        headers = {"host": self._host, "content-type": variant.content_type, "content-length": str(len(content))}
        headers |= {"authorization": f"Bearer {self._key.reveal()}"} if self._key else {}
        headers |= variant.headers or {}
        lines = [f"POST {self._prefix}{path} {variant.version}"]
        lines += [f"{variant.write_name(name)}: {value}" for name, value in headers.items()]
        return "\r\n".join([*lines, "", ""]).encode("latin-1"), content

    def _send(self, head: bytes, content: bytes, variant: HttpVariant) -> None:
        parts: Sequence[bytes] = [content]
        if variant.in_parts:
            parts = [content[: len(content) // 2], content[len(content) // 2 :]]
        self._socket.sendall(head)
        if variant.expects:
            self._await_continue()
        for place, part in enumerate(parts):
            time.sleep(PAUSE_S if place else 0)
            self._socket.sendall(part)

    def _await_continue(self) -> None:
        """Leave the interim answer unread: `http.client` skips it."""
        readable, _, _ = select.select([self._socket], [], [], CONTINUE_TIMEOUT_S)
        if not readable:
            raise WireFailed(
                f"Expect: 100-continue got no interim answer in {CONTINUE_TIMEOUT_S:g} s; curl waits 1 s with each "
                "large body, other clients for ever"
            )

    def _response(self) -> http.client.HTTPResponse:
        response = http.client.HTTPResponse(self._socket, method="POST")
        response.begin()
        return response


def _headers(response: http.client.HTTPResponse) -> dict[str, str]:
    return {name.lower(): value for name, value in response.getheaders()}


def _connect(host: str, port: int, *, buffers_little: bool) -> socket.socket:
    """A connection; small segments keep the server's send buffer small, which grows with their size."""
    if not buffers_little:
        return socket.create_connection((host, port), CONNECT_TIMEOUT_S)
    last: OSError | None = None
    for family, kind, protocol, _, address in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        connection = socket.socket(family, kind, protocol)
        try:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, RECEIVE_BUFFER_BYTES)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES)
            connection.settimeout(CONNECT_TIMEOUT_S)
            connection.connect(address)
        except OSError as error:
            connection.close()
            last = error
        else:
            return connection
    raise last or OSError(f"{host} has no address")

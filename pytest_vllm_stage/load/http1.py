"""The part of HTTP/1.1 that a load driver reads: consecutive responses, in pieces of any size."""

from __future__ import annotations

MAX_HEAD_BYTES = 64 * 1024


class ProtocolError(Exception):
    """The bytes are not an HTTP/1.1 response."""


class ResponseParser:
    """Parses bytes and returns the body's bytes without the transfer coding.

    Attributes:
        status: HTTP status; 0 until the head is complete.
        headers: Lower-case names.
        complete: The whole response was received.
        keep_alive: The connection may carry another request.
    """

    __slots__ = ("_buffer", "_chunked", "_left", "_until_close", "complete", "headers", "keep_alive", "status")

    def __init__(self) -> None:
        self.status = 0
        self.headers: dict[bytes, bytes] = {}
        self.complete = False
        self.keep_alive = True
        self._buffer = b""
        self._chunked = False
        self._until_close = False
        self._left = 0

    @property
    def begun(self) -> bool:
        """At least one byte of the response came."""
        return bool(self.status or self._buffer)

    def feed(self, data: bytes) -> bytes:
        """The body bytes in this piece.

        Raises:
            ProtocolError: naming what is wrong.
        """
        if self.complete:
            raise ProtocolError(f"{len(data)} bytes after the response's end")
        if not self.status:
            data = self._head(self._buffer + data)
            if not self.status:
                return b""
        if self._chunked:
            return self._chunks(data)
        if self._until_close:
            return data
        if len(data) > self._left:
            raise ProtocolError("the body is longer than its content-length")
        self._left -= len(data)
        self.complete = self._left == 0
        return data

    def closed(self) -> bool:
        """The connection ended; return whether this completes the response."""
        if self._until_close and not self.complete:
            self.complete = True
        return self.complete

    def _head(self, data: bytes) -> bytes:
        """Take the head off; what is left belongs to the body."""
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > MAX_HEAD_BYTES:
                raise ProtocolError("the response's head does not end")
            self._buffer = data
            return b""
        self._buffer = b""
        first, *lines = data[:end].split(b"\r\n")
        parts = first.split(b" ", 2)
        if not first.startswith(b"HTTP/1.") or len(parts) < 2 or not parts[1].isdigit():
            raise ProtocolError(f"not a status line: {first[:80]!r}")
        rest = data[end + 4 :]
        if parts[1].startswith(b"1"):
            return self._head(rest)
        self.status = int(parts[1])
        pairs = (line.partition(b":") for line in lines)
        self.headers = {name.strip().lower(): value.strip() for name, _, value in pairs}
        self._frame(parts[0])
        return rest

    def _frame(self, version: bytes) -> None:
        """Find out how the body ends."""
        connection = self.headers.get(b"connection", b"").lower()
        self.keep_alive = connection != b"close" if version != b"HTTP/1.0" else connection == b"keep-alive"
        self._chunked = b"chunked" in self.headers.get(b"transfer-encoding", b"").lower()
        length = self.headers.get(b"content-length")
        if self._chunked:
            return
        if length is None:
            self._until_close = self.status not in (204, 304)
            self.keep_alive = self.keep_alive and not self._until_close
            self.complete = not self._until_close
            return
        if not length.isdigit():
            raise ProtocolError(f"content-length {length[:40]!r}")
        self._left = int(length)
        self.complete = self._left == 0

    def _chunks(self, data: bytes) -> bytes:
        """Decode the chunks that are whole; an open one waits in the buffer."""
        data = self._buffer + data if self._buffer else data
        position, pieces = 0, []
        while not self.complete:
            end = data.find(b"\r\n", position)
            if end < 0:
                break
            size = _chunk_size(data[position:end])
            if size == 0:
                trailer_end = data.find(b"\r\n\r\n", end)
                if trailer_end < 0:
                    break
                position, self.complete = trailer_end + 4, True
                break
            if len(data) < end + size + 4:
                break
            pieces.append(data[end + 2 : end + 2 + size])
            position = end + size + 4
        self._buffer = data[position:]
        if self.complete and self._buffer:
            raise ProtocolError(f"{len(self._buffer)} bytes after the response's end")
        return b"".join(pieces)


def _chunk_size(line: bytes) -> int:
    text = line.partition(b";")[0].strip()
    try:
        size = int(text, 16)
    except ValueError:
        raise ProtocolError(f"not a chunk size: {text[:40]!r}") from None
    if size < 0:
        raise ProtocolError(f"not a chunk size: {text[:40]!r}")
    return size

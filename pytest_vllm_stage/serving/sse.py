"""Server-sent events as the WHATWG specification reads them, fed in pieces of any size, each with its arrival time.

Two things are stricter than in a browser, since a check must see what a browser tolerates: bytes that are not UTF-8
raise, and an incomplete event at the end of the stream stays visible.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_LINE_END = re.compile(rb"\r\n|\n|\r")
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


class NotUtf8(ValueError):
    """A line of the stream is not UTF-8: a hop truncated or re-encoded the text."""


@dataclass(frozen=True, slots=True)
class ServerSentEvent:
    """One dispatched event.

    Attributes:
        data: The data lines, joined by newlines.
        type: The event's type, ``message`` unless the stream names one.
        id: The last event id so far.
        raw: The event's lines as received, comments included, without the terminating blank line.
        arrived_at: ``time.perf_counter()`` when the piece that completed the event was read.
    """

    data: str
    type: str
    id: str
    raw: str
    arrived_at: float


class Parser:
    """Parses pieces of a stream into events; a piece may end anywhere, even inside a character or a CRLF."""

    def __init__(self) -> None:
        self._pending = b""
        self._after_cr = False
        self._at_start = True
        self._id = ""
        self._lines: list[str] = []
        self._data: list[str] = []
        self._type = ""

    @property
    def unfinished(self) -> str:
        """What was received after the last complete event; a browser would drop it silently."""
        return "\n".join([*self._lines, self._pending.decode(errors="replace")]).strip("\n")

    def feed(self, piece: bytes, arrived_at: float) -> list[ServerSentEvent]:
        """The events that this piece completes.

        Raises:
            NotUtf8: a line is not UTF-8; the message shows its bytes.
        """
        if self._after_cr and piece:
            piece = piece.removeprefix(b"\n")
            self._after_cr = False
        events = []
        for line in self._complete_lines(piece):
            event = self._take(line, arrived_at)
            if event is not None:
                events.append(event)
        return events

    def _complete_lines(self, piece: bytes) -> list[str]:
        if not piece:
            return []
        *lines, self._pending = _LINE_END.split(self._pending + piece)
        self._after_cr = piece.endswith(b"\r")
        if self._at_start and lines:
            lines[0] = lines[0].removeprefix(_BYTE_ORDER_MARK)
            self._at_start = False
        return [_decode(line) for line in lines]

    def _take(self, line: str, arrived_at: float) -> ServerSentEvent | None:
        if not line:
            return self._dispatch(arrived_at)
        self._lines.append(line)
        field, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if field == "data":
            self._data.append(value)
        elif field == "event":
            self._type = value
        elif field == "id" and "\0" not in value:
            self._id = value
        return None

    def _dispatch(self, arrived_at: float) -> ServerSentEvent | None:
        lines, data, type_ = self._lines, self._data, self._type
        self._lines, self._data, self._type = [], [], ""
        if not data:
            return None
        return ServerSentEvent("\n".join(data), type_ or "message", self._id, "\n".join(lines), arrived_at)


def _decode(line: bytes) -> str:
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        raise NotUtf8(f"byte {error.start} of the line {line[:200]!r} is not UTF-8") from None

"""A streamed response as it arrives: an iterator of timed events that raises when the stream breaks."""

from __future__ import annotations

import time
from collections.abc import Iterator

import httpx

from pytest_vllm_stage.serving.answers import DONE, StreamedAnswer, chunk_of
from pytest_vllm_stage.serving.failures import StreamBroken, shown
from pytest_vllm_stage.serving.sse import NotUtf8, Parser, ServerSentEvent


class Stream:
    """The events of one streamed answer; iterate it inside a ``with`` block, or `read` it as a whole.

    Args:
        response: The open response, status already checked.
        what: The request in words, for errors.
        sent_at: ``time.perf_counter()`` when the request was sent.
    """

    def __init__(self, response: httpx.Response, what: str, sent_at: float) -> None:
        self.response = response
        self.sent_at = sent_at
        self.headers_at = time.perf_counter()
        self.ended_at: float | None = None
        self._what = what
        self._parser = Parser()
        self._seen = 0
        self._last = ""

    def __enter__(self) -> Stream:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; before the end of the stream, the server sees a client that disconnected."""
        self.response.close()

    def __iter__(self) -> Iterator[ServerSentEvent]:
        """Each event as it arrives, ``[DONE]`` included.

        Raises:
            StreamBroken: the connection was cut, a byte is not UTF-8, or the server sent an error as an event.
        """
        __tracebackhide__ = True
        for piece in self._pieces():
            for event in self._parse(piece):
                self._seen += 1
                self._last = event.raw
                self._check(event)
                yield event
        self.ended_at = time.perf_counter()

    def read(self) -> StreamedAnswer:
        """Read to the end, close, and assemble the answer.

        Raises:
            StreamBroken: as for iteration, or an event is not JSON.
        """
        __tracebackhide__ = True
        with self:
            events = list(self)
        ended_at = self.ended_at or time.perf_counter()
        return StreamedAnswer.of(events, sent_at=self.sent_at, ended_at=ended_at, unfinished=self._parser.unfinished)

    def _pieces(self) -> Iterator[bytes]:
        __tracebackhide__ = True
        try:
            yield from self.response.iter_bytes()
        except httpx.HTTPError as error:
            raise self._broken(f"was cut: {error or type(error).__name__}") from None

    def _parse(self, piece: bytes) -> list[ServerSentEvent]:
        try:
            return self._parser.feed(piece, time.perf_counter())
        except NotUtf8 as error:
            raise self._broken(f"carries text that is not UTF-8: {error}") from None

    def _check(self, event: ServerSentEvent) -> None:
        """An error sent as an event is a failure, whatever the status was."""
        if event.data == DONE or '"error"' not in event.data:
            return
        chunk = chunk_of(event)
        if chunk.get("error") or chunk.get("object") == "error":
            raise self._broken("carries an error inside its 200")

    def _broken(self, how: str) -> StreamBroken:
        last = f"; last event: {shown(self._last)}" if self._last else ""
        elapsed_s = time.perf_counter() - self.sent_at
        return StreamBroken(
            f"the stream of {self._what} {how}\n  after {self._seen} events and {elapsed_s:.2f} s{last}",
            status=self.response.status_code,
            body=self._last,
        )

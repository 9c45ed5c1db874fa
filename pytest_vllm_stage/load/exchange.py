"""One request and its streamed answer, from the schedule to the sample."""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pytest_vllm_stage.load.answer import EventSplitter, TimedAnswer, shown
from pytest_vllm_stage.load.connections import LoadConnection, Pool
from pytest_vllm_stage.load.http1 import ProtocolError, ResponseParser
from pytest_vllm_stage.measurement.samples import Failure, Sample
from pytest_vllm_stage.measurement.step import LoadStep

_MOST_ERROR_BYTES = 4096


@dataclass(frozen=True)
class Outgoing:
    """What every exchange of a step has in common.

    Attributes:
        step: The plan.
        pool: Connections to the server.
        head: Request line and headers without the content length.
        zero_s: ``perf_counter`` at the step's start.
        finished: Called once per exchange, with its sample.
    """

    step: LoadStep
    pool: Pool
    head: bytes
    zero_s: float
    finished: Callable[[Sample], None]

    def request(self, body: bytes) -> bytes:
        """The bytes of a request."""
        return b"%bcontent-length: %d\r\n\r\n%b" % (self.head, len(body), body)


class Exchange:
    """One request in progress.

    Args:
        outgoing: What it shares with the others.
        index: Its place in the schedule.
        body: The JSON to send.
        scheduled_s: ``perf_counter`` at which it should be sent.
    """

    __slots__ = (
        "_answer",
        "_body",
        "_connection",
        "_error_body",
        "_events",
        "_index",
        "_may_resend",
        "_out",
        "_over",
        "_resent",
        "_response",
        "_scheduled_s",
        "_sent_s",
        "_timeout",
    )

    def __init__(self, outgoing: Outgoing, index: int, body: bytes, scheduled_s: float) -> None:
        self._out = outgoing
        self._index = index
        self._body = body
        self._scheduled_s = scheduled_s
        self._sent_s: float | None = None
        self._answer = TimedAnswer()
        self._events = EventSplitter()
        self._response = ResponseParser()
        self._error_body = b""
        self._connection: LoadConnection | None = None
        self._may_resend = False
        self._resent = False
        self._over = False
        self._timeout: asyncio.TimerHandle | None = None

    def start(self, now_s: float) -> None:
        """Send it, at once where a connection is idle."""
        loop = asyncio.get_running_loop()
        left_s = self._out.step.request_timeout_s - (now_s - self._scheduled_s)
        self._timeout = loop.call_later(max(0.0, left_s), self._timed_out)
        connection = self._out.pool.idle()
        if connection is None:
            self._out.pool.spawn(self._connect())
        else:
            self._send(connection)
        self._out.pool.top_up()  # after the bytes are out: opening a spare one takes time

    @property
    def keep_alive(self) -> bool:
        """Whether the connection may be used again."""
        return self._response.keep_alive

    async def _connect(self) -> None:
        try:
            connection = await self._out.pool.connect()
        except OSError as error:
            self._finish(time.perf_counter(), Failure("connection", f"{type(error).__name__}: {error}"))
            return
        if self._over:
            self._out.pool.give_back(connection)
        else:
            self._send(connection)

    def _send(self, connection: LoadConnection) -> None:
        self._may_resend = connection.used and not self._resent
        self._connection = connection
        sent_s = connection.send(self._out.request(self._body), self)
        if self._sent_s is None:
            self._sent_s = sent_s

    def received(self, data: bytes, at_s: float) -> bool:
        """Take bytes of the response; see `connections.Carried`."""
        response, answer = self._response, self._answer
        try:
            body = response.feed(data)
        except ProtocolError as error:
            self._finish(at_s, Failure("protocol", str(error)))
            self._drop()
            return False
        if response.status == 200:
            for payload in self._events.feed(body):
                answer.take(payload, at_s)
        if response.status != 200 or not answer.token_times_s:
            self._error_body = (self._error_body + body)[:_MOST_ERROR_BYTES]
        if response.complete:
            self._complete(at_s)
        return response.complete

    def _complete(self, at_s: float) -> None:
        response = self._response
        kind = response.headers.get(b"content-type", b"")
        if response.status != 200:
            failure: Failure | None = Failure("http_status", f"{response.status}: {shown(self._error_body)}")
        elif not kind.startswith(b"text/event-stream"):
            failure = Failure("not_a_stream", f"content type {shown(kind) or 'missing'}: {shown(self._error_body)}")
        else:
            step = self._out.step
            failure = self._answer.check(step.prompt_tokens, step.output_tokens, self._events.unfinished)
        self._finish(self._answer.done_s or at_s, failure)

    def lost(self, at_s: float, reason: str) -> None:
        """The connection is gone; a request on a dead keep-alive one is resent once, anything else is a failure."""
        self._connection = None
        response = self._response
        if response.closed() or self._answer.done_s is not None:
            self._complete(at_s)
        elif response.begun or not self._may_resend:
            tokens = len(self._answer.token_times_s)
            if response.status == 200:
                failure = self._answer.failure or Failure("truncated", f"{reason} after {tokens} tokens")
            else:
                failure = Failure("connection", reason)
            self._finish(at_s, failure)
        else:
            self._resent = True
            self._out.pool.spawn(self._connect())

    def abandon(self, failure: Failure) -> None:
        """Give the request up, and close its connection, so that the server can drop it too."""
        self._finish(time.perf_counter(), failure)
        self._drop()

    def _timed_out(self) -> None:
        if self._answer.done_s is not None:
            self._complete(self._answer.done_s)
        text = f"{len(self._answer.token_times_s)} tokens in {self._out.step.request_timeout_s:g} s"
        self._finish(time.perf_counter(), Failure("timeout", text))
        self._drop()

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _finish(self, at_s: float, failure: Failure | None) -> None:
        if self._over:
            return
        self._over = True
        if self._timeout is not None:
            self._timeout.cancel()
        self._out.finished(self._sample(at_s, failure))

    def _sample(self, at_s: float, failure: Failure | None) -> Sample:
        answer, zero_s, step = self._answer, self._out.zero_s, self._out.step
        return Sample(
            step=step.id,
            index=self._index,
            scheduled_s=self._scheduled_s - zero_s,
            sent_s=None if self._sent_s is None else self._sent_s - zero_s,
            token_times_s=_relative(answer.token_times_s, zero_s),
            end_s=at_s - zero_s,
            expected_prompt_tokens=step.prompt_tokens,
            expected_output_tokens=step.output_tokens,
            prompt_tokens=answer.prompt_tokens,
            output_tokens=answer.output_tokens,
            cached_tokens=answer.cached_tokens,
            status=self._response.status or None,
            failure=failure,
            response_id=answer.response_id,
            prompt_digest=hashlib.blake2b(self._body, digest_size=8).hexdigest(),
            output_digest=answer.output_digest,
            resent=self._resent,
        )


def _relative(times_s: Sequence[float], zero_s: float) -> tuple[float, ...]:
    return tuple(at_s - zero_s for at_s in times_s)

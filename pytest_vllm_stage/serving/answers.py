"""What a server answered, with the fields that checks look at; a missing field is named together with the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_stage.serving.failures import RequestFailed, StreamBroken, shown
from pytest_vllm_stage.serving.sse import ServerSentEvent

#: The data of the event that ends a stream.
DONE = "[DONE]"
#: Where vLLM puts what a reasoning parser takes out of an answer: the present name, and that of older releases.
REASONING_FIELDS = ("reasoning", "reasoning_content")


@dataclass(frozen=True)
class Usage:
    """Token counts as the server reports them."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int

    @classmethod
    def of(cls, body: dict[str, Any]) -> Usage:
        """The ``usage`` of an answer or of a stream's usage chunk.

        Raises:
            RequestFailed: the field is missing, or a count is not an integer.
        """
        usage = body.get("usage")
        counts = [usage.get(name) for name in cls.__dataclass_fields__] if isinstance(usage, dict) else [None]
        if not all(type(count) is int for count in counts):
            raise RequestFailed(f"the answer has no token counts: usage is {json.dumps(usage)}")
        return cls(*counts)


@dataclass(frozen=True)
class Answer:
    """A complete answer of chat or plain completions: its first choice, and the body.

    Attributes:
        text: The generated text; of a model that reasons, its reasoning and then its answer.
        finish_reason: Why the answer ended.
        body: The whole response.
    """

    text: str
    finish_reason: str | None
    body: dict[str, Any] = field(repr=False)

    @property
    def usage(self) -> Usage:
        """The token counts; see `Usage.of`."""
        return Usage.of(self.body)

    @property
    def choice(self) -> dict[str, Any]:
        """The first choice as the server sent it."""
        choice: dict[str, Any] = self.body["choices"][0]
        return choice

    @classmethod
    def of(cls, body: dict[str, Any], *, reasons: bool = False) -> Answer:
        """Read a response of ``/v1/chat/completions`` or ``/v1/completions``.

        Args:
            body: The response.
            reasons: The model reasons first: tokens that only begin its reasoning leave no text at all.

        Raises:
            RequestFailed: it has no choice with text.
        """
        choices = body.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        message = choice.get("message")
        text = read_text(message) if isinstance(message, dict) else choice.get("text")
        if text is None and reasons and isinstance(message, dict) and message.get("content") is None:
            text = ""
        if not isinstance(text, str):
            raise RequestFailed(f"the answer has no text in its first choice: {shown(json.dumps(body))}")
        return cls(text, choice.get("finish_reason"), body)


def read_text(message: Mapping[str, Any]) -> str | None:
    """The text of a chat's message or delta, reasoning first; None where it has neither text nor a tool call."""
    content, reasoning = message.get("content"), read_reasoning(message)
    if content is None and not reasoning:
        return "" if message.get("tool_calls") else None
    return reasoning + (content or "") if isinstance(content, str | None) else None


def read_reasoning(message: Mapping[str, Any]) -> str:
    """What a reasoning parser took out of the content of a message or delta; a gateway may send it by both names."""
    texts = (message.get(name) for name in REASONING_FIELDS)
    return next((text for text in texts if isinstance(text, str) and text), "")


@dataclass(frozen=True, slots=True)
class Delta:
    """A piece of text and the ``time.perf_counter()`` of its arrival."""

    text: str
    arrived_at: float


@dataclass(frozen=True)
class StreamedAnswer:
    """A stream that was read to the end; times are ``time.perf_counter()``.

    Attributes:
        events: Every event, ``[DONE]`` included.
        chunks: The JSON of every event except ``[DONE]``.
        deltas: The non-empty pieces of text.
        finish_reasons: Every ``finish_reason`` received, in order.
        sent_at: When the request was sent.
        ended_at: When the end of the response was read.
        unfinished: What was received after the last complete event.
    """

    events: Sequence[ServerSentEvent] = field(repr=False)
    chunks: Sequence[dict[str, Any]] = field(repr=False)
    deltas: Sequence[Delta] = field(repr=False)
    finish_reasons: Sequence[str]
    sent_at: float
    ended_at: float
    unfinished: str = ""

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.deltas)

    @property
    def usage_chunks(self) -> list[dict[str, Any]]:
        """The chunks that carry usage."""
        return [chunk for chunk in self.chunks if chunk.get("usage")]

    @classmethod
    def of(
        cls, events: Sequence[ServerSentEvent], *, sent_at: float, ended_at: float, unfinished: str = ""
    ) -> StreamedAnswer:
        """Assemble an answer from the events of a stream.

        Raises:
            StreamBroken: an event is not a JSON object.
        """
        chunks: list[dict[str, Any]] = []
        deltas: list[Delta] = []
        reasons: list[str] = []
        for event in events:
            if event.data == DONE:
                continue
            chunk = chunk_of(event)
            chunks.append(chunk)
            for choice in chunk.get("choices") or []:
                text = (read_text(choice["delta"]) if "delta" in choice else choice.get("text")) or ""
                deltas += [Delta(text, event.arrived_at)] if text else []
                reasons += [choice["finish_reason"]] if choice.get("finish_reason") else []
        return cls(events, chunks, deltas, reasons, sent_at, ended_at, unfinished)


def chunk_of(event: ServerSentEvent) -> dict[str, Any]:
    """The JSON object that an event carries.

    Raises:
        StreamBroken: the event carries something else.
    """
    try:
        chunk = json.loads(event.data)
    except json.JSONDecodeError as error:
        raise StreamBroken(
            f"an event of the stream is not JSON ({error}): {shown(event.raw)}", body=event.raw
        ) from None
    if not isinstance(chunk, dict):
        raise StreamBroken(f"an event of the stream is not a JSON object: {shown(event.raw)}", body=event.raw)
    return chunk


@dataclass(frozen=True)
class Tokens:
    """The server's own tokenisation.

    Attributes:
        ids: Token ids.
        count: The server's count of them.
        max_model_len: The context length that the tokenizer endpoint reports.
    """

    ids: Sequence[int]
    count: int
    max_model_len: int | None

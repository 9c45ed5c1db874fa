"""Faults of streams: what buffers, proxies and careless relays do to events."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from pytest_vllm_stage.standins.engine.faults import CUT, Event, Fault, fault


def _texts(events: list[Event]) -> list[int]:
    """The places in the list of the events that carry text."""
    return [place for place, event in enumerate(events) if event.text]


@fault("buffered_stream")
class BufferedStream(Fault):
    """A proxy holds the whole stream back until it is complete."""

    def on_stream(self, events: list[Event]) -> None:
        for event in events:
            event.place = events[-1].place


@fault("block_buffered_stream")
@dataclass
class BlockBufferedStream(Fault):
    """A proxy passes the stream on in blocks.

    Attributes:
        tokens: Tokens per block.
    """

    tokens: int = 16

    def on_stream(self, events: list[Event]) -> None:
        """Send each event with the last token of its block."""
        for event in events:
            event.place = min(event.place // self.tokens * self.tokens + self.tokens - 1, events[-1].place)


@fault("missing_done")
class MissingDone(Fault):
    """The stream ends without ``[DONE]``."""

    def on_stream(self, events: list[Event]) -> None:
        events[:] = [event for event in events if event.data != "[DONE]"]


@fault("double_done")
class DoubleDone(Fault):
    """A relay adds its own ``[DONE]``."""

    def on_stream(self, events: list[Event]) -> None:
        events.append(Event(events[-1].place, "[DONE]"))


@fault("truncated_stream")
@dataclass
class TruncatedStream(Fault):
    """The connection is cut in the middle of the answer, as by a proxy's timeout.

    Attributes:
        after_tokens: Tokens that still arrive.
    """

    after_tokens: int = 3

    def on_stream(self, events: list[Event]) -> None:
        kept = [event for event in events if event.place < self.after_tokens]
        if len(kept) < len(events):
            events[:] = [*kept, Event(kept[-1].place, CUT)]


@fault("silently_truncated_stream")
@dataclass
class SilentlyTruncatedStream(Fault):
    """Text is lost at the end, and the stream closes normally.

    Attributes:
        tokens: Pieces of text that are lost.
    """

    tokens: int = 2

    def on_stream(self, events: list[Event]) -> None:
        """Drop the text of the last pieces."""
        for place in _texts(events)[-self.tokens :]:
            _set_text(events[place], "")


@fault("error_in_stream")
@dataclass
class ErrorInStream(Fault):
    """The engine fails in the middle of an answer, and reports it inside a stream whose status was 200.

    Attributes:
        after_tokens: Tokens before the error.
    """

    after_tokens: int = 3

    def on_stream(self, events: list[Event]) -> None:
        """Put the error in place of the rest."""
        error = {"message": "EngineCore encountered an issue.", "type": "InternalServerError", "param": None}
        kept = [event for event in events if event.place < self.after_tokens]
        if len(kept) < len(events):
            place = kept[-1].place
            events[:] = [*kept, Event(place, {"error": {**error, "code": 500}}), Event(place, "[DONE]")]


@fault("lost_delta")
class LostDelta(Fault):
    """One piece of text is lost."""

    def on_stream(self, events: list[Event]) -> None:
        places = _texts(events)
        if len(places) > 2:
            del events[places[1]]


@fault("repeated_delta")
class RepeatedDelta(Fault):
    """One piece of text is sent twice, as after a relay's retry."""

    def on_stream(self, events: list[Event]) -> None:
        places = _texts(events)
        if len(places) > 2:
            events.insert(places[1], events[places[1]])


@fault("reordered_deltas")
class ReorderedDeltas(Fault):
    """Two pieces of text are swapped."""

    def on_stream(self, events: list[Event]) -> None:
        """Exchange the second and the third one that differ."""
        places = _texts(events)
        for first, second in pairwise(places[1:]):
            if events[first].text != events[second].text and not events[second].data["choices"][0]["finish_reason"]:
                events[first].data, events[second].data = events[second].data, events[first].data
                return


@fault("text_after_finish")
class TextAfterFinish(Fault):
    """The finish reason comes before the last piece of text."""

    def on_stream(self, events: list[Event]) -> None:
        """Move it to an event of its own before the last one."""
        for place, event in enumerate(events):
            if isinstance(event.data, dict) and event.data["choices"] and event.data["choices"][0]["finish_reason"]:
                early = {**event.data, "choices": [{**event.data["choices"][0], "delta": {}, "text": ""}]}
                event.data["choices"][0]["finish_reason"] = None
                events.insert(place, Event(event.place, early))
                return


@fault("foreign_chunk")
class ForeignChunk(Fault):
    """A chunk of another answer is mixed in, without text."""

    def on_stream(self, events: list[Event]) -> None:
        events[0].data["id"] = "chatcmpl-of-another-client"


@fault("missing_role")
class MissingRole(Fault):
    """The first delta of a chat has no role."""

    def on_stream(self, events: list[Event]) -> None:
        for choice in _choices(events):
            choice.get("delta", {}).pop("role", None)


@fault("missing_stream_usage")
class MissingStreamUsage(Fault):
    """The usage chunk is missing, although it was requested."""

    def on_stream(self, events: list[Event]) -> None:
        events[:] = [event for event in events if not (isinstance(event.data, dict) and event.data.get("usage"))]


@fault("usage_with_choices")
class UsageWithChoices(Fault):
    """The usage chunk repeats the last choice, which a client then counts twice."""

    def on_stream(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event.data, dict) and event.data.get("usage"):
                event.data["choices"] = [{"index": 0, "delta": {}, "text": "", "finish_reason": None}]


@fault("malformed_chunk")
class MalformedChunk(Fault):
    """One event is cut in the middle of its JSON."""

    def on_stream(self, events: list[Event]) -> None:
        event = events[min(1, len(events) - 1)]
        event.data = event.encode()[:-20] + b"\n\n"


def _choices(events: list[Event]) -> Iterator[dict[str, Any]]:
    for event in events:
        if isinstance(event.data, dict):
            yield from event.data["choices"]


def _set_text(event: Event, text: str) -> None:
    choice = event.data["choices"][0]
    if "delta" in choice:
        choice["delta"]["content"] = text
    else:
        choice["text"] = text

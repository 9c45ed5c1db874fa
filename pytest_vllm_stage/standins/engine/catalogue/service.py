"""Faults of the server around the model: its health, its headers, its counters, its connections, its scores."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar
from zlib import crc32

from pytest_vllm_stage.standins.engine.faults import Event, Fault, fault, zero_metric
from pytest_vllm_stage.standins.http import Reply


@fault("unhealthy")
class Unhealthy(Fault):
    """``/health`` is 503 although requests are answered."""

    health_status: ClassVar[int] = 503


@fault("no_version")
class NoVersion(Fault):
    """``/version`` does not name a version."""

    def on_version(self, body: dict[str, Any]) -> None:
        body["version"] = "unknown"


@fault("streams_called_json")
class StreamsCalledJson(Fault):
    """Streams have the content type of whole answers."""

    def on_reply(self, reply: Reply) -> None:
        reply.stream_type = "application/json"


@fault("answers_called_text")
class AnswersCalledText(Fault):
    """Answers and errors have the content type of plain text."""

    def on_reply(self, reply: Reply) -> None:
        reply.json_type = "text/plain; charset=utf-8"


@fault("closed_connections")
class ClosedConnections(Fault):
    """The connection is closed after each response."""

    def on_reply(self, reply: Reply) -> None:
        reply.closes = True


@fault("key_not_asked_for")
class KeyNotAskedFor(Fault):
    """Every client is served, with the key, another one or none."""

    def lets_pass(self, authorization: str) -> bool:
        return True


@fault("any_key_will_do")
class AnyKeyWillDo(Fault):
    """A key is required, but not compared."""

    def lets_pass(self, authorization: str) -> bool:
        return bool(authorization)


class _Bodies(Fault):
    """A fault that changes every body and chunk."""

    def change(self, body: dict[str, Any]) -> None:
        """Change one."""

    def on_answer(self, body: dict[str, Any]) -> None:
        self.change(body)

    def on_stream(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event.data, dict):
                self.change(event.data)


@fault("created_in_milliseconds")
class CreatedInMilliseconds(_Bodies):
    """``created`` is in milliseconds."""

    def change(self, body: dict[str, Any]) -> None:
        body["created"] *= 1000


@fault("created_anew")
@dataclass
class CreatedAnew(_Bodies):
    """Each chunk has its own time."""

    _count: int = field(default=0, init=False, repr=False)

    def change(self, body: dict[str, Any]) -> None:
        self._count += 1
        body["created"] += self._count % 60


@fault("recycled_ids")
@dataclass
class RecycledIds(_Bodies):
    """Ids come from a counter that starts again after four."""

    _last: tuple[str, str] = field(default=("", ""), init=False, repr=False)
    _count: int = field(default=0, init=False, repr=False)

    def change(self, body: dict[str, Any]) -> None:
        if body["id"] != self._last[0]:
            self._count += 1
            self._last = body["id"], f"chatcmpl-{self._count % 4}"
        body["id"] = self._last[1]


@fault("frozen_metrics")
@dataclass
class FrozenMetrics(Fault):
    """``/metrics`` is a copy from a cache that is never refreshed."""

    _text: str = field(default="", init=False, repr=False)

    def on_metrics(self, text: str) -> str:
        self._text = self._text or text
        return self._text


@fault("uncounted_generation")
class UncountedGeneration(Fault):
    """Generated tokens are not counted in ``/metrics``."""

    def on_metrics(self, text: str) -> str:
        return zero_metric(text, "vllm:generation_tokens")


@fault("single_newlines")
class SingleNewlines(Fault):
    """Events are not separated by an empty line."""

    def on_stream(self, events: list[Event]) -> None:
        """Leave it out, but for the last one."""
        for event in events[:-1]:
            event.data = event.encode()[:-1]


@fault("bare_lines")
class BareLines(Fault):
    """A debugging hop writes its own line into streams."""

    def on_stream(self, events: list[Event]) -> None:
        if len(events) > 1:
            events[1].data = b"flushed 1 chunk\n\n" + events[1].encode()


@fault("broken_quantisation")
@dataclass
class BrokenQuantisation(Fault):
    """The weights come from a broken quantisation: fluent, and less certain of every token.

    Attributes:
        nats: Mean loss of log probability per token.
    """

    nats: float = 0.8

    def on_answer(self, body: dict[str, Any]) -> None:
        """Lower the prompt's scores, by more or less."""
        for choice in body["choices"]:
            for place, entry in enumerate(choice.get("prompt_logprobs") or []):
                for token, score in (entry or {}).items():
                    share = 2 * (crc32(f"{place}{token}".encode()) % 1000) / 1000
                    score["logprob"] -= self.nats * share
                    score["rank"] += share > 1.5

"""Faults of answers and counts: wrong answers, ignored limits, false token counts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_stage.standins.engine.faults import Event, Fault, fault
from pytest_vllm_stage.standins.engine.generation import Generated
from pytest_vllm_stage.standins.engine.parameters import Parameters


@fault("wrong_answers")
class WrongAnswers(Fault):
    """The text is fluent nonsense, as from wrong weights or a broken quantisation."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        """Replace every letter by the one after it."""
        generated.texts = ["".join(chr(ord(c) + 1) if c.isalpha() else c for c in text) for text in generated.texts]


@fault("stale_cache")
@dataclass
class StaleCache(Fault):
    """A gateway answers every request with the answer to the first one, limits included."""

    _first: Generated | None = field(default=None, init=False, repr=False)

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if self._first is None:
            self._first = Generated(generated.pieces, generated.texts, generated.finish_reason, generated.stop_reason)
        generated.pieces, generated.texts = self._first.pieces, self._first.texts
        generated.finish_reason, generated.stop_reason = self._first.finish_reason, self._first.stop_reason


@fault("empty_answers")
class EmptyAnswers(Fault):
    """Answers have no text, and report success."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        generated.texts = ["" for _ in generated.texts]


@fault("dropped_turns")
class DroppedTurns(Fault):
    """A gateway forwards only the last message: system prompt and history are lost."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        if isinstance(body.get("messages"), list):
            body["messages"] = body["messages"][-1:]


@fault("trimmed_prompt")
class TrimmedPrompt(Fault):
    """A gateway trims white space around the messages' text."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        messages = body.get("messages")
        for message in messages if isinstance(messages, list) else []:
            if isinstance(message, dict) and isinstance(message.get("content"), str):
                message["content"] = message["content"].strip()


@fault("ignored_max_tokens")
class IgnoredMaxTokens(Fault):
    """``max_tokens`` is dropped, and the default is larger."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.limit = 64


@fault("hidden_overrun")
class HiddenOverrun(Fault):
    """``max_tokens`` is ignored, but the usage and the finish reason report that it was honoured."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        """Let out the text of more tokens than are counted."""
        if generated.finish_reason == "length" and len(generated.texts) < 16:
            generated.texts[-1] += " and so on without an end"[: 25 - len(generated.texts)]


@fault("ignored_stop")
class IgnoredStop(Fault):
    """Stop texts are dropped."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.stop = ()


@fault("leaked_stop")
class LeakedStop(Fault):
    """The stop text is left in the answer."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        generated.texts[-1] += generated.stop_reason if isinstance(generated.stop_reason, str) else ""


@fault("always_stop")
class AlwaysStop(Fault):
    """``finish_reason`` is ``stop`` whatever ended the answer."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        generated.finish_reason = "stop"


@fault("always_length")
class AlwaysLength(Fault):
    """``finish_reason`` is ``length`` whatever ended the answer."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        generated.finish_reason = "length"


@fault("off_by_one_usage")
@dataclass
class OffByOneUsage(Fault):
    """A count of the usage is slightly wrong, and the total with it.

    Attributes:
        count: ``prompt_tokens``, ``completion_tokens`` or ``total_tokens``.
        by: What is added to it.
    """

    count: str = "completion_tokens"
    by: int = 1

    def on_usage(self, usage: dict[str, Any]) -> None:
        usage[self.count] += self.by
        if self.count != "total_tokens":
            usage["total_tokens"] += self.by


@fault("wrong_model_name")
class WrongModelName(Fault):
    """A router falls back to another model, and reports it in ``model``."""

    def on_answer(self, body: dict[str, Any]) -> None:
        body["model"] = "some-other-model"

    def on_stream(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event.data, dict):
                event.data["model"] = "some-other-model"


@fault("constant_id")
class ConstantId(Fault):
    """Every answer has the same id."""

    def on_answer(self, body: dict[str, Any]) -> None:
        body["id"] = "chatcmpl-0"

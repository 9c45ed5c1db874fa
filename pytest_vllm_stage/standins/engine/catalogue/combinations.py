"""Faults of features that work alone: combined with another one, sent in another way, or after another request."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_stage.standins.engine.engine import Engine
from pytest_vllm_stage.standins.engine.faults import Fault, fault
from pytest_vllm_stage.standins.engine.generation import Generated
from pytest_vllm_stage.standins.engine.guided import Guide
from pytest_vllm_stage.standins.engine.parameters import Parameters
from pytest_vllm_stage.standins.engine.refusal import Refusal, malformed
from pytest_vllm_stage.standins.http import Request


def _replace_text(generated: Generated, text: str) -> None:
    generated.texts = [text, *("" for _ in generated.texts[1:])]


@fault("held_back_text_lost")
class HeldBackTextLost(Fault):
    """Text held back as the beginning of a stop text is lost when the stop text does not follow."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if parameters.stream and parameters.stop and generated.stop_reason is None:
            last = max((place for place, text in enumerate(generated.texts) if text), default=0)
            generated.texts[last] = ""


@fault("streamed_calls_share_an_index")
class StreamedCallsShareAnIndex(Fault):
    """Every call of a streamed answer has index 0, so that clients merge them into one."""

    def on_stream(self, events: list[Any]) -> None:
        for event in events:
            for choice in event.data["choices"] if isinstance(event.data, dict) else ():
                for call in choice.get("delta", {}).get("tool_calls") or ():
                    call["index"] = 0


@fault("large_bodies_refused")
@dataclass
class LargeBodiesRefused(Fault):
    """A gateway limits bodies far below the model's context."""

    limit_bytes: int = 32 * 1024

    def on_request(self, request: Request) -> None:
        if len(request.body) > self.limit_bytes:
            raise Refusal(413, "Request Entity Too Large", "RequestEntityTooLarge", None)


@fault("chunked_bodies_lost")
class ChunkedBodiesLost(Fault):
    """A gateway forwards bodies by their length, and a chunked one has none."""

    def on_request(self, request: Request) -> None:
        if "transfer-encoding" in request.headers:
            raise malformed("missing", "body", "Field required")


@fault("grammar_reaches_others")
@dataclass
class GrammarReachesOthers(Fault):
    """A request that runs concurrently with one that has a grammar is constrained to that grammar."""

    _engine: Engine | None = field(default=None, init=False, repr=False)
    _guide: Guide | None = field(default=None, init=False, repr=False)

    def start(self, engine: Engine) -> None:
        self._engine = engine

    def on_parameters(self, parameters: Parameters) -> None:
        """Apply the grammar that was given before this request, if something runs."""
        if self._engine is None or not self._engine.running:
            self._guide = None
        if parameters.guide is None:
            parameters.guide = self._guide
        else:
            self._guide = parameters.guide


@fault("abandoned_grammar_stays")
@dataclass
class AbandonedGrammarStays(Fault):
    """After the client of a request with a grammar disconnects, the next grammar starts in the middle."""

    _guided: bool = field(default=False, init=False, repr=False)
    _abandoned: bool = field(default=False, init=False, repr=False)

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        """Leave out the beginning of the answer."""
        self._guided = parameters.guide is not None
        if self._guided and self._abandoned:
            self._abandoned = False
            generated.texts[0] = ""

    def on_disconnect(self) -> bool:
        self._abandoned = self._abandoned or self._guided
        return True


@fault("grammar_for_the_first_choice_only")
@dataclass
class GrammarForTheFirstChoiceOnly(Fault):
    """Of several choices, only the first one is constrained to the grammar."""

    _seen: Parameters | None = field(default=None, init=False, repr=False)

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if parameters.guide is not None and self._seen is parameters:
            _replace_text(generated, "anything")
        self._seen = parameters


@fault("logprobs_free_the_answer")
class LogprobsFreeTheAnswer(Fault):
    """With logprobs, the grammar is not applied."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if parameters.guide is not None and parameters.top_logprobs is not None:
            _replace_text(generated, "anything")


@fault("stop_ignored_in_grammars")
class StopIgnoredInGrammars(Fault):
    """A stop text does not end an answer that has a grammar."""

    def on_parameters(self, parameters: Parameters) -> None:
        if parameters.guide is not None:
            parameters.stop = ()


@fault("nulls_refused")
class NullsRefused(Fault):
    """A gateway's schema refuses null for parameters that may be absent."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        for name, value in body.items():
            if value is None:
                raise malformed("type_error", f"body.{name}", "Input should not be null")


@fault("small_default_limit")
@dataclass
class SmallDefaultLimit(Fault):
    """A gateway adds a limit to chats that have none."""

    tokens: int = 16

    def on_body(self, body: dict[str, Any], model: str) -> None:
        if "messages" in body and "max_tokens" not in body:
            body["max_tokens"] = self.tokens


@fault("invented_cached_tokens")
class InventedCachedTokens(Fault):
    """The usage reports cached tokens for a prompt that was never sent before."""

    def on_usage(self, usage: dict[str, Any]) -> None:
        usage["prompt_tokens_details"] = {"cached_tokens": usage["prompt_tokens"] - 1}

"""Faults on the request path: conversations truncated, flattened and re-encoded, and the tokenizer of another model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pytest_vllm_stage.standins.engine.faults import Fault, fault
from pytest_vllm_stage.standins.engine.generation import Generated
from pytest_vllm_stage.standins.engine.parameters import Parameters
from pytest_vllm_stage.standins.engine.refusal import Refusal
from pytest_vllm_stage.standins.engine.tokenizer import START


def _messages(body: dict[str, Any]) -> list[dict[str, Any]]:
    """The well-formed messages; a malformed body is refused later."""
    messages = body.get("messages")
    return [one for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []


def _texts(body: dict[str, Any]) -> Iterator[tuple[dict[str, Any], str]]:
    """Each text in a body, as its object and key."""
    if isinstance(body.get("prompt"), str):
        yield body, "prompt"
    for message in _messages(body):
        if isinstance(message.get("content"), str):
            yield message, "content"


@fault("dropped_system_prompt")
class DroppedSystemPrompt(Fault):
    """A gateway drops the system prompt."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        if _messages(body):
            body["messages"] = [one for one in _messages(body) if one.get("role") != "system"]


@fault("short_memory")
class ShortMemory(Fault):
    """A gateway forwards only the last three messages and the system prompt."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        messages = _messages(body)
        if len(messages) > 3:
            body["messages"] = [*(one for one in messages[:-3] if one.get("role") == "system"), *messages[-3:]]


@fault("flattened_roles")
class FlattenedRoles(Fault):
    """A gateway sends every message in the user's role."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        for message in _messages(body):
            message["role"] = "user"


@fault("ascii_prompts")
class AsciiPrompts(Fault):
    """A gateway drops every character that is not ASCII from prompts."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        for holder, key in _texts(body):
            holder[key] = holder[key].encode("ascii", "ignore").decode()


@fault("four_bytes_break")
class FourBytesBreak(Fault):
    """A prompt with a four-byte character gives a 500, as with a log in a narrower encoding."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        if any(ord(character) > 0xFFFF for one, key in _texts(body) for character in one[key]):
            raise Refusal(500, "incorrect string value", "InternalServerError")


@fault("twice_begun")
class TwiceBegun(Fault):
    """The start token is added to a prompt that already has it, as by a tokenizer after a template."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.prompt = [START, *parameters.prompt]


@fault("foreign_tokenizer")
class ForeignTokenizer(Fault):
    """``/tokenize`` uses another tokenizer version: one more token for every text."""

    def on_tokens(self, body: dict[str, Any]) -> None:
        if "tokens" in body:
            body["tokens"] = [*body["tokens"], 1]
            body["count"] += 1


@fault("miscounted_tokens")
class MiscountedTokens(Fault):
    """``/tokenize`` counts one more token than it lists."""

    def on_tokens(self, body: dict[str, Any]) -> None:
        if "count" in body:
            body["count"] += 1


@fault("lossy_detokenizer")
class LossyDetokenizer(Fault):
    """``/detokenize`` drops text that is not Latin."""

    def on_tokens(self, body: dict[str, Any]) -> None:
        if "prompt" in body:
            body["prompt"] = body["prompt"].encode("latin-1", "ignore").decode("latin-1")


@fault("roles_not_rendered")
class RolesNotRendered(Fault):
    """The chat template is replaced by a plain one: turns are concatenated without their roles."""

    def on_tokens(self, body: dict[str, Any]) -> None:
        """Leave the start of each turn out, its role with it."""
        if "tokens" in body and 1 in body["tokens"]:
            kept, skipping = [], False
            for number in body["tokens"]:
                skipping = number == 1 or (skipping and number != _NEWLINE)
                if not skipping:
                    kept.append(number)
            body["tokens"], body["count"] = kept, len(kept)


_NEWLINE = int.from_bytes(b"\x01\n")


@fault("mangled_unicode")
class MangledUnicode(Fault):
    """A hop decodes UTF-8 as Latin-1: everything except English is mangled."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        generated.texts = [text.encode().decode("latin-1") for text in generated.texts]


@fault("characters_cut_in_streams")
class CharactersCutInStreams(Fault):
    """Streamed tokens are decoded one by one: characters of several tokens become replacement signs."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if parameters.stream and not b"".join(generated.pieces).isascii():
            last = generated.texts[-1] and generated.pieces[-1].decode(errors="replace")
            generated.texts = [piece.decode(errors="replace") for piece in generated.pieces[:-1]] + [last]

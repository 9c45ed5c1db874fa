"""Defects on the way in, beyond those of `requests`: numbers, the order of keys and turns, fields and names."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Mapping
from typing import Any

from tests.defects import checks
from tests.defects.proxy.requests import BodyDefect
from tests.defects.proxy.server import Answer, Defect, Exchange


class TemperatureTruncated(
    BodyDefect,
    by={checks.EVERYWHERE},
    says=r"8 seeds at temperature 0\.9 all drew",
    source="https://github.com/netxms/netxms/issues/3504",
):
    """The temperature is read as a whole number: 0.9 becomes 0."""

    def change(self, body: dict[str, Any]) -> None:
        # vLLM refuses several greedy answers.
        if isinstance(body.get("temperature"), float) and body.get("n", 1) == 1:
            body["temperature"] = int(body["temperature"])


class LargeNumbersRounded(
    BodyDefect,
    by={checks.EVERYWHERE},
    says=r"the seeds 9007199254740992 and 9007199254740993 both drew",
    source="https://github.com/apache/apisix/issues/13280",
):
    """The body is decoded and encoded again by a language whose numbers are all floating-point."""

    def change(self, body: dict[str, Any]) -> None:
        if isinstance(body.get("seed"), int):
            body["seed"] = int(float(body["seed"]))


class KeysSorted(
    BodyDefect,
    by={checks.SCHEMA},
    says=r"the answer's keys come in the order .* sorts the keys of requests",
    source="https://github.com/maximhq/bifrost/issues/5148",
):
    """The body is decoded and encoded again with its keys in the order of the alphabet, schemas included."""

    def change(self, body: dict[str, Any]) -> None:
        in_order = json.loads(json.dumps(body, sort_keys=True))
        body.clear()
        body.update(in_order)


class SystemTurnsFirst(
    BodyDefect,
    by={checks.RENDERED},
    says=r"a conversation with a later system turn and two of the user as the template renders it",
    source="https://github.com/FlashML-org/FreeToken/pull/487",
):
    """System turns are moved to the beginning, as another API wants them."""

    def change(self, body: dict[str, Any]) -> None:
        messages = body.get("messages")
        if isinstance(messages, list) and all(isinstance(message, dict) for message in messages):
            body["messages"] = sorted(messages, key=lambda message: message.get("role") != "system")


class EmptyTurnsDropped(
    BodyDefect,
    by={checks.RENDERED},
    says=r"a conversation with an empty turn as the template renders it: the prompt lost",
    source="https://github.com/omarluq/cc-relay/pull/84",
):
    """Turns without text are dropped, as another API refuses them."""

    def change(self, body: dict[str, Any]) -> None:
        messages = body.get("messages")
        if isinstance(messages, list) and len(messages) > 1:
            body["messages"] = [one for one in messages if not (isinstance(one, dict) and one.get("content") == "")]


class ChatsMasked(
    BodyDefect,
    by={checks.RENDERED},
    says=r"a conversation about code and numbers .*<PHONE_NUMBER>",
    source="https://github.com/NVIDIA-NeMo/Guardrails/issues/818",
):
    """A guardrail for personal data reads chats, and no plain completions."""

    def change(self, body: dict[str, Any]) -> None:
        for message in body.get("messages") or []:
            if isinstance(message, dict) and isinstance(message.get("content"), str):
                message["content"] = re.sub(r"\d{3}-\d{3}-\d{4}", "<PHONE_NUMBER>", message["content"])


class OwnFieldsDropped(
    BodyDefect,
    by={checks.OWN_FIELDS},
    says=r"did not reach the engine.*chat_template_kwargs",
    source="https://github.com/maximhq/bifrost/issues/2622",
):
    """Of the fields for reasoning models, those of another API are passed on alone."""

    def change(self, body: dict[str, Any]) -> None:
        body.pop("chat_template_kwargs", None)


class BadWordsDropped(
    BodyDefect,
    by={checks.EVERYWHERE},
    says=r"was forbidden by bad_words",
    source="https://github.com/vllm-project/vllm/pull/19564",
):
    """``bad_words`` is not passed on."""

    def change(self, body: dict[str, Any]) -> None:
        body.pop("bad_words", None)


class DefinitionsStripped(
    BodyDefect,
    by={checks.FORMS},
    says=r"\$ref.*the answers are",
    source="https://github.com/meridianlabs-ai/inspect_scout/issues/447",
):
    """Schemas are read into a model that has no definitions and no references to them."""

    def change(self, body: dict[str, Any]) -> None:
        for name in ("structured_outputs", "response_format", "tools"):
            if name in body:
                body[name] = _without_references(body[name])


def _without_references(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_references(one) for key, one in value.items() if not key.startswith("$")}
    return [_without_references(one) for one in value] if isinstance(value, list) else value


class NameMatchedByItsBeginning(
    BodyDefect,
    by={checks.UNKNOWN_MODEL},
    says=r"asked for the model '[\w.-]+-no-such-model[\w-]+', .* answered 200, expected 404",
    source="https://github.com/BerriAI/litellm/pull/42090",
):
    """Every name that begins with that of the model leads to it."""

    def change(self, body: dict[str, Any]) -> None:
        if isinstance(body.get("model"), str):
            body["model"] = re.sub(r"(.)-no-such-model.*", r"\1", body["model"])


class EqualIdsAreRetries(
    Defect,
    by={checks.ONE_ID},
    says=r"under an X-Request-Id that others had too.*answers are mixed up",
    source="https://github.com/vllm-project/vllm/issues/10583",
):
    """Requests with one ``X-Request-Id`` count as retries of the first, and get its answer."""

    def __init__(self) -> None:
        self._first: dict[str, asyncio.Future[Answer]] = {}

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Wait for the first one's answer."""
        id_ = exchange.request.headers.get("x-request-id")
        if not id_ or not exchange.request.generates:
            return None
        if id_ in self._first:
            return await asyncio.shield(self._first[id_])
        exchange.notes["first"] = self._first[id_] = asyncio.get_running_loop().create_future()
        return None

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Hand the answer to those who wait."""
        if first := exchange.notes.get("first"):
            first.set_result(answer)

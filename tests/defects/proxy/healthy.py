"""Healthy servers that are unlike the simulated engine: no check may fail for what differs."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, ClassVar

from tests.defects.proxy.requests import BodyDefect
from tests.defects.proxy.server import Answer, Defect, Exchange, refuse
from tests.defects.proxy.streams import ChunkDefect

OTHER_NAME = "mistral-small"


class NamedTwice(Defect):
    """The model has two served names; vLLM labels its series with the first one, and clients ask for the second."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Rename the series, and list both names."""
        if exchange.request.path == "/metrics":
            answer.body = re.sub(rb'model_name="[^"]*"', f'model_name="{OTHER_NAME}"'.encode(), answer.body)
        if exchange.request.path == "/v1/models" and answer.status == 200:
            body = answer.json
            self.list_both(body["data"])
            answer.json = body

    def list_both(self, cards: list[dict[str, Any]]) -> None:
        """Add the first name's card."""
        cards.insert(0, {**cards[0], "id": OTHER_NAME})


class Adapter(NamedTwice):
    """The model is a LoRA adapter: vLLM lists it with its base model, and gives the context length of that alone."""

    def list_both(self, cards: list[dict[str, Any]]) -> None:
        """Add the base model's card."""
        super().list_both(cards)
        cards[1] |= {"parent": OTHER_NAME, "max_model_len": None}


class OlderVllm(BodyDefect):
    """vLLM 0.9.2: errors without a wrapper, former names of series, fields of later releases passed over."""

    LATER_FIELDS: ClassVar[tuple[str, ...]] = ("structured_outputs", "return_token_ids")
    FORMER_SERIES: ClassVar[dict[str, str]] = {
        "vllm:inter_token_latency_seconds": "vllm:time_per_output_token_seconds",
        "vllm:kv_cache_usage_perc": "vllm:gpu_cache_usage_perc",
        "vllm:prefix_cache_": "vllm:gpu_prefix_cache_",
    }

    def change(self, body: dict[str, Any]) -> None:
        for name in self.LATER_FIELDS:
            body.pop(name, None)

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Rename the series, unwrap errors, report the version."""
        path, body = exchange.request.path, answer.json
        if path == "/version":
            answer.json = {"version": "0.9.2"}
        if path == "/metrics":
            for name, former in self.FORMER_SERIES.items():
                answer.body = answer.body.replace(name.encode(), former.encode())
        if isinstance(body.get("error"), dict):
            answer.json = {"object": "error", **body["error"]}


class OtherLanguage(Defect):
    """The model's default language is not English."""

    WORDS: ClassVar[dict[str, str]] = {
        "Paris": "Париж",
        "Japan": "Japón",
        "Tokyo": "Tokio",
        "Italy": "Italia",
        "Rome": "Roma",
    }

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Translate the names that the checks look for."""
        if exchange.request.generates and answer.status == 200 and not answer.is_stream:
            text = json.dumps(answer.json, ensure_ascii=False)
            for word, other in self.WORDS.items():
                text = text.replace(word, other)
            answer.body = text.encode()


class ForcedUsage(BodyDefect):
    """A server with --enable-force-include-usage: every chunk of every stream carries the usage."""

    def change(self, body: dict[str, Any]) -> None:
        if body.get("stream") is True:
            body["stream_options"] = {"include_usage": True, "continuous_usage_stats": True}


class OpenMetrics(Defect):
    """The metrics come in OpenMetrics' format, with an exemplar at each bucket."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Write them so."""
        if exchange.request.path == "/metrics":
            exemplar = rb' # {trace_id="abc"} 0.67 1790000000.125'
            answer.body = re.sub(rb"(?m)^(vllm:\w+_bucket\{[^}]*\} \S+)$", rb"\1" + exemplar, answer.body) + b"# EOF\n"
            answer.headers["content-type"] = "application/openmetrics-text; version=1.0.0; charset=utf-8"


class SpeculativeDecoding(Defect):
    """vLLM 0.32 with a draft model refuses two parameters."""

    REFUSAL: ClassVar[str] = (
        "The min_p and logit_bias sampling parameters are not yet supported with speculative decoding."
    )

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Refuse them."""
        body = exchange.request.json
        ruled_out = body.get("logit_bias") or body.get("min_p")
        return refuse(400, self.REFUSAL) if exchange.request.generates and ruled_out else None


class BaseModel(Defect):
    """A base model: its tokenizer has no chat template, and vLLM 0.32 refuses every conversation with these words."""

    REFUSAL: ClassVar[str] = (
        "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if "
        "the tokenizer does not define one."
    )

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Refuse whatever has messages; vLLM renders them before it looks at most parameters."""
        request = exchange.request
        rendered = request.path == "/v1/chat/completions" or (
            request.path == "/tokenize" and "messages" in request.json
        )
        if request.method == "POST" and rendered and answer.status in (200, 400) and request.json:
            refusal = refuse(400, self.REFUSAL)
            answer.status, answer.body, answer.headers = refusal.status, refusal.body, refusal.headers

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """The refusal alone, where a stream was asked for."""
        async for event in events:
            if exchange.request.path != "/v1/chat/completions":
                yield event


class ReasoningModel(ChunkDefect):
    """A model that reasons before it answers, longer than the limits of most checks; vLLM parses its reasoning out."""

    FIELD: ClassVar[str] = "reasoning"
    #: What vLLM applies to the answer alone, after the reasoning.
    AFTER_REASONING: ClassVar[tuple[str, ...]] = ("structured_outputs", "response_format", "tools", "tool_choice")
    #: From this limit on, an answer comes to its end.
    ENOUGH_TOKENS: ClassVar[int] = 1024

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Apply no structure to the reasoning."""
        body = exchange.request.json
        exchange.notes["reasons"] = exchange.request.path == "/v1/chat/completions" and self.reasons(body)
        if exchange.notes["reasons"]:
            for name in self.AFTER_REASONING:
                body.pop(name, None)
            exchange.request.json = body | {"ignore_eos": True}
        return None

    def reasons(self, body: dict[str, Any]) -> bool:
        limit = body.get("max_tokens", self.ENOUGH_TOKENS)
        return bool(isinstance(limit, int) and limit < self.ENOUGH_TOKENS)

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """The text is the reasoning's."""
        body = answer.json
        if exchange.request.path != "/v1/chat/completions" or answer.status != 200 or not body:
            return
        for choice in body["choices"]:
            message = choice["message"]
            if exchange.notes["reasons"]:
                message |= {"content": None, self.FIELD: message["content"]}
            else:
                message[self.FIELD] = "The user asks. I answer."
        answer.json = body

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        if exchange.notes["reasons"]:
            for choice in chunk.get("choices") or []:
                delta = choice.get("delta", {})
                if delta.get("content"):
                    delta[self.FIELD] = delta.pop("content")
        return [chunk]


class OlderReasoningModel(ReasoningModel):
    """The same, with the field's former name."""

    FIELD: ClassVar[str] = "reasoning_content"

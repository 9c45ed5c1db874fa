"""Healthy servers that are unlike the simulated engine: no check may fail for what differs."""

from __future__ import annotations

import json
import re
from typing import Any, ClassVar

from tests.defects.proxy.requests import BodyDefect
from tests.defects.proxy.server import Answer, Defect, Exchange

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

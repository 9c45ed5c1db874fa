"""Defects of the engine behind the gateway, played by the proxy: long prompts, large batches, replicas, end tokens."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

from tests.defects import checks
from tests.defects.proxy.server import Answer, Client, Defect, Exchange
from tests.defects.proxy.streams import ChunkDefect


class _TextDefect(ChunkDefect):
    """Changes the text of whole answers and of each piece of a stream."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Change each choice, unless there is none."""
        body = answer.json
        if exchange.request.generates and answer.status == 200 and body.get("choices"):
            answer.json = self._changed(body, exchange)

    def change(self, chunk: dict[str, Any], exchange: Exchange) -> list[dict[str, Any]]:
        return [self._changed(chunk, exchange)]

    def _changed(self, body: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
        for choice in body.get("choices") or []:
            part, name = choice, "text"
            for other in ("message", "delta"):
                part, name = (choice[other], "content") if other in choice else (part, name)
            text = self.edit(part.get(name) or "", choice, exchange)
            if text or name in part:
                part[name] = text
        return body

    def edit(self, text: str, choice: dict[str, Any], exchange: Exchange) -> str:
        """The text that is sent instead."""
        raise NotImplementedError


class EndTokenShown(
    _TextDefect,
    by={checks.SAYS_STOP},
    says=r"the answer shows '<\|im_end\|>'",
    source="https://github.com/moltis-org/moltis/issues/306",
):
    """The token that ends a turn is sent as text."""

    def edit(self, text: str, choice: dict[str, Any], exchange: Exchange) -> str:
        asked = exchange.request.json
        is_free = "messages" in asked and not {"stop", "tools", "structured_outputs", "response_format"} & set(asked)
        return text + "<|im_end|>" if is_free and choice.get("finish_reason") == "stop" else text


class LongPromptsGarbled(
    _TextDefect,
    by={checks.CONTEXT},
    says=r"long prompts are not computed right",
    source="https://github.com/vllm-project/vllm/issues/20816",
):
    """Positions beyond the 1024th are computed wrongly: short prompts are answered well, long ones with nonsense."""

    def edit(self, text: str, choice: dict[str, Any], exchange: Exchange) -> str:
        prompt = exchange.request.json.get("prompt")
        is_long = len(prompt) > (1024 if isinstance(prompt, list) else 3500) if prompt else False
        return re.sub(r"\w", "#", text) if is_long else text


class _CrowdDefect(_TextDefect):
    """Changes what is asked for while many requests run."""

    MOST = 16

    def __init__(self) -> None:
        self._running: set[int] = set()

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Count it."""
        if exchange.request.generates:
            self._running.add(exchange.number)
            exchange.notes["crowded"] = len(self._running) > self.MOST
        return None

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """A whole answer has ended."""
        await super().on_answer(exchange, answer)
        if not answer.is_stream:
            self._running.discard(exchange.number)

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """A stream has ended when it was read."""
        try:
            async for event in super().on_stream(exchange, events):
                yield event
        finally:
            self._running.discard(exchange.number)

    def edit(self, text: str, choice: dict[str, Any], exchange: Exchange) -> str:
        return text


class LargeBatchesGarbled(
    _CrowdDefect,
    by={checks.AT_ONCE},
    says=r"was shown among 24 at a time, and continued with ' ####",
    source="https://github.com/pytorch/torchtitan/issues/3668",
):
    """A batch of more than 16 runs through a graph that computes badly."""

    def edit(self, text: str, choice: dict[str, Any], exchange: Exchange) -> str:
        return re.sub(r"\w", "#", text) if exchange.notes.get("crowded") else text


class FallbackUnderLoad(
    _CrowdDefect,
    by={checks.AT_ONCE},
    says=r"some name another model: \{'small-model'\}",
    source="https://github.com/RightNow-AI/openfang/issues/160",
):
    """What is too much for the model is sent to a smaller one."""

    def _changed(self, body: dict[str, Any], exchange: Exchange) -> dict[str, Any]:
        return body | {"model": "small-model"} if exchange.notes.get("crowded") else body


class ReplicaLeftBehind(
    Defect,
    by={checks.NEW_CONNECTION},
    says=r"4 of 8 new connections lead to a server that differs .*: other weights",
    source="https://github.com/haproxytech/kubernetes-ingress/issues/795",
):
    """Every second connection leads to a replica that still has the weights of before."""

    def __init__(self) -> None:
        self._numbers = count()
        self._places: WeakKeyDictionary[Client, int] = WeakKeyDictionary()

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Its scores are others."""
        place = self._places.setdefault(exchange.client, next(self._numbers))
        body = answer.json
        if place % 2 and exchange.request.path == "/v1/completions" and body.get("choices"):
            for choice in body["choices"]:
                alternatives = (choice.get("logprobs") or {}).get("top_logprobs") or []
                for scores in filter(None, alternatives):
                    scores |= {token: score - 0.8 for token, score in scores.items()}
            answer.json = body


class LongAnswersDegenerate(
    _TextDefect,
    by={checks.SLOW_STREAM},
    says=r"from about token \d+ on, the text is '!!!!",
    source="https://github.com/vllm-project/vllm/issues/14126",
    slow=True,
):
    """After some hundred characters every score is NaN, and the first token of the vocabulary alone comes."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Streams alone."""

    def edit(self, text: str, choice: dict[str, Any], exchange: Exchange) -> str:
        exchange.notes["sent"] = exchange.notes.get("sent", 0) + len(text)
        return "!" * len(text) if exchange.notes["sent"] > 400 else text

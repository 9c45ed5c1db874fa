"""Healthy servers of other models and configurations: their defaults, templates, tokenizers and engines."""

from __future__ import annotations

import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import Any, ClassVar

from tests.defects.proxy.requests import BodyDefect
from tests.defects.proxy.server import Answer, Defect, Exchange, refuse
from tests.defects.proxy.streams import read_chunk, write_chunk


class MistralTokenizer(Defect):
    """A model of Mistral's: its tokenizer refuses ids of tool calls that are not nine letters and digits."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Refuse others, in the words of mistral_common; vLLM cuts longer ones to nine characters."""
        body = exchange.request.json if exchange.request.generates else {}
        for message in body.get("messages") or []:
            called = [call.get("id") for call in message.get("tool_calls") or []] + [message.get("tool_call_id")]
            odd = [one for one in called if one and not re.fullmatch(r"[A-Za-z0-9]{9}", one[-9:])]
            if odd:
                return refuse(400, f"Tool call id was {odd[0]} but must be a-z, A-Z, 0-9, with a length of 9.")
        return None


class SamplingDefaults(BodyDefect):
    """Qwen2.5-VL: its generation_config.json leaves one token to draw, unless a request says otherwise."""

    DEFAULTS: ClassVar[dict[str, Any]] = {"top_k": 1, "top_p": 0.001}

    def change(self, body: dict[str, Any]) -> None:
        body |= {name: value for name, value in self.DEFAULTS.items() if body.get(name) is None}


class LimitedAnswers(BodyDefect):
    """A server that limits all answers: ``--override-generation-config '{"max_new_tokens": 256}'``."""

    def change(self, body: dict[str, Any]) -> None:
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int):
                body[name] = min(body[name], 256)


class PenalisedByDefault(BodyDefect):
    """Qwen2.5: repetition is penalised by default, and scores are those before the penalty."""

    NEUTRAL: ClassVar[dict[str, float]] = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Remember what was asked for."""
        exchange.notes["asked"] = exchange.request.json
        return await super().on_request(exchange)

    def change(self, body: dict[str, Any]) -> None:
        if body.get("presence_penalty") is None:
            body["presence_penalty"] = 1.5

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Let another token than the one that was taken have the best score, once."""
        if (
            answer.status != 200
            or not exchange.request.generates
            or self.NEUTRAL.items() <= exchange.notes["asked"].items()
        ):
            return
        body = answer.json
        scores = (body.get("choices") or [{}])[0].get("logprobs") or {}
        for entry in (scores.get("content") or [])[:1]:
            for one in entry["top_logprobs"][1:2]:
                one["logprob"], entry["logprob"] = -0.01, -5.0
                entry["top_logprobs"][0]["logprob"] = -5.0
                entry["top_logprobs"].sort(key=lambda other: -other["logprob"])
        if "token_logprobs" in scores:
            taken = scores["tokens"][0]
            scores["token_logprobs"][0] = -5.0
            scores["top_logprobs"][0] = {"the": -0.01, taken: -5.0}
        answer.json = body


class SentencePieceTokenizer(Defect):
    """Llama 2, Mistral 7B: before vLLM fixed it, a token that is decoded alone loses the space before its word."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """In plain answers."""
        body = answer.json
        if exchange.request.generates and answer.status == 200 and body:
            for choice in body["choices"]:
                _strip_tokens(choice.get("logprobs") or {})
            answer.json = body

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """In streams."""
        async for event in events:
            chunk = read_chunk(event)
            for choice in chunk.get("choices") or []:
                _strip_tokens(choice.get("logprobs") or {})
            yield write_chunk(chunk) if chunk else event


def _strip_tokens(logprobs: dict[str, Any]) -> None:
    for entry in logprobs.get("content") or []:
        for one in (entry, *entry["top_logprobs"]):
            one["token"] = one["token"].removeprefix(" ")
            one["bytes"] = list(one["token"].encode())
    if "tokens" in logprobs:
        tokens = [token.removeprefix(" ") for token in logprobs["tokens"]]
        likeliest = [
            {token.removeprefix(" "): score for token, score in (top or {}).items()} for top in logprobs["top_logprobs"]
        ]
        logprobs |= {"tokens": tokens, "top_logprobs": likeliest}


class DefaultSystemPrompt(Defect):
    """Mistral Small 3.1: its chat template adds a long system prompt to conversations without one."""

    PROMPT: ClassVar[str] = "You are a model that says what it knows, and asks where a question is not clear. " * 40

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Add it, for the tokenizer too."""
        body = exchange.request.json
        messages = body.get("messages")
        if isinstance(messages, list) and messages and all(isinstance(one, dict) for one in messages):
            has_one = "system" in [one.get("role") for one in messages]
            added = [] if has_one else [{"role": "system", "content": self.PROMPT}]
            exchange.request.json = body | {"messages": [*added, *messages]}
        return None

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Its tokens are in the prefix cache (--enable-prompt-tokens-details)."""
        body = answer.json
        if exchange.request.path == "/v1/chat/completions" and "usage" in body:
            cached = min(body["usage"]["prompt_tokens"], len(self.PROMPT.split())) // 16 * 16
            body["usage"]["prompt_tokens_details"] = {"cached_tokens": cached}
            answer.json = body


class NoSystemRole(Defect):
    """Gemma 2: its chat template has no place for a system prompt."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Refuse it in the template's words."""
        messages = exchange.request.json.get("messages")
        roles = [one.get("role") for one in messages if isinstance(one, dict)] if isinstance(messages, list) else []
        return refuse(400, "System role not supported") if "system" in roles else None


class FewLargePieces(Defect):
    """A server with ``--stream-interval``, or one that drafts many tokens: a piece of a stream has up to 20 tokens."""

    TOKENS: ClassVar[int] = 20

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Send the first piece of text at once, and then each after so many, and what ends the text at once."""
        held: list[dict[str, Any]] = []
        sent = 0
        async for event in events:
            chunk = read_chunk(event)
            choices = chunk.get("choices") or []
            has_text = len(choices) == 1 and bool(choices[0].get("text") or choices[0].get("delta", {}).get("content"))
            if has_text and (exchange.request.json.get("n") or 1) == 1:
                held.append(chunk)
                if choices[0].get("finish_reason") is None and sent and len(held) < self.TOKENS:
                    continue
                sent, event, held = sent + 1, write_chunk(_join(held)), []
            elif held:
                yield write_chunk(_join(held))
                held = []
            yield event
        if held:
            yield write_chunk(_join(held))


def _join(chunks: list[dict[str, Any]]) -> dict[str, Any]:
    """The last chunk, with the text, tokens and scores of all."""
    joined = chunks[-1]
    choice, parts = joined["choices"][0], [chunk["choices"][0] for chunk in chunks]
    if "delta" in choice:
        choice["delta"]["content"] = "".join(part["delta"].get("content") or "" for part in parts)
    else:
        choice["text"] = "".join(part["text"] for part in parts)
    if choice.get("token_ids") is not None:
        choice["token_ids"] = [token for part in parts for token in part.get("token_ids") or []]
    if scores := [part["logprobs"] for part in parts if part.get("logprobs")]:
        choice["logprobs"] = {name: [one for each in scores for one in each[name] or []] for name in scores[0]}
    return joined


class DataParallel(Defect):
    """Two engines behind one server (--data-parallel-size 2), which take requests in turn, with a cache each."""

    def __init__(self) -> None:
        self._asked = 0

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Let a prompt meet only half of the caches."""
        body = exchange.request.json
        if exchange.request.path == "/v1/completions" and isinstance(body.get("prompt"), str):
            self._asked += 1
            exchange.request.json = body | {"prompt": " " * (self._asked % 2) + body["prompt"]}
        return None

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Show the series of both engines."""
        if exchange.request.path == "/metrics":
            series = rb'(?m)^(vllm:\w+\{[^}\n]*engine=")0("[^}\n]*\}) (\S+)$'
            answer.body = re.sub(series, rb"\g<0>\n\g<1>1\g<2> 0.0", answer.body).replace(
                b'engine="1",enable_prefix_caching="True",block_size="16"} 0.0',
                b'engine="1",enable_prefix_caching="True",block_size="16"} 1.0',
            )

"""Defects on the way in: what a gateway does to a request before the server sees it."""

from __future__ import annotations

import json
import re
import unicodedata
import weakref
from typing import Any, ClassVar

from tests.defects import checks
from tests.defects.proxy.server import Answer, Client, ClientGone, Defect, Exchange, refuse


class BodyDefect(Defect):
    """Changes the JSON of requests for generated text."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Change the body, unless it is not one."""
        if exchange.request.generates and (body := exchange.request.json):
            self.change(body)
            exchange.request.json = body
        return None

    def change(self, body: dict[str, Any]) -> None:
        """Change the body in place."""
        raise NotImplementedError


class ZerosDropped(
    BodyDefect,
    by={checks.GREEDY_BEST},
    says=r"temperature 0|likelier",
    source="https://github.com/BerriAI/litellm/issues/822",
):
    """Parameters that are 0, false or empty count as absent: ``temperature: 0`` becomes the model's default."""

    def change(self, body: dict[str, Any]) -> None:
        for name in [name for name, value in body.items() if not value]:
            del body[name]
        # The model's own default may be near 0, where little would be lost.
        body.setdefault("temperature", 2.0)


class EmptyArraysBecomeObjects(
    BodyDefect,
    by={checks.DEFAULTS},
    says=r"'stop': .*answered 400",
    source="https://github.com/Kong/kong/issues/14983",
):
    """The body is decoded and encoded again by a language that has one type for arrays and objects."""

    def change(self, body: dict[str, Any]) -> None:
        body.update({name: {} for name, value in body.items() if value == []})


class UnknownFieldsDropped(
    BodyDefect,
    by={checks.MIN_TOKENS, checks.CHOICE},
    says=r"min_tokens=24 gave",
    source="https://github.com/deepjavalibrary/djl-serving/issues/2543",
):
    """Fields that OpenAI's API does not have are dropped: ``min_tokens``, ``top_k``, ``structured_outputs``."""

    FIELDS: ClassVar[tuple[str, ...]] = (
        "min_tokens",
        "top_k",
        "min_p",
        "repetition_penalty",
        "ignore_eos",
        "structured_outputs",
    )

    def change(self, body: dict[str, Any]) -> None:
        for name in self.FIELDS:
            body.pop(name, None)


class UnknownFieldsDroppedFromStreams(
    UnknownFieldsDropped,
    by={checks.STOP_TOKEN_STREAMED},
    says=r"stop token \d+: streamed",
    source="https://github.com/BerriAI/litellm/issues/4769",
):
    """The same, with other fields, for streams alone."""

    FIELDS: ClassVar[tuple[str, ...]] = ("stop_token_ids", "min_tokens", "structured_outputs")

    def change(self, body: dict[str, Any]) -> None:
        if body.get("stream"):
            super().change(body)


class FirstStopTextOnly(
    BodyDefect,
    by={checks.EVERY_STOP},
    says=r"stop text 4 of 4",
    source="https://github.com/mudler/LocalAI/pull/153",
):
    """Of several stop texts the first one is passed on."""

    def change(self, body: dict[str, Any]) -> None:
        if isinstance(body.get("stop"), list):
            body["stop"] = body["stop"][:1]


class LimitInjected(
    BodyDefect,
    by={checks.ABSENT_LIMIT},
    says=r"absent limit != rest of the context",
    source="https://github.com/aws-samples/bedrock-access-gateway/pull/237",
):
    """A request without a limit gets the gateway's own, of 16 tokens."""

    def change(self, body: dict[str, Any]) -> None:
        if "max_completion_tokens" not in body:
            body.setdefault("max_tokens", 16)


class LimitLowered(
    BodyDefect,
    by={checks.MAX_TOKENS},
    says=r"max_tokens=18 gave 12 tokens",
    source="https://github.com/pollinations/pollinations/pull/4012",
):
    """No answer is longer than the gateway's own limit."""

    def change(self, body: dict[str, Any]) -> None:
        for name in ("max_tokens", "max_completion_tokens"):
            if isinstance(body.get(name), int):
                body[name] = min(body[name], 12)


class SeedDropped(
    BodyDefect, by={checks.SEED}, says=r"no seed repeated", source="https://github.com/lm-sys/FastChat/pull/3370"
):
    """``seed`` is not passed on."""

    def change(self, body: dict[str, Any]) -> None:
        body.pop("seed", None)


class ChoicesDropped(
    BodyDefect, by={checks.N}, says=r"n=3 gave 1 choices", source="https://github.com/BerriAI/litellm/issues/564"
):
    """``n`` is not passed on."""

    def change(self, body: dict[str, Any]) -> None:
        body.pop("n", None)


class ToolsDropped(
    BodyDefect,
    by={checks.TOOL_REQUESTED},
    says=r"expected one tool call, got 0",
    source="https://github.com/BerriAI/litellm/issues/8199",
):
    """Tools count as a parameter that the server does not know, and are dropped."""

    def change(self, body: dict[str, Any]) -> None:
        for name in ("tools", "tool_choice", "parallel_tool_calls"):
            body.pop(name, None)


class SystemPromptAdded(
    BodyDefect,
    by={checks.PROMPT_CHAT},
    says=r"usage reports \d+, /tokenize \d+",
    source="https://github.com/Kong/kong/issues/14983",
):
    """A prompt decorator puts its own system message in front of every chat."""

    def change(self, body: dict[str, Any]) -> None:
        if isinstance(body.get("messages"), list):
            body["messages"] = [{"role": "system", "content": "Answer politely."}, *body["messages"]]


class _PromptDefect(BodyDefect):
    """Changes the text of prompts."""

    def change(self, body: dict[str, Any]) -> None:
        if isinstance(body.get("prompt"), str):
            body["prompt"] = self.rewrite(body["prompt"])
        for message in body.get("messages") or []:
            if isinstance(message, dict) and isinstance(message.get("content"), str):
                message["content"] = self.rewrite(message["content"])

    def rewrite(self, text: str) -> str:
        """The text that is passed on."""
        raise NotImplementedError


class NumbersMasked(
    _PromptDefect,
    by={checks.PROMPT_UNCHANGED},
    says=r"<NUMBER>",
    source="https://github.com/BerriAI/litellm/pull/1931",
):
    """A guardrail for personal data replaces long numbers."""

    def rewrite(self, text: str) -> str:
        return re.sub(r"\d{6,}", "<NUMBER>", text)


class UnicodeNormalised(
    _PromptDefect,
    by={checks.PROMPT_UNCHANGED},
    says=r"prompt .*was changed on its way",
    source="https://github.com/openclaw/openclaw/pull/27788",
):
    """Text is normalised, so that characters of the same look become the same."""

    def rewrite(self, text: str) -> str:
        return unicodedata.normalize("NFKC", text)


class SpacesTrimmed(
    _PromptDefect,
    by={checks.PROMPT_UNCHANGED},
    says=r"prompt .*was changed on its way",
    source="https://github.com/diegosouzapw/OmniRoute/pull/14009",
):
    """Runs of spaces become one, which breaks indented code."""

    def rewrite(self, text: str) -> str:
        return re.sub(r" {2,}", " ", text)


class FirewallBlocksCode(
    Defect,
    by={checks.PROMPT_UNCHANGED},
    says=r"403",
    source="https://github.com/different-ai/openwork/issues/3419",
):
    """A web application firewall takes prompts about SQL, HTML or shells for attacks."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Refuse them."""
        if re.search(rb"DROP TABLE|<script|/etc/passwd", exchange.request.body):
            page = b"<html><head><title>403 Forbidden</title></head><body>Request blocked.</body></html>"
            return Answer(403, {"content-type": "text/html"}, page)
        return None


class BodyOver32KibRefused(
    Defect,
    by={checks.LARGE_BODY, checks.ANY_WAY},
    says=r"32 KiB|413",
    source="https://github.com/envoyproxy/ai-gateway/issues/827",
):
    """A request body over the gateway's buffer of 32 KiB is refused."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Refuse it, as Envoy does."""
        if len(exchange.request.body) > 32 * 1024:
            return Answer(413, {"content-type": "text/plain"}, b"Payload Too Large")
        return None


class BodyCutAt64Kib(
    Defect,
    by={checks.LARGE_BODY},
    says=r"body of",
    source="https://github.com/apache/apisix/issues/3062",
):
    """A request body is read up to 64 KiB, and passed on cut."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Cut it."""
        exchange.request.body = exchange.request.body[: 64 * 1024]
        return None


class VersionLost(
    Defect,
    by={checks.LISTED},
    says=r"/v1/models.* answered 404",
    source="https://github.com/modelplaneai/modelplane/issues/327",
):
    """A route's rewriting of paths takes ``/v1`` away, too."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Shorten the path."""
        exchange.request.target = exchange.request.target.replace("/v1/", "/", 1)
        return None


class CharsetRefused(
    Defect,
    by={checks.ON_THE_WIRE},
    says=r"content type with a charset.*415",
    source="https://github.com/openai/openai-openapi/issues/194",
):
    """Only ``application/json`` to the letter counts as JSON."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Refuse any other type."""
        if exchange.request.generates and exchange.request.headers.get("content-type") != "application/json":
            return refuse(415, "unsupported media type")
        return None


class RateLimited(
    Defect,
    by={checks.AT_ONCE},
    says=r"429",
    source="https://github.com/dryvist/nix-ai/pull/1190",
):
    """More than four requests at a time are refused with 429."""

    def __init__(self) -> None:
        self._clients: dict[int, object] = {}

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Count the connections that are answered just now."""
        if not exchange.request.generates:
            return None
        if len(self._clients) >= 4:
            return refuse(429, "rate limit exceeded: 4 concurrent requests")
        self._clients[exchange.number] = exchange
        exchange.notes["limited"] = True
        return None

    async def send(self, exchange: Exchange, answer: Answer) -> None:
        """Forget the request with its answer."""
        self._clients.pop(exchange.number, None)
        await super().send(exchange, answer)

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """A stream is forgotten at its begin: only whole answers are limited."""
        if answer.is_stream:
            self._clients.pop(exchange.number, None)


class RequestSentTwice(
    Defect,
    by={checks.SERVED_ONCE},
    says=r"counted 2 times",
    source="https://github.com/ITISFoundation/osparc-simcore/pull/8580",
):
    """Each request for text goes to the server twice, as with hedged requests, mirroring or hasty retries."""

    def copies(self, exchange: Exchange) -> int:
        """Two of what costs tokens."""
        return 2 if exchange.request.generates else 1


class TemperatureClamped(
    BodyDefect,
    by={checks.EVERYWHERE},
    says=r"temperature 2 drew what temperature 1 draws",
    source="https://github.com/theopenco/llmgateway/pull/3268",
):
    """A temperature over 1, which another provider refuses, is lowered to 1."""

    def change(self, body: dict[str, Any]) -> None:
        body["temperature"] = min(body.get("temperature", 1.0), 1.0)


class ZeroSeedDropped(
    BodyDefect,
    by={checks.EVERYWHERE},
    says=r"seed 0 never repeated its answer",
    source="https://github.com/InternLM/lmdeploy/pull/4526",
):
    """A seed of 0 counts as none."""

    def change(self, body: dict[str, Any]) -> None:
        if not body.get("seed"):
            body.pop("seed", None)


class CompletionsKnowLess(
    BodyDefect,
    by={checks.EVERYWHERE},
    says=r"parameters without effect on completions.*min_p.*include_stop_str_in_output",
    source="https://github.com/BerriAI/litellm/issues/32042",
):
    """Completions have a list of parameters of their own, which is shorter than that of chats."""

    LOST = ("min_p", "top_k", "repetition_penalty", "min_tokens", "include_stop_str_in_output", "stop_token_ids")

    def change(self, body: dict[str, Any]) -> None:
        if "prompt" in body:
            for name in self.LOST:
                body.pop(name, None)


class PromptsJoined(
    BodyDefect,
    by={checks.BATCH},
    says=r"a list of prompts != each prompt alone.*choices, expected 6",
    source="https://github.com/Ai00-X/ai00_server/pull/169",
):
    """The prompts of one request are joined into one."""

    def change(self, body: dict[str, Any]) -> None:
        prompts = body.get("prompt")
        if isinstance(prompts, list) and prompts and isinstance(prompts[0], str):
            body["prompt"] = "".join(prompts)


class LastTurnsOnly(
    BodyDefect,
    by={checks.LONG_CONVERSATION},
    says=r"a conversation of 41 turns",
    source="https://github.com/jupyterlab/jupyter-ai/pull/240",
):
    """The history is cut to its last ten turns."""

    def change(self, body: dict[str, Any]) -> None:
        if isinstance(body.get("messages"), list):
            body["messages"] = body["messages"][-10:]


class EqualTurnsMerged(
    BodyDefect,
    by={checks.LONG_CONVERSATION},
    says=r"a conversation of 4 turns",
    source="https://github.com/microsoft/agent-framework/pull/4716",
):
    """A turn that repeats the one before it counts as sent twice."""

    def change(self, body: dict[str, Any]) -> None:
        messages = body.get("messages")
        if isinstance(messages, list):
            body["messages"] = [one for place, one in enumerate(messages) if not place or one != messages[place - 1]]


class LongTextsCut(
    BodyDefect,
    by={checks.LONG_CONVERSATION},
    says=r"a conversation of 1 turns",
    source="https://github.com/openshift/lightspeed-service/pull/573",
):
    """A turn of more than 4096 characters is cut there."""

    def change(self, body: dict[str, Any]) -> None:
        for message in body.get("messages") or []:
            if isinstance(message, dict) and isinstance(message.get("content"), str):
                message["content"] = message["content"][:4096]


class FirstTextPartOnly(
    BodyDefect,
    by={checks.RENDERED},
    says=r"of a turn in two text parts",
    source="https://github.com/BaseIntelligence/bounty-challenge/issues/16575",
):
    """Of a turn in several text parts, the first one is passed on."""

    def change(self, body: dict[str, Any]) -> None:
        for message in body.get("messages") or []:
            if isinstance(message, dict) and isinstance(message.get("content"), list):
                message["content"] = message["content"][:1]


class ParallelCallsAllowed(
    BodyDefect,
    by={checks.TOOL_PARALLEL},
    says=r"parallel_tool_calls False: of two calls expected 1",
    source="https://github.com/vllm-project/vllm/issues/9451",
):
    """``parallel_tool_calls`` is taken for compatibility, and has no effect."""

    def change(self, body: dict[str, Any]) -> None:
        body.pop("parallel_tool_calls", None)


class JsonObjectDropped(
    BodyDefect,
    by={checks.FORMS},
    says=r"constrained by .*json_object",
    source="https://github.com/mlflow/mlflow/pull/23932",
):
    """Of the structured formats, the one with a schema is passed on, ``json_object`` is not."""

    def change(self, body: dict[str, Any]) -> None:
        if (body.get("response_format") or {}) == {"type": "json_object"}:
            body.pop("response_format")


class FieldsAssumed(
    Defect,
    by={checks.ODD},
    says=r"answered with a server error",
    source="https://github.com/elizaOS/eliza/pull/10111",
):
    """A body whose fields have another shape than expected ends in an exception, and its connection with it."""

    def __init__(self) -> None:
        self._ended: weakref.WeakSet[Client] = weakref.WeakSet()

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Look into the messages, and fail where there are none."""
        if exchange.client in self._ended:
            exchange.client.reset()
            raise ClientGone
        if exchange.request.path != "/v1/chat/completions":
            return None
        try:
            json.loads(exchange.request.body)["messages"][0]["content"].strip()
        except (KeyError, TypeError, IndexError, AttributeError):
            self._ended.add(exchange.client)
            return refuse(500, "Internal Server Error")
        except ValueError:
            return None
        return None


class CompletionsUnguarded(
    Defect,
    by={checks.KEY, checks.OPEN_PATHS},
    says=r"/v1/completions",
    source="https://github.com/ankitcharolia/kiro-gateway/issues/39",
    needs_key=True,
):
    """The key is asked for where chats are, and not where plain completions are."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Send the gateway's own key on."""
        if exchange.request.path == "/v1/completions":
            exchange.request.headers["authorization"] = "Bearer sim-key"
        return None


class KeyComparedByItsBeginning(
    Defect,
    by={checks.KEY},
    says=r"with the key and a letter more, expected 401",
    source="https://github.com/exa-labs/exa-mcp-server/pull/246",
    needs_key=True,
):
    """A key that begins with the right one is accepted."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Forget what comes after it."""
        given = exchange.request.headers.get("authorization", "")
        if given.startswith("Bearer sim-key"):
            exchange.request.headers["authorization"] = "Bearer sim-key"
        return None


class EscapesReadOneByOne(
    Defect,
    by={checks.PROMPT_UNCHANGED},
    says=r"sent with \\u escapes, was changed",
    source="https://github.com/Orange-OpenSource/hurl/issues/2235",
):
    """Each escape of a body is decoded alone, which replaces the characters that take two of them."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Bodies without escapes stay as they are."""
        pair = re.compile(rb"\\ud[89ab][0-9a-f]{2}\\ud[c-f][0-9a-f]{2}")
        exchange.request.body = pair.sub(rb"\\ufffd\\ufffd", exchange.request.body)
        return None

"""Defects on the way out: what a gateway does to whole answers, errors and headers."""

from __future__ import annotations

import asyncio
import html
import json
import re
from typing import Any

from tests.defects import checks
from tests.defects.proxy.server import Answer, Defect, Exchange, refuse


class AnswerDefect(Defect):
    """Changes the JSON of whole answers with text."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Change the body, unless it is not one."""
        body = answer.json
        if exchange.request.generates and answer.status == 200 and body.get("choices"):
            self.change(body)
            answer.json = body

    def change(self, body: dict[str, Any]) -> None:
        """Change the body in place."""
        raise NotImplementedError


class ExtraFieldsStripped(
    AnswerDefect,
    by={checks.STOP_TOKEN, checks.PROMPT_SCORES_AGAIN},
    says=r"prompt_logprobs were requested, got None",
    source="https://github.com/agentgateway/agentgateway/pull/3283",
):
    """Answers are read into a model of OpenAI's fields and written again, without vLLM's own."""

    FIELDS = ("stop_reason", "token_ids", "prompt_token_ids", "prompt_logprobs", "kv_transfer_params")

    def change(self, body: dict[str, Any]) -> None:
        for part in (body, *body["choices"]):
            for name in self.FIELDS:
                part.pop(name, None)


class LogprobsStripped(
    AnswerDefect,
    by={checks.LOGPROBS},
    says=r"logprobs were requested, got None",
    source="https://github.com/BerriAI/litellm/issues/579",
):
    """``logprobs`` is taken out of answers."""

    def change(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            choice["logprobs"] = None


class ModelRenamed(
    AnswerDefect, by={checks.NAMES}, says=r"hosted_vllm/", source="https://github.com/BerriAI/litellm/pull/23376"
):
    """Answers name the model as the gateway's configuration does."""

    def change(self, body: dict[str, Any]) -> None:
        body["model"] = f"hosted_vllm/{body['model']}"


class FirstToolCallOnly(
    AnswerDefect,
    by={checks.STREAM_IS_PLAIN},
    says=r"several tool calls",
    source="https://github.com/Nomadcxx/opencode-cursor/issues/123",
):
    """Of several tool calls only the first is passed on."""

    def change(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            if calls := (choice.get("message") or {}).get("tool_calls"):
                choice["message"]["tool_calls"] = calls[:1]


class ArgumentsAsObject(
    AnswerDefect,
    by={checks.TOOL_REQUESTED},
    says=r"expected a string of JSON",
    source="https://github.com/ggml-org/llama.cpp/issues/20198",
):
    """A tool call's arguments are decoded: an object where a text with JSON is expected."""

    def change(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            for call in (choice.get("message") or {}).get("tool_calls") or []:
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])


class DoubleEncoded(Defect, by={checks.CHARACTERS}, says=r"Ã", source="https://github.com/Miosa-osa/OSA/pull/137"):
    """UTF-8 is read as Latin-1 and encoded again."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Only bytes beyond ASCII change."""
        if exchange.request.generates:
            answer.body = answer.body.decode("latin-1").encode()


class CacheIgnoresParameters(
    Defect,
    by={checks.PARAMETERS},
    says=r"max_tokens=2 after max_tokens=6",
    source="https://github.com/microsoft/autogen/issues/7968",
):
    """A cache of answers keys by the prompt and the model alone."""

    def __init__(self) -> None:
        self._cache: dict[str, Answer] = {}

    def _key(self, exchange: Exchange) -> str:
        body = exchange.request.json
        return json.dumps([exchange.request.path, body.get("model"), body.get("messages"), body.get("prompt")])

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Answer from the cache."""
        body = exchange.request.json
        return None if not exchange.request.generates or body.get("stream") else self._cache.get(self._key(exchange))

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Keep whole answers."""
        if exchange.request.generates and answer.status == 200 and not answer.is_stream:
            self._cache[self._key(exchange)] = answer


class AnswersSwapped(
    Defect, by={checks.AT_ONCE}, says=r"answers are mixed up", source="https://github.com/wiremock/wiremock/issues/473"
):
    """Of two whole answers that are under way at a time, each client gets the other's."""

    def __init__(self) -> None:
        self._waiting: list[tuple[Answer, asyncio.Event]] = []

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Swap with the answer that waits, or wait a moment for another one."""
        if not exchange.request.generates or answer.status != 200 or answer.is_stream:
            return
        if self._waiting:
            other, met = self._waiting.pop()
            other.body, answer.body = answer.body, other.body
            met.set()
            return
        met = asyncio.Event()
        self._waiting.append((answer, met))
        try:
            await asyncio.wait_for(met.wait(), 0.05)
        except TimeoutError:
            self._waiting = [one for one in self._waiting if one[1] is not met]


class IdenticalRequestsCoalesced(
    Defect,
    by={checks.SAMPLED_APART},
    says=r"identical requests",
    source="https://github.com/verl-project/uni-agent/pull/204",
):
    """Identical requests within two seconds get one answer."""

    def __init__(self) -> None:
        self._recent: dict[bytes, tuple[float, asyncio.Future[Answer]]] = {}

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Wait for the first one's answer."""
        request, loop = exchange.request, asyncio.get_running_loop()
        if not request.generates or request.json.get("stream"):
            return None
        at_s, first = self._recent.get(request.body, (0.0, None))
        if first is not None and loop.time() - at_s < 2:
            return await asyncio.shield(first)
        exchange.notes["first"] = loop.create_future()
        self._recent[request.body] = loop.time(), exchange.notes["first"]
        return None

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Hand the answer to those who wait."""
        if first := exchange.notes.get("first"):
            first.set_result(answer)


class LargeAnswersCut(
    Defect,
    by={checks.LARGE_ANSWER},
    says=r"large answer|KiB",
    source="https://github.com/openresty/lua-nginx-module/issues/2298",
):
    """An answer over 64 KiB is cut there."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        answer.body = answer.body[: 64 * 1024] if exchange.request.generates else answer.body


class LengthOfTheOriginal(
    Defect,
    by={checks.COMPLETION},
    says=r"got no response|not with a JSON object",
    source="https://github.com/Gnosil/semantix/issues/368",
):
    """A plugin changes the body, and ``content-length`` stays that of the original."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Announce more than is sent."""
        if exchange.request.generates and not answer.is_stream:
            answer.headers["content-length"] = str(len(answer.body) + 16)
            exchange.notes["closes"] = True


class GzipWithoutHeader(
    Defect,
    by={checks.COMPLETION},
    says=r"not with a JSON object",
    source="https://github.com/apache/trafficcontrol/issues/1737",
):
    """Answers are compressed, and ``content-encoding`` does not say so."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Compress whole answers."""
        import gzip

        if exchange.request.generates and not answer.is_stream:
            answer.body = gzip.compress(answer.body)


class KeyEchoedInErrors(
    Defect,
    by={checks.KEY_SECRET},
    says=r"repeats the client's key",
    source="https://github.com/langgenius/dify/pull/39902",
    needs_key=True,
):
    """Errors show the request's headers, ``authorization`` among them."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Add them to the message."""
        body = answer.json
        if answer.status >= 400 and isinstance(body.get("error"), dict):
            body["error"]["message"] += f" (headers: {exchange.request.headers})"
            answer.json = body


class PromptInHeaders(
    Defect,
    by={checks.PROMPTS_PRIVATE},
    says=r"another client's prompt",
    source="https://github.com/apache/trafficserver/pull/5126",
):
    """A debugging header carries the last prompt that the gateway saw."""

    def __init__(self) -> None:
        self._last = ""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Add it to every answer."""
        if self._last:
            answer.headers["x-last-prompt"] = self._last
        prompt = exchange.request.json.get("prompt")
        if isinstance(prompt, str):
            self._last = prompt.encode("ascii", "ignore").decode().replace("\n", " ")[:200]


class OriginReflected(
    Defect,
    by={checks.OTHER_ORIGINS},
    says=r"every origin",
    source="https://github.com/open-webui/open-webui/pull/28961",
    needs_key=True,
):
    """Every origin is allowed, with credentials."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Send back the origin that asks."""
        if origin := exchange.request.headers.get("origin"):
            answer.headers |= {"access-control-allow-origin": origin, "access-control-allow-credentials": "true"}


class AdministrationOpen(
    Defect,
    by={checks.OPEN_PATHS},
    says=r"without a key",
    source="https://github.com/llm-d-incubation/llm-d-fast-model-actuation/issues/27",
    needs_key=True,
):
    """The key is asked for under one prefix only; the server's administration is open to everybody."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Answer a path that only a server in development mode has."""
        if exchange.request.path == "/server_info":
            return Answer(200, {"content-type": "application/json"}, b'{"vllm_config": {}}')
        return None


class LoginPage(
    Defect,
    by={checks.KEY},
    says=r"expected 401",
    source="https://github.com/oauth2-proxy/oauth2-proxy/issues/461",
    needs_key=True,
):
    """A request without the key is sent to a login page."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """As OAuth proxies do for browsers."""
        if answer.status == 401:
            answer.status, answer.headers, answer.body = 302, {"location": "https://sso.invalid/login"}, b""


class LoginPageForText(
    Defect,
    by={checks.FACT},
    says=r"answered 200, but not with a JSON object, sent by a login page \(oauth-proxy or similar\)",
    source="https://github.com/oauth2-proxy/oauth2-proxy/issues/461",
):
    """A request for text gets the page on which a person logs in, with status 200."""

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """As after a redirect that a proxy in between has followed."""
        if not exchange.request.generates:
            return None
        page = b"<!doctype html><html><body><form>Log in with OpenShift</form></body></html>"
        return Answer(200, {"content-type": "text/html"}, page)


class StatusesFlattened(
    Defect,
    by={checks.UNKNOWN_MODEL},
    says=r"answered 502, expected 404",
    source="https://github.com/kortix-ai/suna/pull/5986",
):
    """Every refusal of the server becomes the gateway's 502."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Keep the body."""
        if answer.status in (400, 404, 422):
            answer.status = 502


class PromptsOutOfOrder(
    AnswerDefect,
    by={checks.BATCH},
    says=r"a list of prompts != each prompt alone",
    source="https://github.com/openai/openai-python/issues/90",
):
    """The answers to several prompts are numbered as they come, and not by their prompts."""

    def change(self, body: dict[str, Any]) -> None:
        if len(body["choices"]) > 2:
            for place, choice in enumerate(reversed(body["choices"])):
                choice["index"] = place


class CallLeftInText(
    AnswerDefect,
    by={checks.TOOL_AUTO},
    says=r"stayed in the text too",
    source="https://github.com/can1357/oh-my-pi/issues/8495",
):
    """A parsed tool call stays in the text as well."""

    def change(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            message = choice.get("message") or {}
            for call in message.get("tool_calls") or []:
                message["content"] = (message.get("content") or "") + json.dumps(call["function"]["arguments"])
                message["content"] = message["content"].replace("\\", "")


class EmptyArgumentsLost(
    AnswerDefect,
    by={checks.TOOL_EMPTY},
    says=r"a tool without parameters: the text of the arguments is not JSON",
    source="https://github.com/pipecat-ai/pipecat/issues/4059",
):
    """Arguments without a field become an empty text."""

    def change(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            for call in (choice.get("message") or {}).get("tool_calls") or []:
                if json.loads(call["function"]["arguments"]) == {}:
                    call["function"]["arguments"] = ""


class ArgumentsEscapedTwice(
    AnswerDefect,
    by={checks.TOOL_CHARACTERS},
    says=r"expected the arguments \{'zone': 'Zürich",
    source="https://github.com/NousResearch/hermes-agent/issues/42801",
):
    """Characters beyond ASCII in arguments are escaped once too often."""

    def change(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            for call in (choice.get("message") or {}).get("tool_calls") or []:
                escaped = call["function"]["arguments"].encode("ascii", "backslashreplace").decode()
                call["function"]["arguments"] = escaped.replace("\\x", "\\\\x")


class CutCallSaysToolCalls(
    AnswerDefect,
    by={checks.TOOL_CUT},
    says=r"cut after 4 tokens ends with 'tool_calls'",
    source="https://github.com/local-inference-lab/vllm/pull/767",
):
    """Any answer with a call ends with ``tool_calls``, a cut one too."""

    def change(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            if (choice.get("message") or {}).get("tool_calls"):
                choice["finish_reason"] = "tool_calls"


class WholeAnswersGoOn(
    Defect,
    by={checks.LEAVES_EARLY},
    says=r"a whole answer of .* still runs",
    source="https://github.com/BerriAI/litellm/issues/37140",
):
    """A client that waits for a whole answer and disconnects is not reported to the server."""

    def aborts_upstream(self) -> bool:
        return False


class CompletionRenamed(
    AnswerDefect, by={checks.NAMES}, says=r"hosted_vllm/", source="https://github.com/BerriAI/litellm/pull/23376"
):
    """Answers to plain completions name the model as the gateway's configuration does; those to chats do not."""

    def change(self, body: dict[str, Any]) -> None:
        if body.get("object") == "text_completion":
            body["model"] = f"hosted_vllm/{body['model']}"


class MetricsMistyped(
    Defect,
    by={checks.TYPES},
    says=r"/metrics has content type 'application/json",
    source="https://github.com/openvinotoolkit/model_server/issues/3689",
):
    """Metrics are called JSON, which Prometheus 3 refuses."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        if exchange.request.path == "/metrics":
            answer.headers["content-type"] = "application/json; charset=utf-8"


class RunningStandsStill(
    Defect,
    by={checks.FREES_SLOT},
    says=r"while a stream of \d+ tokens was read, vllm:num_requests_running was 0",
    source="https://github.com/llm-d/llm-d-inference-sim/pull/36",
):
    """The gauge of running requests is always 0, so that autoscalers and routers see an idle server."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        if exchange.request.path == "/metrics":
            answer.body = re.sub(rb"(vllm:num_requests_running\{[^}]*\}) \S+", rb"\1 0.0", answer.body)


class ChatAnswersEscaped(
    AnswerDefect,
    by={checks.CHARACTERS},
    says=r"the answer is '.*&lt;b&gt;",
    source="https://github.com/coveo/ui-kit/pull/4100",
):
    """What a page would take for markup is escaped in chats."""

    def change(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            if content := (choice.get("message") or {}).get("content"):
                choice["message"]["content"] = html.escape(content, quote=False)


class EmptyAnswerIsAnError(
    Defect,
    by={checks.STOP},
    says=r"leaves empty was answered 502",
    source="https://github.com/diegosouzapw/OmniRoute/issues/3572",
):
    """A chat without text counts as a failure of the server, though its stop text left none."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Refuse it."""
        messages = [choice.get("message") or {} for choice in answer.json.get("choices") or []]
        if any(message.get("content") == "" and not message.get("tool_calls") for message in messages):
            refusal = refuse(502, "empty response from the model")
            answer.status, answer.body = refusal.status, refusal.body


class ArgumentEscapesUndone(
    AnswerDefect,
    by={checks.TOOL_CHARACTERS},
    says=r"a tool for Zürich: the text of the arguments is not JSON",
    source="https://github.com/openclaw/openclaw/pull/40425",
):
    """Escapes within a tool call's arguments are decoded, though they are JSON themselves."""

    def change(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            for call in (choice.get("message") or {}).get("tool_calls") or []:
                arguments = call["function"]["arguments"]
                call["function"]["arguments"] = arguments.replace("\\n", "\n").replace('\\"', '"')


class CharsetMislabelled(
    Defect,
    by={checks.TYPES},
    says=r"is in UTF-8, and its content type says '.*ISO-8859-1'",
    source="https://github.com/ralscha/sse-eventbus/issues/16",
):
    """Answers in UTF-8 are labelled with the web server's default charset."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Add it."""
        if exchange.request.generates:
            kind = answer.headers.get("content-type", "").partition(";")[0]
            answer.headers["content-type"] = f"{kind};charset=ISO-8859-1"


class CacheUsageStandsStill(
    Defect,
    by={checks.FREES_SLOT},
    says=r"vllm:kv_cache_usage_perc was 0",
    source="https://github.com/vllm-project/vllm/issues/20302",
):
    """The gauge of the KV cache is always 0, so that routers take the fullest server for an empty one."""

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Change that line."""
        if exchange.request.path == "/metrics":
            answer.body = re.sub(rb"(?m)^(vllm:kv_cache_usage_perc\{.*\}) .*$", rb"\1 0.0", answer.body)

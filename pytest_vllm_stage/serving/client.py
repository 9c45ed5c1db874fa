"""An OpenAI and vLLM client for checks: a call is one plain request, never retried, and an error names its request."""

from __future__ import annotations

import json as json_module
import ssl
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import httpx

from pytest_vllm_stage.core.certificate_errors import explain_refusal
from pytest_vllm_stage.core.gateways import explain_silence
from pytest_vllm_stage.serving.answers import Answer, StreamedAnswer, Tokens, Usage
from pytest_vllm_stage.serving.failures import CertificateRefused, RequestFailed, StreamBroken, shown
from pytest_vllm_stage.serving.gateway_errors import explain_gateway_error
from pytest_vllm_stage.serving.metrics import EngineMetrics
from pytest_vllm_stage.serving.replicas import Scrapes
from pytest_vllm_stage.serving.stream import Stream
from pytest_vllm_stage.serving.target import Target

__all__ = ["Answer", "EndpointClient", "RequestFailed", "Stream", "StreamBroken", "StreamedAnswer", "Target", "Usage"]

#: A body as it is sent, or its pieces.
Content = bytes | Iterator[bytes]
#: A text, its token ids, or several of either that are each answered.
Prompt = str | Sequence[int] | Sequence[str] | Sequence[Sequence[int]]
Messages = str | Sequence[Mapping[str, Any]]

CHAT = "/v1/chat/completions"
COMPLETIONS = "/v1/completions"

#: Seconds to a connection.
CONNECT_TIMEOUT_S = 10.0
#: The longest that a connection waits for its next request. Servers close an idle one after 5 s (uvicorn, which vLLM
#: runs on) or more; a request that meets the end of its connection is lost without anything being wrong.
KEPT_IDLE_S = 2.0
#: Seconds of silence that end a request; a server's first answer after its start can take many.
SILENCE_TIMEOUT_S = 120.0


class EndpointClient:
    """Talks to one target, over connections that are kept alive.

    Proxy variables and netrc of the environment are not used: what is measured is the path to the named server.

    Args:
        target: The served model.
        silence_timeout_s: Seconds without a byte after which a request fails.
        transport: Another way to send, for tests.

    Attributes:
        last_request: What was sent last, for the report of a failed test.
        last_response: Its response; None where there was none.
        before_chat: Called before a conversation is sent; raises where the model has no chat.
        scrapes: How `metrics` reads the engine, or all of its replicas.
        reasons: The model reasons before it answers; see `Answer.of`.
    """

    def __init__(
        self,
        target: Target,
        *,
        silence_timeout_s: float = SILENCE_TIMEOUT_S,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.target = target
        self.last_request: httpx.Request | None = None
        self.last_response: httpx.Response | None = None
        self.before_chat: Callable[[], None] | None = None
        self.scrapes = Scrapes(target.base_url)
        self.reasons = False
        self._silence_timeout_s = silence_timeout_s
        self._listed_names: set[str] | None = None
        self._http = httpx.Client(
            base_url=target.base_url,
            event_hooks={"request": [self._authorize]},
            timeout=httpx.Timeout(silence_timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=KEPT_IDLE_S),
            verify=_trust(target),
            trust_env=False,
            transport=transport,
        )

    def __enter__(self) -> EndpointClient:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"EndpointClient({self.target.model} at {self.target.base_url})"

    def close(self) -> None:
        self._http.close()

    def with_new_connections(self, *, silence_timeout_s: float | None = None) -> EndpointClient:
        """Another client of the same target, which shares no connection with this one; to be closed."""
        other = EndpointClient(self.target, silence_timeout_s=silence_timeout_s or self._silence_timeout_s)
        other.scrapes.replicas = self.scrapes.replicas
        return other

    def post(self, path: str, body: dict[str, Any], *, content: Content, headers: Mapping[str, str]) -> dict[str, Any]:
        """The JSON of a whole answer to a body that is sent as it is given.

        Args:
            path: The API's path.
            body: What the content says, for errors.
            content: The body's bytes, or their pieces for a chunked body.
            headers: Headers beyond the client's own.

        Raises:
            RequestFailed: no usable answer.
        """
        __tracebackhide__ = True
        if path == CHAT:
            self._prepare_chat()
        what = _what("POST", path, body)
        response = self._send(self._http.build_request("POST", path, content=content, headers=headers), what)
        return self._parsed(self._ok(response, what), what)

    def open_stream(self, path: str, body: dict[str, Any], *, content: Content, headers: Mapping[str, str]) -> Stream:
        """A streamed answer to a body that is sent as it is given; see `post` and `stream_chat`."""
        __tracebackhide__ = True
        if path == CHAT:
            self._prepare_chat()
        return self._stream(path, body, content=content, headers=headers)

    def models(self) -> list[dict[str, Any]]:
        """The entries of ``GET /v1/models``.

        Raises:
            RequestFailed: no usable answer.
        """
        __tracebackhide__ = True
        body = self._json("GET", "/v1/models")
        data = body.get("data")
        if not isinstance(data, list) or not all(isinstance(card, dict) and "id" in card for card in data):
            raise RequestFailed(f"GET /v1/models lists no models: {shown(json_module.dumps(body))}", status=200)
        return data

    def chat(self, messages: Messages, **parameters: Any) -> Answer:
        """A whole chat answer; a text stands for one message of the user.

        Raises:
            RequestFailed: no usable answer.
        """
        __tracebackhide__ = True
        self._prepare_chat()
        return Answer.of(self._json("POST", CHAT, self.chat_body(messages, **parameters)), reasons=self.reasons)

    def completion(self, prompt: Prompt, **parameters: Any) -> Answer:
        """A whole plain completion.

        Raises:
            RequestFailed: no usable answer.
        """
        __tracebackhide__ = True
        return Answer.of(self._json("POST", COMPLETIONS, self.completion_body(prompt, **parameters)))

    def stream_chat(self, messages: Messages, **parameters: Any) -> Stream:
        """A chat answer as a stream of timed events; to be read or closed.

        Raises:
            RequestFailed: the stream did not begin. What breaks later is raised while it is read.
        """
        __tracebackhide__ = True
        self._prepare_chat()
        return self._stream(CHAT, self.chat_body(messages, stream=True, **parameters))

    def stream_completion(self, prompt: Prompt, **parameters: Any) -> Stream:
        """A plain completion as a stream of timed events; see `stream_chat`."""
        __tracebackhide__ = True
        return self._stream(COMPLETIONS, self.completion_body(prompt, stream=True, **parameters))

    def tokenize(self, prompt: str | None = None, *, messages: Messages | None = None, **parameters: Any) -> Tokens:
        """The server's tokens of a text, or of a conversation as its chat template renders it.

        Raises:
            RequestFailed: no usable answer.
        """
        __tracebackhide__ = True
        if (prompt is None) == (messages is None):
            raise TypeError("tokenize takes either a prompt or messages")
        if messages is not None:
            self._prepare_chat()
        what = {"prompt": prompt} if messages is None else {"messages": _messages(messages)}
        body = self._json("POST", "/tokenize", {"model": self.target.model, **what, **parameters})
        if not isinstance(body.get("tokens"), list) or type(body.get("count")) is not int:
            raise RequestFailed(f"POST /tokenize gave no tokens: {shown(json_module.dumps(body))}", status=200)
        return Tokens(tuple(body["tokens"]), body["count"], body.get("max_model_len"))

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of tokens.

        Raises:
            RequestFailed: no usable answer.
        """
        __tracebackhide__ = True
        body = self._json("POST", "/detokenize", {"model": self.target.model, "tokens": list(tokens)})
        if not isinstance(body.get("prompt"), str):
            raise RequestFailed(f"POST /detokenize gave no text: {shown(json_module.dumps(body))}", status=200)
        return str(body["prompt"])

    def health(self) -> None:
        """Return when ``GET /health`` is 200.

        Raises:
            RequestFailed: it is not.
        """
        __tracebackhide__ = True
        self._checked("GET", "/health")

    def version(self) -> str:
        """The engine's version.

        Raises:
            RequestFailed: no usable answer.
        """
        __tracebackhide__ = True
        return str(self._json("GET", "/version").get("version"))

    def metrics(self) -> EngineMetrics:
        """One scrape of ``GET /metrics``, of each replica where they are known, labelled with the target's name.

        vLLM labels the series with the first of a model's served names, and those of a LoRA adapter with its base
        model's.

        Raises:
            RequestFailed: no usable answer.
            StageError: a replica's pod cannot be read.
        """
        __tracebackhide__ = True
        found = self.scrapes.read(lambda: self._checked("GET", "/metrics").text)
        names = found.model_names()
        if len(names) == 1 and names != {self.target.model} and names <= self._other_names():
            return found.with_model_name(self.target.model)
        return found

    def _other_names(self) -> set[str]:
        """What else the server calls the target's model: its other served names, and an adapter's base model."""
        __tracebackhide__ = True
        if self._listed_names is None:
            self._listed_names = {str(card["id"]) for card in self.models()} - {self.target.model}
        return self._listed_names

    def raw(
        self,
        method: str,
        path: str,
        *,
        json: Any = None,
        content: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> httpx.Response:
        """One request as it is given, and the response whatever its status, for checks of the protocol.

        Raises:
            RequestFailed: there was no response at all.
        """
        __tracebackhide__ = True
        request = self._http.build_request(method, path, json=json, content=content, headers=headers)
        return self._send(request, _what(method, path, json))

    def chat_body(self, messages: Messages, **parameters: Any) -> dict[str, Any]:
        """The body that `chat` sends, for `raw`."""
        return {"model": self.target.model, "messages": _messages(messages), **parameters}

    def completion_body(self, prompt: Prompt, **parameters: Any) -> dict[str, Any]:
        """The body that `completion` sends, for `raw`."""
        return {"model": self.target.model, "prompt": prompt, **parameters}

    def _prepare_chat(self) -> None:
        __tracebackhide__ = True
        if self.before_chat is not None:
            self.before_chat()

    def _json(self, method: str, path: str, body: dict[str, Any] | None = None) -> dict[str, Any]:
        __tracebackhide__ = True
        return self._parsed(self._checked(method, path, body), _what(method, path, body))

    def _parsed(self, response: httpx.Response, what: str) -> dict[str, Any]:
        __tracebackhide__ = True
        try:
            answer = response.json()
        except ValueError:
            answer = None
        if not isinstance(answer, dict):
            raise self._refused(response, what, "answered 200, but not with a JSON object")
        return answer

    def _checked(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        __tracebackhide__ = True
        what = _what(method, path, body)
        return self._ok(self._send(self._http.build_request(method, path, json=body), what), what)

    def _ok(self, response: httpx.Response, what: str) -> httpx.Response:
        __tracebackhide__ = True
        if response.status_code != httpx.codes.OK:
            response.read()
            raise self._refused(response, what, f"answered {response.status_code} {response.reason_phrase}")
        return response

    def _stream(
        self,
        path: str,
        body: dict[str, Any],
        *,
        content: Content | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Stream:
        __tracebackhide__ = True
        what = _what("POST", path, body)
        json = body if content is None else None
        sent_at = time.perf_counter()
        request = self._http.build_request("POST", path, json=json, content=content, headers=headers)
        return Stream(self._ok(self._send(request, what, stream=True), what), what, sent_at)

    def _send(self, request: httpx.Request, what: str, *, stream: bool = False) -> httpx.Response:
        __tracebackhide__ = True
        if self.target.unreachable:
            raise RequestFailed(f"{what} was not sent: {self.target.unreachable}")
        self.last_request, self.last_response = request, None
        try:
            self.last_response = response = self._http.send(request, stream=stream)
            return response
        except httpx.HTTPError as error:
            refused = explain_refusal(error, self.target.base_url, self.target.ca_file)
            if refused:
                raise CertificateRefused(
                    f"{what} at {self.target.base_url} was not sent: {refused.reason}", hint=refused.hint
                ) from None
            reason = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
            raise RequestFailed(
                f"{what} at {self.target.base_url} got no response: {reason}",
                hint=explain_silence(error, self.target.base_url) or f"curl -sv {self.target.base_url}/health",
            ) from None

    def _authorize(self, request: httpx.Request) -> None:
        """Send the current token, which may be renewed between requests, unless the request has its own."""
        if self.target.api_key:
            request.headers.setdefault("Authorization", f"Bearer {self.target.api_key.reveal()}")

    def _refused(self, response: httpx.Response, what: str, how: str) -> RequestFailed:
        body = response.text
        sent = response.request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.target.api_key and sent:
            body = body.replace(sent, str(self.target.api_key))
        sent_by = explain_gateway_error(response, body)
        if sent_by is None:
            return RequestFailed(f"{what} {how}: {shown(body)}", status=response.status_code, body=body)
        sender = sent_by.sender if response.is_redirect else f"sent by {sent_by.sender}"
        return RequestFailed(
            f"{what} {how}, {sender}: {shown(sent_by.text)}",
            hint=sent_by.hint,
            status=response.status_code,
            body=body,
        )


def _trust(target: Target) -> ssl.SSLContext:
    """Verifies against the target's authorities, or the system's where it names none.

    Without TLS it trusts no authority, since to load a bundle of them takes 20 ms for each client.
    """
    if not target.base_url.startswith("https:"):
        return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    return ssl.create_default_context(cafile=target.ca_file)


def _messages(messages: Messages) -> list[Mapping[str, Any]]:
    return [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)


def _what(method: str, path: str, body: Any = None) -> str:
    model = body.get("model") if isinstance(body, dict) else None
    return f"{method} {path} (model {model})" if model else f"{method} {path}"

"""Whether an engine answers at all: a server that accepts requests and never answers is named once, in bounded time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import httpx

from pytest_vllm_stage.serving.answers import Answer
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.failures import RequestFailed, shown

#: Seconds without an answer, and without a token for anybody, after which an engine counts as dead. The first answer
#: after a start may compile kernels for half a minute.
ANSWER_TIMEOUT_S = 60.0
#: The share of it after which the server is asked for its state, while the request still waits.
OBSERVED_AFTER = 0.9
#: Seconds for each question about a server that does not answer.
QUESTION_TIMEOUT_S = 5.0
#: How vLLM and transformers refuse a conversation for a tokenizer without a chat template, in all their versions.
_LACKS_TEMPLATE = re.compile(
    r"provide a chat template|chat_template is not set|(no|without a|not have a|not define a|missing) chat[ _]template",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class FirstAnswer:
    """What came of the first request to an endpoint.

    Attributes:
        dead: What a server that accepts requests and answers none looks like; empty where it answers or fails at once.
        message: The message of its chat; None where there was none.
        lacks_template: In what words it refused the chat for lack of a chat template; empty where it did not.
    """

    dead: str = ""
    message: Mapping[str, Any] | None = None
    lacks_template: str = ""


def find_dead_engine(endpoint: EndpointClient) -> str:
    """What a server that accepts requests and answers none looks like; empty where it answers or fails at once."""
    return ask_first(endpoint).dead


def ask_first(endpoint: EndpointClient) -> FirstAnswer:
    """Ask for one token of a chat, or of a completion where the model has no chat template."""
    first = _ask(endpoint, lambda client: client.chat("Say hello.", max_tokens=1))
    if not first.lacks_template:
        return first
    plain = _ask(endpoint, lambda client: client.completion("Hello", max_tokens=1))
    return FirstAnswer(plain.dead, lacks_template=first.lacks_template)


def select_grammar_backend(endpoint: EndpointClient) -> None:
    """Let the first request with a grammar be a simple one, which every backend serves.

    vLLM's choice of a backend for it (vllm/v1/structured_output) holds until the engine restarts. After a first request
    that xgrammar refuses it is guidance's, and 0.26 and 0.32 answer every named or required tool call with 500.
    """
    with suppress(RequestFailed):  # the checks report it
        endpoint.completion("Hello", max_tokens=1, structured_outputs={"choice": ["Hello"]})


def _ask(endpoint: EndpointClient, ask: Callable[[EndpointClient], Answer]) -> FirstAnswer:
    before = _generated_tokens(endpoint)
    with endpoint.with_new_connections(silence_timeout_s=ANSWER_TIMEOUT_S) as client, ThreadPoolExecutor(1) as pool:
        client.reasons = True
        probe = pool.submit(ask, client)
        wait([probe], timeout=ANSWER_TIMEOUT_S * OBSERVED_AFTER)
        # The queue holds the probe for as long as its client waits.
        seen = "" if probe.done() else f"{_describe_health(endpoint)}, {_describe_queue(endpoint)}"
        error = probe.exception()
    if error is None:
        return FirstAnswer(message=probe.result().choice.get("message"))
    # Any other failure comes at once, and each check names it itself.
    if not isinstance(error, RequestFailed):
        return FirstAnswer()
    if error.status == httpx.codes.BAD_REQUEST and _LACKS_TEMPLATE.search(error.body):
        return FirstAnswer(lacks_template=shown(error.body))
    is_silent = "ReadTimeout" in error.message
    if not is_silent or (before is not None and _generated_tokens(endpoint) != before):
        return FirstAnswer()
    return FirstAnswer(f"{seen}, none answered in {ANSWER_TIMEOUT_S:g} s")


def _describe_health(endpoint: EndpointClient) -> str:
    with endpoint.with_new_connections(silence_timeout_s=QUESTION_TIMEOUT_S) as client:
        try:
            return f"/health is {client.raw('GET', '/health').status_code}"
        except RequestFailed:
            return f"/health does not answer in {QUESTION_TIMEOUT_S:g} s"


def _describe_queue(endpoint: EndpointClient) -> str:
    with endpoint.with_new_connections(silence_timeout_s=QUESTION_TIMEOUT_S) as client:
        try:
            metrics = client.metrics()
            running, waiting = (
                int(metrics.value(f"vllm:num_requests_{state}", model_name=endpoint.target.model))
                for state in ("running", "waiting")
            )
        except (RequestFailed, LookupError, ValueError):
            return "/metrics does not say how many requests wait"
    return f"{running} requests run and {waiting} wait"


def _generated_tokens(endpoint: EndpointClient) -> float | None:
    with endpoint.with_new_connections(silence_timeout_s=QUESTION_TIMEOUT_S) as client:
        try:
            return client.metrics().value("vllm:generation_tokens", model_name=endpoint.target.model)
        except (RequestFailed, LookupError, ValueError):
            return None

"""What must stay private: a client's key, its prompts, and the paths that administer the server."""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Iterator

import httpx
import pytest

from pytest_vllm_stage import EndpointClient, does_not_apply
from pytest_vllm_stage.serving.client import CHAT, COMPLETIONS

ELSEWHERE = "https://other-origin.invalid"
WRONG_KEY = "wrong-key-of-a-client"
#: Paths of a vLLM server in development mode, of its profiler and its adapters. They are asked with GET, which does
#: nothing where POST would.
ADMINISTRATION = (
    "/server_info",
    "/is_sleeping",
    "/sleep",
    "/wake_up",
    "/reset_prefix_cache",
    "/collective_rpc",
    "/start_profile",
    "/stop_profile",
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
)
GUARDED = (CHAT, COMPLETIONS, "/v1/models", "/v1/responses", "/v1/embeddings", "/v1/messages")
#: The path is there: it gave something, complained about the body, or wants POST. Redirects lead to a login.
ANSWERED = (200, 201, 204, 400, 405, 415, 422)


def answers(endpoint: EndpointClient, text: str) -> Iterator[httpx.Response]:
    """Answers and errors of every kind."""
    chat, completion = endpoint.chat_body(text, max_tokens=1), endpoint.completion_body(text, max_tokens=1)
    yield endpoint.raw("POST", CHAT, json=chat)
    yield endpoint.raw("POST", COMPLETIONS, json={**completion, "stream": True})
    yield endpoint.raw("POST", CHAT, json={**chat, "temperature": -1})
    yield endpoint.raw("POST", CHAT, json={**chat, "model": "no-such-model"})
    yield endpoint.raw("POST", COMPLETIONS, content=b'{"model": ', headers={"content-type": "application/json"})
    yield endpoint.raw("GET", "/v1/no-such-path")
    yield endpoint.raw("GET", CHAT)
    yield endpoint.raw("GET", "/v1/models")
    yield endpoint.raw("GET", "/metrics")


def said(response: httpx.Response) -> str:
    """Headers and body in one text."""
    headers = "\n".join(f"{name}: {value}" for name, value in response.headers.items())
    return f"{headers}\n{response.text}"


def where(response: httpx.Response) -> str:
    """The request with its status, for a message."""
    return f"{response.request.method} {response.request.url.path}, answered {response.status_code},"


def test_key_is_never_repeated(endpoint: EndpointClient) -> None:
    """No answer, header, error or metric repeats the client's key, right or wrong.

    Errors are logged, pasted into tickets and shown to users; a mistyped key is mostly a right one of another server.
    """
    if endpoint.target.api_key is None:
        does_not_apply("no key is configured for this endpoint (VLLM_STAGE_API_KEY)")
    key = endpoint.target.api_key.reveal()
    for response in answers(endpoint, "Say hello."):
        if key in said(response):
            pytest.fail(f"{where(response)} repeats the client's key")
    headers = {"authorization": f"Bearer {WRONG_KEY}"}
    with EndpointClient(dataclasses.replace(endpoint.target, api_key=None)) as anyone:
        refused = anyone.raw("POST", CHAT, json=endpoint.chat_body("Hello", max_tokens=1), headers=headers)
    if WRONG_KEY in said(refused):
        pytest.fail(f"{where(refused)} repeats the client's key, a wrong one")


def test_prompt_is_never_repeated_to_another_client(endpoint: EndpointClient) -> None:
    """What one client asked does not show in another client's answers, errors, headers, or in the metrics.

    Debugging headers, error pages and labels of metrics keep the last request, and show it to the next client.
    """
    marker = f"marker{time.time_ns()}"
    for path, body in (
        (COMPLETIONS, endpoint.completion_body(f"{marker} and more", max_tokens=1)),
        (CHAT, endpoint.chat_body(f"{marker} and more", max_tokens=1)),
        (CHAT, endpoint.chat_body(f"{marker} and more", max_tokens=1, temperature=-1)),
    ):
        endpoint.raw("POST", path, json=body)
    with endpoint.with_new_connections() as other:
        for response in answers(other, "Say hello."):
            if marker in said(response):
                at = said(response).index(marker)
                shown = said(response)[max(at - 60, 0) : at + 60]
                pytest.fail(f"{where(response)} repeats another client's prompt: {shown!r}")


def test_pages_of_other_origins_get_no_credentials(endpoint: EndpointClient) -> None:
    """Where a key is required, no CORS header lets pages of every origin read answers with a browser's credentials.

    ``*`` without credentials is vLLM's own default and no defect: a page must know the key. With credentials, any page
    that a user visits acts in the user's name. Two values of the header are refused by every browser.
    """
    if endpoint.target.api_key is None:
        does_not_apply("no key is configured for this endpoint (VLLM_STAGE_API_KEY)")
    body = endpoint.chat_body("Say hello.", max_tokens=1)
    asks = {"origin": ELSEWHERE, "access-control-request-method": "POST"}
    for response in (
        endpoint.raw("POST", CHAT, json=body, headers={"origin": ELSEWHERE}),
        endpoint.raw("OPTIONS", CHAT, headers=asks | {"access-control-request-headers": "authorization"}),
    ):
        allowed = response.headers.get_list("access-control-allow-origin")
        assert len(allowed) <= 1, f"{where(response)} has {len(allowed)} headers access-control-allow-origin: {allowed}"
        credentials = response.headers.get("access-control-allow-credentials", "").lower() == "true"
        assert not (credentials and allowed and allowed[0] in ("*", ELSEWHERE)), (
            f"{where(response)} opens the endpoint to every origin with credentials: it allows {allowed[0]!r} for "
            f"{ELSEWHERE}; name the origins (--allowed-origins), or leave out credentials"
        )


def test_administration_needs_a_key(endpoint: EndpointClient) -> None:
    """Without the key, neither a path that administers the server answers, nor any path under ``/v1``.

    vLLM documents which paths need no key: health, version, metrics and the tokenizer. Those of the development mode
    show the configuration, put the model to sleep and run code in the workers.
    """
    if endpoint.target.api_key is None:
        does_not_apply("no key is configured for this endpoint (VLLM_STAGE_API_KEY)")
    opened = {}
    with EndpointClient(dataclasses.replace(endpoint.target, api_key=None)) as anyone:
        for path in ADMINISTRATION:
            if (status := anyone.raw("GET", path).status_code) in ANSWERED:
                opened[path] = status
        for path in GUARDED:
            # 405 is given before the key is looked at.
            if (status := anyone.raw("POST", path, json={}).status_code) in ANSWERED and status != 405:
                opened[path] = status
    assert not opened, f"these paths answer without a key: {json.dumps(opened)}"

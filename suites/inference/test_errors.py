"""Invalid requests are refused at once, with a status and an error object that names what to change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from pytest_vllm_stage import EndpointClient, does_not_apply
from pytest_vllm_stage.checks.inference.together import together
from pytest_vllm_stage.serving.client import CHAT, COMPLETIONS
from pytest_vllm_stage.serving.failures import RequestFailed

Needs = Callable[..., None]

#: Changes of a chat that make it odd; none asks for much work.
ODD_CHATS: list[dict[str, Any]] = [
    {"messages": []},
    {"messages": [{}]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "hologram", "text": "x"}]}]},
    {"messages": {"role": "user", "content": "x"}},
    {"max_tokens": 0},
    {"max_tokens": 10**12},
    {"max_tokens": 1.5},
    {"temperature": "hot"},
    {"temperature": 1e308},
    {"top_p": -1},
    {"top_k": "all"},
    {"min_p": 2},
    {"n": -1},
    {"seed": "x"},
    {"seed": -1},
    {"seed": 2**70},
    {"stop": 5},
    {"stop": [1]},
    {"logit_bias": {"abc": 1}},
    {"logit_bias": []},
    {"logprobs": True, "top_logprobs": 10**6},
    {"logprobs": True, "top_logprobs": -5},
    {"repetition_penalty": 0},
    {"min_tokens": -1},
    {"response_format": "json"},
    {"response_format": {"type": "json_schema"}},
    {"tools": "x"},
    {"tools": [{}]},
    {"tool_choice": {"type": "function", "function": {"name": "missing"}}},
    {"stream_options": {"include_usage": True}},
    {"stream_options": "yes", "stream": True},
    {"structured_outputs": {"choice": []}},
    {"model": 5},
    {"unknown_parameter": {"a": [1]}},
]
ODD_COMPLETIONS: list[dict[str, Any]] = [
    {"prompt": None},
    {"prompt": ""},
    {"prompt": []},
    {"prompt": [[]]},
    {"prompt": {"a": 1}},
    {"prompt": ["Hello", 5]},
    {"prompt": 5},
    {"echo": "perhaps"},
    {"logprobs": 10**6},
    {"logprobs": -5},
    {"max_tokens": -5},
    {"suffix": 5},
    {"stream": "perhaps"},
]
ODD_BODIES: list[Any] = [[], "Hello", 5, None, {}]
ODD_AT_ONCE = 8
UNKNOWN = "no-such-model-is-served-here"
#: Fields whose effect depends on the model's template or is never seen, each with a value of a wrong type, and the
#: release that has all of them.
OWN_FIELDS: dict[str, Any] = {
    "chat_template_kwargs": "no dictionary",
    "reasoning_effort": 5,
    "truncate_prompt_tokens": "all",
}
OWN_FIELDS_SINCE = (0, 11, 0)


def read_error(response: httpx.Response) -> dict[str, Any]:
    """The error object of a refusal; vLLM before 0.10 sends it as the whole body."""
    body = response.json()
    error: dict[str, Any] = body if body.get("object") == "error" else body["error"]
    return error


def refused(response: httpx.Response, *statuses: int, what: str = "") -> str:
    """The message of a proper refusal: one of the statuses, and an error object as OpenAI's clients read it."""
    assert response.status_code in statuses, (
        f"{what}{response.request.method} {response.request.url.path} answered {response.status_code}, "
        f"expected {' or '.join(map(str, statuses))}: {response.text[:300]}"
    )
    try:
        error = read_error(response)
        message, kind, code = error["message"], error["type"], error.get("code")
    except (ValueError, TypeError, KeyError, AttributeError):
        pytest.fail(f"{response.status_code} without an error object: {response.text[:300]!r}")
    assert isinstance(message, str), f"the error's message is not a string: {error}"
    assert message.strip(), f"the error's message is empty: {error}"
    assert isinstance(kind, str), f"the error has no type: {error}"
    assert kind, f"the error has no type: {error}"
    assert code in (None, response.status_code) or isinstance(code, str), f"{response.status_code} says code {code!r}"
    return message


@pytest.mark.smoke
@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS], ids=["chat", "completion"])
def test_unknown_model_is_refused(endpoint: EndpointClient, path: str, stream: bool) -> None:
    """A model that is not served gives 404 and is named, for streams too, before any event.

    A server that answers with another model instead invalidates every comparison of models, and no client notices. A
    route that compares only the beginning of a name leads every variant of the model to this one.
    """
    what = {"messages": [{"role": "user", "content": "Say hello."}]} if path == CHAT else {"prompt": "Hello"}
    for model in (UNKNOWN, f"{endpoint.target.model}-{UNKNOWN}"):
        body = {"model": model, **what, "max_tokens": 2, "stream": stream}
        message = refused(endpoint.raw("POST", path, json=body), 404, what=f"asked for the model {model!r}, ")
        assert UNKNOWN in message, f"the error does not name the model that was asked for: {message!r}"


def test_unknown_path_or_method_is_refused(endpoint: EndpointClient) -> None:
    """An unknown path gives 404, and the wrong method on a known path 405 (or 404).

    A gateway that lets only listed paths and methods pass, as an AuthorizationPolicy does, gives 403. One that answers
    everything with 200, often an HTML page, hides every misspelt path from its callers.
    """
    expected = {
        ("GET", "/v1/no-such-path"): (404, 403),
        ("POST", "/v1/no-such-path"): (404, 405, 403),
        ("GET", CHAT): (405, 404, 403),
    }
    for (method, path), statuses in expected.items():
        status = endpoint.raw(method, path, json={} if method == "POST" else None).status_code
        assert status in statuses, f"{method} {path} answered {status}, expected {statuses[0]}"


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS], ids=["chat", "completion"])
def test_body_that_is_not_json_is_refused(endpoint: EndpointClient, path: str) -> None:
    """A body cut in the middle gives 400 (or 422), not a 5xx and not a hanging connection.

    A 5xx here would count every bug of a client as an outage of the server.
    """
    cut = f'{{"model": "{endpoint.target.model}", "max_tokens": 2, "prompt": "Hel'.encode()
    refused(endpoint.raw("POST", path, content=cut, headers={"content-type": "application/json"}), 400, 422)


@pytest.mark.parametrize(
    ("field", "change"),
    [
        ("messages", {"messages": None}),
        ("messages", {"messages": "Say hello."}),
        ("max_tokens", {"max_tokens": -1}),
        ("max_tokens", {"max_tokens": "many"}),
        ("temperature", {"temperature": -1}),
        ("top_p", {"top_p": 0}),
        ("top_p", {"top_p": 1.5}),
        ("top_k", {"top_k": -2}),
        ("n", {"n": 0}),
        ("frequency_penalty", {"frequency_penalty": 3}),
        ("min_tokens", {"min_tokens": 5}),
        ("stop", {"stop": [""]}),
        ("logit_bias", {"logit_bias": {"999999999": 1}}),
        ("tool_choice", {"tool_choice": "required"}),
    ],
    ids=[
        "missing-messages", "text-for-messages", "negative-limit", "text-for-limit", "negative-temperature",
        "zero-top-p", "top-p-over-1", "negative-top-k", "no-choices", "penalty-over-2", "least-over-limit",
        "empty-stop", "bias-on-no-token", "no-tools",
    ],
)  # fmt: skip
def test_invalid_field_is_refused_by_name(
    endpoint: EndpointClient, needs: Needs, field: str, change: dict[str, Any]
) -> None:
    """A missing, mistyped or impossible field gives 400 (or 422), and the error names the field.

    Silently using a default instead answers another request than the one sent.
    """
    needs("chat")
    body = {**endpoint.chat_body("Say hello.", max_tokens=2), **change}
    body = {key: value for key, value in body.items() if value is not None}
    response = endpoint.raw("POST", CHAT, json=body)
    message = refused(response, 400, 422)
    named = f"{message} {read_error(response).get('param')}"
    assert re.search(rf"\b{field}\b", named), f"the error does not name {field}: {message!r}"


def test_fields_of_vllm_itself_reach_the_engine(
    endpoint: EndpointClient, needs: Needs, release: tuple[int, ...] | None
) -> None:
    """Fields of vLLM's own are refused where their value has a wrong type, and so were passed on.

    A gateway that knows some fields alone drops the others in silence: a model reasons although
    ``chat_template_kwargs`` forbids it. What these fields do depends on the model's template; that the engine reads
    them does not.
    """
    needs("chat")
    if release is not None and release < OWN_FIELDS_SINCE:
        does_not_apply(f"vLLM {'.'.join(map(str, release))} does not have all of {', '.join(OWN_FIELDS)}")
    dropped = {}
    for field, value in OWN_FIELDS.items():
        body = endpoint.chat_body("Say hello.", max_tokens=1, **{field: value})
        response = endpoint.raw("POST", CHAT, json=body)
        if response.status_code == 200:
            dropped[field] = value
        else:
            refused(response, 400, 422)
    assert not dropped, f"these fields of vLLM did not reach the engine, which refuses such values: {dropped}"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("path", [CHAT, COMPLETIONS], ids=["chat", "completion"])
def test_prompt_over_the_context_length_is_refused(
    endpoint: EndpointClient, needs: Needs, path: str, stream: bool
) -> None:
    """A prompt longer than ``max_model_len`` gives 400 (or 413, 422), and the error names the limit.

    A server that truncates the prompt instead answers from half of the document, with status 200.
    """
    if path == CHAT:
        needs("chat")
    limit = endpoint.tokenize("x").max_model_len
    assert limit, "/tokenize reports no max_model_len"
    text = "word " * (limit + 16)
    assert endpoint.tokenize(text).count > limit, f"{limit + 16} words are at most {limit} tokens: no over-long prompt"
    parameters = {"max_tokens": 2, "stream": stream}
    body = endpoint.chat_body(text, **parameters) if path == CHAT else endpoint.completion_body(text, **parameters)
    message = refused(endpoint.raw("POST", path, json=body), 400, 413, 422)
    assert str(limit) in message, f"the error does not name the limit of {limit} tokens: {message!r}"


@pytest.mark.parametrize(
    "wanted",
    [
        {"structured_outputs": {"regex": "[a-"}},
        {"structured_outputs": {"json": {"type": "nope"}}},
        {"response_format": {"type": "nope"}},
    ],
    ids=["regex", "schema", "format"],
)
def test_invalid_structure_is_refused(
    endpoint: EndpointClient, needs: Callable[..., None], wanted: dict[str, Any]
) -> None:
    """An invalid expression, schema or format gives 400 (or 422), at once.

    Dropped silently, a program receives free text instead of data; compiled too late, it may crash the engine.
    """
    needs("structured_outputs")
    refused(endpoint.raw("POST", CHAT, json=endpoint.chat_body("Say hello.", max_tokens=4, **wanted)), 400, 422)


def test_odd_request_causes_no_server_error(endpoint: EndpointClient) -> None:
    """A value of the wrong type, range or shape is answered or refused, and never with a 5xx or without JSON.

    Each 5xx counts as an outage of the server, is retried, and may be the request that ends the engine for all.
    """
    model = {"model": endpoint.target.model}
    chat = model | {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    completion = model | {"prompt": "Hello", "max_tokens": 1}
    requests: list[tuple[str, Any, Any]] = [(CHAT, change, chat | change) for change in ODD_CHATS]
    requests += [(COMPLETIONS, change, completion | change) for change in ODD_COMPLETIONS]
    requests += [(path, body, body) for path in (CHAT, COMPLETIONS) for body in ODD_BODIES]

    def ask(request: tuple[str, Any, Any]) -> str:
        path, _, body = request
        try:
            response = endpoint.raw("POST", path, json=body)
        except RequestFailed as error:
            if "ReadTimeout" in error.message:
                raise  # a server that hangs is not asked again
            # uvicorn closes a connection after an exception, and does not say so in the 500 before: the next request
            # on it is lost, which is not this one's fault.
            with endpoint.with_new_connections() as fresh:
                response = fresh.raw("POST", path, json=body)
        try:
            response.json()
        except ValueError:
            return f"{response.status_code} with {response.text[:80]!r}"
        return f"{response.status_code}: {response.text[:120]}" if response.status_code >= 500 else ""

    problems = zip(requests, together(ask, requests, at_once=ODD_AT_ONCE), strict=True)
    wrong = {f"{path} with {json.dumps(odd)[:100]}": problem for (path, odd, _), problem in problems if problem}
    assert not wrong, f"{len(wrong)} of {len(requests)} odd requests are answered with a server error: {wrong}"
    endpoint.chat("Say hello.", max_tokens=1)


def test_server_answers_after_refusing(endpoint: EndpointClient) -> None:
    """On one connection, a valid request right after a refused one is answered.

    An engine that a bad request kills, or a connection left broken, turns one user's mistake into an outage for all.
    """
    refused(endpoint.raw("POST", CHAT, json=endpoint.chat_body("Say hello.", max_tokens=-1)), 400, 422)
    answer = endpoint.chat("Say hello.", temperature=0, max_tokens=4, ignore_eos=True)
    assert answer.text, f"after a refused request, an answer without text: {answer.body}"
    endpoint.health()

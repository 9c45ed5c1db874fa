"""HTTP as every client writes it, and bodies of every size: nothing on the way may cut, refuse or rewrite them."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pytest_vllm_stage import EndpointClient, does_not_apply
from pytest_vllm_stage.checks.inference.patterns import pattern
from pytest_vllm_stage.checks.inference.wire import HTTP_VARIANTS, REFUSES_VERSION, WireConnection
from pytest_vllm_stage.serving.client import COMPLETIONS
from pytest_vllm_stage.serving.gateway_errors import describe_refusal

Needs = Callable[..., None]

#: Bytes of a request that fills the context, at six for a token, which ``\uXXXX`` takes; and the least that is sent.
BYTES_PER_TOKEN, LEAST_BODY_BYTES = 6, 128 * 1024
#: Tokens with their twenty likeliest alternatives, which take more than one KiB each in a chat's answer.
SCORED_TOKENS, ALTERNATIVES, LARGE_BYTES = 60, 20, 64 * 1024
#: Lines of a prompt whose scores make an event of some 20 KiB.
ECHOED_LINES, LARGE_EVENT_BYTES = 80, 16 * 1024


@pytest.mark.parametrize("variant", HTTP_VARIANTS.values(), ids=[name.replace(" ", "_") for name in HTTP_VARIANTS])
def test_http_variant_changes_nothing(
    request: pytest.FixtureRequest, endpoint: EndpointClient, variant: object
) -> None:
    """Header names in any case, a charset, 4 KiB of headers, ``Expect: 100-continue``, HTTP/1.0: the same answer.

    curl, load balancers and old proxies write HTTP in other ways than the Python clients do.
    """
    name = next(name for name, one in HTTP_VARIANTS.items() if one is variant)
    shown = pattern(20)
    body = endpoint.completion_body(shown.prompt(), temperature=0, max_tokens=6)
    with WireConnection(endpoint.target) as connection:
        try:
            answer = connection.post(COMPLETIONS, body, HTTP_VARIANTS[name])
            if HTTP_VARIANTS[name].version == "HTTP/1.0" and answer.status in REFUSES_VERSION:
                return
            got = answer.json()
        except AssertionError as error:
            pytest.fail(f"asked with {name}: {error}")
    assert answer.status == 200, f"asked with {name}: answered {answer.status}: {answer.body[:300]!r}"
    text = got["choices"][0]["text"]
    assert text.startswith(shown.answer), f"asked with {name}: expected {shown.answer!r}, got {text!r}"


def test_large_body_is_read_whole(endpoint: EndpointClient) -> None:
    """A body as large as the context allows, padded with white space, is answered like the same body without it.

    Gateways buffer bodies up to a limit, often 32 KiB to 1 MiB: long documents fail where short questions work.
    """
    limit = endpoint.tokenize("x").max_model_len or 0
    size = max(LEAST_BODY_BYTES, BYTES_PER_TOKEN * limit)
    shown = pattern(21)
    text = json.dumps(endpoint.completion_body(shown.prompt(), temperature=0, max_tokens=6))
    content = (text[:-1] + " " * (size - len(text)) + text[-1]).encode()
    response = endpoint.raw("POST", COMPLETIONS, content=content, headers={"content-type": "application/json"})
    what = f"a body of {size // 1024} KiB"
    assert response.status_code == 200, f"{what} was {describe_refusal(response)}"
    said = response.json()["choices"][0]["text"]
    assert said.startswith(shown.answer), f"{what} was answered {said!r}, expected {shown.answer!r}"


def test_large_answer_arrives_whole(endpoint: EndpointClient, counting: str, needs: Needs) -> None:
    """An answer of more than 64 KiB, most of it logprobs, arrives whole.

    Gateways that inspect answers buffer them up to a limit, and cut or refuse what is larger.
    """
    needs("chat", "logprobs")
    parameters = {"temperature": 0, "max_tokens": SCORED_TOKENS, "ignore_eos": True}
    body = endpoint.chat_body(counting, logprobs=True, top_logprobs=ALTERNATIVES, **parameters)
    response = endpoint.raw("POST", "/v1/chat/completions", json=body)
    what = f"a large answer ({len(response.content) // 1024} KiB)"
    assert response.status_code == 200, f"a large answer is refused with {response.status_code}: {response.text[:300]}"
    try:
        entries = response.json()["choices"][0]["logprobs"]["content"]
    except ValueError as error:
        pytest.fail(f"{what} is not JSON: {error}")
    scored = [len(entry["top_logprobs"]) for entry in entries]
    # A token may be returned besides its twenty likeliest alternatives.
    assert len(scored) == SCORED_TOKENS, f"{what} has the scores of {len(scored)} tokens, expected {SCORED_TOKENS}"
    assert min(scored) >= ALTERNATIVES, f"{what} has {min(scored)} alternatives of a token, expected {ALTERNATIVES}"
    assert len(response.content) >= LARGE_BYTES, f"{what} is smaller than expected, {LARGE_BYTES // 1024} KiB"


def test_large_event_arrives_whole(endpoint: EndpointClient, needs: Needs) -> None:
    """An event of a stream with more than 16 KiB, the echoed prompt with its scores, arrives whole.

    Relays that read streams line by line have a limit for a line, and lose the event, or the stream, beyond it.
    """
    needs("logprobs")
    prompt = pattern(22).prompt(ECHOED_LINES)
    made = endpoint.tokenize(prompt)
    if made.max_model_len is not None and made.count + 2 > made.max_model_len:
        does_not_apply(
            f"max_model_len {made.max_model_len} has no room for a large event, the scores of {made.count} tokens"
        )
    parameters = {"echo": True, "logprobs": 5, "temperature": 0, "max_tokens": 2}
    stream = endpoint.stream_completion(prompt, **parameters).read()
    sizes = [len(event.raw) for event in stream.events]
    what = f"a stream with a large event (the largest of {len(sizes)} has {max(sizes, default=0) // 1024} KiB)"
    assert stream.text.startswith(prompt), f"{what} lost the echoed prompt of {len(prompt)} characters"
    tokens = "".join(
        token
        for chunk in stream.chunks
        for choice in chunk["choices"]
        for token in (choice.get("logprobs") or {}).get("tokens", [])
    )
    # A token that is decoded alone may have lost its space.
    scored, expected = (len("".join(text.split())) for text in (tokens, prompt))
    assert scored >= expected, f"{what} has the scores of {scored} characters, expected {expected}"
    assert max(sizes) >= LARGE_EVENT_BYTES, f"{what} has no event of {LARGE_EVENT_BYTES // 1024} KiB"

"""What a client sends reaches the engine as it was sent, once, and for this client alone."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from pytest_vllm_stage import EndpointClient
from pytest_vllm_stage.checks.inference.effects import UNFILTERED
from pytest_vllm_stage.checks.inference.patterns import pattern
from pytest_vllm_stage.checks.inference.relations.reading import describe_change
from pytest_vllm_stage.checks.inference.texts import TRICKY
from pytest_vllm_stage.checks.inference.together import settled, together
from pytest_vllm_stage.serving.client import COMPLETIONS

Needs = Callable[..., None]

ATTEMPTS = 5
AT_ONCE = 4
#: Seconds that a server may take to count what it has served.
COUNTING_TIMEOUT_S = 5.0


@pytest.mark.parametrize("prompt", TRICKY.values(), ids=[name.replace(" ", "_") for name in TRICKY])
def test_prompt_reaches_the_engine_unchanged(endpoint: EndpointClient, prompt: str) -> None:
    """The engine's echo of a prompt is the prompt, with code, numbers, white space and every form of Unicode.

    JSON has two ways to write what is beyond ASCII, as it is and with escapes; clients use both. A stream has the echo
    in one event, which may look like the stream's own end.

    Firewalls take prompts about code for attacks, guardrails mask numbers, and rewritten bodies lose spaces or
    normalise characters: the model answers another question than the one that was asked.
    """
    body = endpoint.completion_body(prompt, echo=True, max_tokens=1, temperature=0)
    written = {json.dumps(body, ensure_ascii=escaped).encode(): escaped for escaped in (True, False)}
    for content, escaped in written.items():
        sent = f"the prompt {prompt!r}" + (", sent with \\u escapes," if escaped else "")
        response = endpoint.raw("POST", COMPLETIONS, content=content, headers={"content-type": "application/json"})
        assert response.status_code == 200, f"{sent} was answered {response.status_code}: {response.text[:300]}"
        seen = response.json()["choices"][0]["text"]
        assert seen.startswith(prompt), (
            f"{sent} was changed on its way: it {describe_change(prompt, seen[: len(prompt)])}"
        )
    streamed = endpoint.stream_completion(prompt, echo=True, max_tokens=1, temperature=0).read().text
    assert streamed.startswith(prompt), (
        f"the prompt {prompt!r} came back unchanged, and not in a stream: it "
        f"{describe_change(prompt, streamed[: len(prompt)])}"
    )


def test_every_stop_text_counts(endpoint: EndpointClient) -> None:
    """Of four stop texts, as many as OpenAI's API and vLLM allow, the last one ends the answer too.

    A gateway that takes one text for the list, or knows fewer, drops the rest in silence.
    """
    shown = pattern(23)
    stop = shown.answer[-1]
    texts = ["@@1", "@@2", "@@3", stop]
    answer = endpoint.completion(shown.prompt(), temperature=0, max_tokens=8, stop=texts)
    expected = shown.answer.partition(stop)[0]
    assert answer.text == expected, f"stop text 4 of 4, {stop!r}, was ignored: {answer.text!r}, expected {expected!r}"


def test_identical_requests_are_sampled_apart(endpoint: EndpointClient) -> None:
    """Four identical requests at the same time, without a seed and at a high temperature, do not all get one answer.

    A gateway that merges identical requests shows several users one user's draw.
    """
    parameters = {"temperature": 1.8, "max_tokens": 16, "ignore_eos": True} | UNFILTERED
    prompt = "Here is a story that no one has heard yet, about"
    drawn: set[str] = set()
    for _ in range(2):
        drawn |= set(
            together(lambda _: endpoint.completion(prompt, **parameters).text, range(AT_ONCE), at_once=AT_ONCE)
        )
        if len(drawn) > 2:
            return
    assert len(drawn) > 2, f"{2 * AT_ONCE} identical requests, {AT_ONCE} at a time, gave only {sorted(drawn)}"


def test_request_is_served_once(endpoint: EndpointClient, needs: Needs) -> None:
    """The engine counts one request for one request.

    Hedged, mirrored and hastily retried requests cost twice the tokens, and no client sees it. Others may use the
    server meanwhile: it fails only where every attempt is counted the same number of times, twice or more.
    """
    needs("metrics")
    model = endpoint.target.model

    def served() -> float:
        return endpoint.metrics().value("vllm:request_success", model_name=model)

    counts = []
    for _ in range(ATTEMPTS):
        before = served()
        endpoint.completion(pattern(24).prompt(), temperature=0, max_tokens=1)
        if not settled(lambda before=before: served() > before, COUNTING_TIMEOUT_S):  # type: ignore[misc]
            continue
        counts.append(served() - before)
        if counts[-1] <= 1:
            return
    assert len(set(counts)) != 1, (
        f"one request is counted {counts[0]:g} times by the engine, {len(counts)} times running"
    )


def test_prompt_logprobs_are_the_same_again(endpoint: EndpointClient, needs: Needs) -> None:
    """The scores of a prompt are the same when it is asked again, and its prefix is in the cache.

    Evaluations rank by these scores: from a cache of another request they rank another text.
    """
    needs("prompt_logprobs")
    prompt = pattern(25).prompt(12)
    parameters = {"temperature": 0, "max_tokens": 1, "prompt_logprobs": 1}
    first, again = (endpoint.completion(prompt, **parameters).choice.get("prompt_logprobs") for _ in range(2))
    assert first, f"prompt_logprobs were requested, got {first!r}"
    assert again, f"prompt_logprobs were requested again, got {again!r}"
    assert len(first) == len(again), f"a prompt has the scores of {len(first)} tokens, asked again of {len(again)}"
    for place, (one, other) in enumerate(zip(first, again, strict=True)):
        # The second of two near ties may change with the batch; the prompt's own token is always there.
        shared = set(one or {}) & set(other or {})
        assert bool(shared) == bool(one), f"prompt token {place}: {one}, asked again {other}"
        moved = max((abs(one[token]["logprob"] - other[token]["logprob"]) for token in shared), default=0.0)
        assert moved < 0.3, f"the score of prompt token {place} moved by {moved:.2f} when asked again: {one}, {other}"


def test_stop_token_ends_the_stream_too(endpoint: EndpointClient, counting: str, needs: Needs) -> None:
    """A token of ``stop_token_ids`` ends a stream where it ends the plain answer, for the same reason."""
    needs("token_ids")
    parameters = {"temperature": 0, "max_tokens": 12}
    stop = endpoint.chat(counting, **parameters, return_token_ids=True).choice["token_ids"][4]
    plain = endpoint.chat(counting, **parameters, stop_token_ids=[stop])
    stream = endpoint.stream_chat(counting, **parameters, stop_token_ids=[stop]).read()
    streamed, expected = (stream.text, list(stream.finish_reasons)), (plain.text, [plain.finish_reason])
    assert streamed == expected, f"stop token {stop}: streamed {streamed}, plain {expected}"

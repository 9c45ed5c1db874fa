"""Log probabilities are valid, and belong to the generated tokens."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from pytest_vllm_stage import EndpointClient
from pytest_vllm_stage.checks.inference.effects import UNPENALISED
from pytest_vllm_stage.checks.inference.patterns import pattern
from pytest_vllm_stage.checks.inference.spelling import spells

Needs = Callable[..., None]

#: Probabilities are computed in 32 bits or fewer.
ROUNDING = 1e-3
#: What a batch's rounding may move a log probability by, in nats; seen are 0.02.
BATCH_ROUNDING_NATS = 0.25
TOP = 5
ASKED = {"temperature": 0, "max_tokens": 8, "logprobs": True, "top_logprobs": TOP} | UNPENALISED
STORY = "Write a story."


def checked(entries: Any) -> list[dict[str, Any]]:
    """The entries of a chat's logprobs, each of which must be valid."""
    assert isinstance(entries, dict), f"logprobs were requested, got {entries!r}"
    content: list[dict[str, Any]] = entries.get("content") or []
    assert content, "logprobs were requested, got none"
    for entry in content:
        top = entry["top_logprobs"]
        values = [one["logprob"] for one in top]
        assert len(top) == TOP, f"{TOP} alternatives expected, got {len(top)} for {entry['token']!r}"
        assert values == sorted(values, reverse=True), f"the alternatives are not in order: {values}"
        total = sum(map(math.exp, values))
        assert total <= 1 + ROUNDING, f"the probabilities of {len(values)} alternatives sum to {total:.3f}"
        taken = [one["logprob"] for one in top if one["token"] == entry["token"]]
        assert taken, f"{entry['token']!r} was taken at temperature 0, and is not among its {TOP} likeliest"
        assert abs(taken[0] - entry["logprob"]) < ROUNDING, f"{entry['token']!r} has two scores: {entry}"
    return content


def test_chat_logprobs_are_consistent(endpoint: EndpointClient, needs: Needs) -> None:
    """The alternatives of each token are in order, sum to at most one, and have the chosen token among them.

    Classifiers, confidence scores and evaluations are computed from these numbers alone.
    """
    needs("content", "logprobs")
    answer = endpoint.chat(STORY, **ASKED)
    content = checked(answer.choice.get("logprobs"))
    made = answer.usage.completion_tokens
    assert len(content) == made, f"{made} tokens were made, {len(content)} have logprobs"
    pieces = [bytes(entry["bytes"] or b"").decode(errors="replace") for entry in content]
    assert spells(pieces, answer.text), (
        f"the tokens of the logprobs spell {''.join(pieces)!r}, the answer is {answer.text!r}"
    )


def test_streamed_logprobs_equal_plain_logprobs(endpoint: EndpointClient, counting: str, needs: Needs) -> None:
    """In a stream the same tokens come with the same logprobs, each with its piece of text.

    Clients that show confidence while text arrives read them here; a relay that drops or shifts them marks the wrong
    words.
    """
    needs("logprobs")
    plain = checked(endpoint.chat(counting, **ASKED).choice.get("logprobs"))
    chunks = endpoint.stream_chat(counting, **ASKED).read().chunks
    found = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice.get("logprobs")]
    streamed = [entry for one in found for entry in checked(one)]
    tokens = [[entry["token"] for entry in entries] for entries in (plain, streamed)]
    assert tokens[0] == tokens[1], f"plain logprobs are of {tokens[0]}, streamed ones of {tokens[1]}"
    moved = max(abs(one["logprob"] - other["logprob"]) for one, other in zip(plain, streamed, strict=True))
    assert moved < BATCH_ROUNDING_NATS, f"plain and streamed logprobs differ by {moved:.2f}"


def test_completion_logprobs_are_consistent(endpoint: EndpointClient, needs: Needs) -> None:
    """The same for ``/v1/completions``, whose logprobs have another shape: one list per field.

    Evaluation harnesses compare these lists place by place: one that is a token short shifts every score behind it.
    """
    needs("logprobs")
    asked = {"temperature": 0, "max_tokens": 5, "logprobs": 3, "ignore_eos": True} | UNPENALISED
    answer = endpoint.completion(pattern(2).prompt(), **asked)
    scores = answer.choice.get("logprobs")
    assert isinstance(scores, dict), f"logprobs were requested, got {scores!r}"
    lengths = {field: len(scores[field]) for field in ("tokens", "token_logprobs", "top_logprobs", "text_offset")}
    assert set(lengths.values()) == {5}, f"5 tokens were made; the logprobs have {lengths}"
    assert answer.text, f"5 tokens were made, {scores['tokens']} by the logprobs, and the answer has no text"
    said = "".join(scores["tokens"])
    assert spells(scores["tokens"], answer.text), (
        f"the tokens of the logprobs spell {said!r}, the answer is {answer.text!r}"
    )
    for token, taken, top in zip(scores["tokens"], scores["token_logprobs"], scores["top_logprobs"], strict=True):
        total = sum(map(math.exp, top.values()))
        assert total <= 1 + ROUNDING, f"the probabilities of {len(top)} alternatives sum to {total:.3f}"
        assert token in top, f"{token!r} was taken at temperature 0, and is not among its likeliest: {top}"
        assert taken >= max(top.values()) - ROUNDING, f"{token!r} ({taken:.2f}) was taken before a likelier one: {top}"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("echo", [False, True], ids=["answer", "echo"])
def test_text_offsets_follow_the_text(endpoint: EndpointClient, needs: Needs, echo: bool, stream: bool) -> None:
    """Each token's ``text_offset`` is where the token before it ends, in the echoed prompt and in streams too.

    Tools that mark words by their score put the colour on other words where the offsets are shifted.
    """
    needs("logprobs")
    prompt = pattern(43).prompt()
    parameters = {"temperature": 0, "max_tokens": 5, "logprobs": 1, "ignore_eos": True, "echo": echo}
    if stream:
        chunks = endpoint.stream_completion(prompt, **parameters).read().chunks
        choices = [choice for chunk in chunks for choice in chunk["choices"]]
    else:
        choices = [endpoint.completion(prompt, **parameters).choice]
    scores = [choice["logprobs"] for choice in choices if choice.get("logprobs")]
    tokens = [token for one in scores for token in one["tokens"]]
    offsets = [offset for one in scores for offset in one["text_offset"]]
    assert len(tokens) > 4, f"logprobs of {len(tokens)} tokens, expected 5 or more"
    # OpenAI counts from the prompt's beginning, vLLM from the answer's.
    assert offsets[0] in ((0,) if echo else (0, len(prompt))), f"the first token has the text offset {offsets[0]}"
    for place, (token, offset, after) in enumerate(zip(tokens, offsets, offsets[1:], strict=False)):
        assert after == offset + len(token), (
            f"token {place}, {token!r}, has the text offset {offset}, and the token after it {after}, "
            f"expected {offset + len(token)}: {offsets}"
        )


@pytest.mark.parametrize("path", ["chat", "completion"])
def test_logprobs_come_only_when_requested(endpoint: EndpointClient, path: str) -> None:
    """Without ``logprobs`` there are none: they make an answer twenty times as large."""
    answer = endpoint.chat("Hello", max_tokens=2) if path == "chat" else endpoint.completion("Hello", max_tokens=2)
    scores = answer.choice.get("logprobs")
    assert not scores, f"logprobs were not requested, but returned: {str(scores)[:200]}"

"""Every sampling parameter has its effect: parameters that a gateway drops show here, one by one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from pytest_vllm_stage import EndpointClient
from pytest_vllm_stage.checks.inference.effects import UNFILTERED, UNPENALISED
from pytest_vllm_stage.checks.inference.together import together
from pytest_vllm_stage.serving.answers import read_text

Needs = Callable[..., None]

#: Drawn at temperature 2, eight tokens never come the same twice by chance, whatever the model.
HOT = {"temperature": 2.0, "max_tokens": 8, "ignore_eos": True} | UNFILTERED
STORY = "Write a story."
#: A seed makes the same draws; where other users fill the batch, rounding may still tip one of them.
SEED_ATTEMPTS = 3


def test_temperature_0_repeats_its_answer(endpoint: EndpointClient, counting: str) -> None:
    """Asked twice at temperature 0, an answer without close calls is the same.

    Tests, caches and evaluations depend on it. Near ties may change with the batch; this prompt has none.
    """
    first, second = (endpoint.chat(counting, temperature=0, max_tokens=16).text for _ in range(2))
    assert first == second, f"at temperature 0, first: {first!r}\n then: {second!r}"


def test_temperature_0_selects_the_likeliest_token(endpoint: EndpointClient, needs: Needs) -> None:
    """At temperature 0 no alternative to a token is likelier than the one that was taken.

    A temperature that is dropped on the way leaves the default, which draws: right most of the time, and not always.
    """
    needs("logprobs")
    answer = endpoint.chat(STORY, temperature=0, max_tokens=12, logprobs=True, top_logprobs=2, **UNPENALISED)
    scores = answer.choice.get("logprobs")
    assert scores, f"logprobs were requested, got {scores!r}"
    for entry in scores["content"]:
        best = max(entry["top_logprobs"], key=lambda one: one["logprob"])
        assert entry["logprob"] >= best["logprob"], (
            f"temperature 0 took {entry['token']!r} ({entry['logprob']:.2f}) "
            f"though {best['token']!r} ({best['logprob']:.2f}) was likelier"
        )


def test_high_temperature_samples(endpoint: EndpointClient) -> None:
    """Without a seed, four answers at temperature 2 are not all one.

    A server that is always greedy, or a cache before it, gives every user the same "random" answer.
    """
    texts: set[str] = set()
    for _ in range(4):
        texts.add(endpoint.chat(STORY, **HOT).text)
        if len(texts) > 1:
            return
    pytest.fail(f"four answers drawn at temperature 2 without a seed are all {texts.pop()!r}")


def test_seed_repeats_the_sample(endpoint: EndpointClient) -> None:
    """The same seed draws the same answer, and another seed another one.

    It is how a drawn answer is reproduced in a bug report.
    """
    drawn: list[str] = []
    for seed in range(SEED_ATTEMPTS):
        first, second = (endpoint.chat(STORY, seed=seed, **HOT).text for _ in range(2))
        drawn += [first, second]
        if first == second:
            break
    else:
        pytest.fail(f"no seed repeated its answer: {drawn}")
    other = endpoint.chat(STORY, seed=12345, **HOT).text
    assert other != first, f"two different seeds both drew {first!r}"


@pytest.mark.parametrize("only", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}], ids=lambda only: next(iter(only)))
def test_filter_that_leaves_one_token_is_greedy(endpoint: EndpointClient, counting: str, only: dict[str, Any]) -> None:
    """With ``top_k`` 1, ``top_p`` near 0 or ``min_p`` 1, even temperature 2 gives the greedy answer.

    These are the edges of the filters; a filter that is dropped, or taken for "off" at its edge, draws freely there.
    """
    greedy = endpoint.chat(counting, temperature=0, max_tokens=12).text
    filtered = endpoint.chat(counting, temperature=2.0, max_tokens=12, **only).text
    assert filtered == greedy, f"temperature 2 with {only} drew {filtered!r}; the only token left gives {greedy!r}"


def test_n_returns_that_many_choices(endpoint: EndpointClient) -> None:
    """``n`` gives that many choices, numbered from 0, not all the same when drawn, and all are counted.

    Best-of-n and voting need them apart; usage that counts one of them undercharges, and hides the load.
    """
    answer = endpoint.chat(STORY, n=3, seed=1, **HOT)
    choices = answer.body["choices"]
    assert [choice.get("index") for choice in choices] == [0, 1, 2], f"n=3 gave {len(choices)} choices"
    texts = {read_text(choice["message"]) for choice in choices}
    assert len(texts) > 1, f"three choices drawn at temperature 2 are all {texts.pop()!r}"
    made = answer.usage.completion_tokens
    assert made == 24, f"expected 24 completion tokens for three answers of 8, got {made}"


def test_streamed_choices_are_kept_apart(endpoint: EndpointClient) -> None:
    """In a stream, each of ``n`` choices has its own role, text and finish reason, under its index.

    A relay that looks at the first choice alone drops or mixes the others.
    """
    streamed = endpoint.stream_chat(STORY, n=2, seed=1, **HOT).read()
    choices = [choice for chunk in streamed.chunks for choice in chunk["choices"]]
    per_index = Counter(choice["index"] for choice in choices if read_text(choice["delta"]))
    assert set(per_index) == {0, 1}, f"n=2 streamed text under the indexes {sorted(per_index)}"
    ends = sorted(choice["index"] for choice in choices if choice.get("finish_reason"))
    assert ends == [0, 1], f"finish reasons came for the choices {ends}, expected one for each of two"
    roles = sorted(choice["index"] for choice in choices if choice["delta"].get("role") == "assistant")
    assert roles == [0, 1], f"the role came for the choices {roles}, expected one for each of two"


def test_min_tokens_prolongs_the_answer(endpoint: EndpointClient, needs: Needs) -> None:
    """With ``min_tokens``, an answer that would end sooner has at least so many tokens.

    Load tests fix their output length with it; dropped, throughput is measured on shorter answers.
    """
    needs("content")
    question, parameters = "What is the capital of France?", {"temperature": 0, "max_tokens": 32}
    free = endpoint.chat(question, **parameters).usage.completion_tokens
    assert free < 24, f"the answer that should be short has {free} tokens: min_tokens has nothing to show"
    made = endpoint.chat(question, min_tokens=24, **parameters).usage.completion_tokens
    assert made >= 24, f"min_tokens=24 gave {made} tokens, as many as without it: {free}"


def test_bias_forbids_and_forces_tokens(endpoint: EndpointClient, counting: str, needs: Needs) -> None:
    """``logit_bias`` of -100 keeps a token out of an answer, and 100 lets nothing else in.

    It keeps words out of products; dropped, they return unnoticed.
    """
    needs("token_ids")
    parameters = {"temperature": 0, "max_tokens": 6, "ignore_eos": True, "return_token_ids": True}

    def ids(**more: Any) -> list[int]:
        found: list[int] = endpoint.chat(counting, **parameters, **more).choice["token_ids"]
        return found

    first = ids()[0]
    without = ids(logit_bias={str(first): -100})
    assert first not in without, f"token {first} was forbidden by logit_bias -100, but generated: {without}"
    forced = endpoint.tokenize(" river", add_special_tokens=False).ids[0]
    only = ids(logit_bias={str(forced): 100})
    assert set(only) == {forced}, f"token {forced} was forced by logit_bias 100; the answer has {only}"


@pytest.mark.parametrize(
    "penalty", [{"frequency_penalty": 2.0}, {"repetition_penalty": 2.0}], ids=lambda one: next(iter(one))
)
def test_repetition_penalties_are_applied(endpoint: EndpointClient, counting: str, penalty: dict[str, float]) -> None:
    """The strongest penalty changes an answer that repeats a separator again and again.

    Applications set it against repetitive answers; dropped, answers repeat themselves.
    """
    parameters = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}

    def ask(more: dict[str, float]) -> str:
        return endpoint.chat(counting, **parameters, **more).text

    free, penalised = together(ask, [{}, penalty], at_once=2)
    assert penalised != free, f"{penalty} changed nothing in {free!r}"

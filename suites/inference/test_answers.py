"""The model answers: the right weights, the right template, the right fields."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_vllm_stage import EndpointClient
from pytest_vllm_stage.checks.inference.abilities import wait_for_content
from pytest_vllm_stage.checks.inference.places import mentions_place

Needs = Callable[..., None]


@pytest.mark.smoke
def test_chat_answer_knows_a_fact(endpoint: EndpointClient, lacks: dict[str, str]) -> None:
    """A question that even a small model answers is answered correctly.

    Wrong weights, a broken quantisation or a wrong chat template still give fluent text, with status 200 and in time;
    a fact distinguishes them from a model that works.
    """
    question = "What is the capital of France?"
    if "content" in lacks:
        answer = wait_for_content(endpoint, question)
    else:
        answer = endpoint.chat(question, temperature=0, max_tokens=48)
    assert mentions_place(answer.text, "Paris"), f"expected Paris as the capital of France, got {answer.text!r}"


def test_answers_depend_on_the_question(endpoint: EndpointClient, needs: Needs) -> None:
    """Two questions asked one after the other get two answers, each its own.

    A gateway that caches by path, or returns one client's answer to another, passes a check that asks once. Whether
    the model knows the capital is not asked here: naming the country is enough.
    """
    needs("content")
    words = {"Japan": ("Japan", "Tokyo"), "Italy": ("Italy", "Rome")}
    said = {
        country: endpoint.chat(f"What is the capital of {country}?", temperature=0, max_tokens=48).text
        for country in words
    }
    for country, other in (("Japan", "Italy"), ("Italy", "Japan")):
        text = said[country]
        assert any(mentions_place(text, word) for word in words[country]), f"asked about {country}, got {text!r}"
        assert not any(mentions_place(text, word) for word in words[other]), f"asked about {country}, got {text!r}"


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_answer_names_its_model_and_object(endpoint: EndpointClient, api: str) -> None:
    """An answer names the model and the role, and carries its own id.

    Clients route, bill and trace by these fields; a router that falls back to another model shows in ``model``.
    """
    called = "chat.completion" if api == "chat" else "text_completion"
    parameters = {"temperature": 0, "max_tokens": 2, "ignore_eos": True}
    ask = endpoint.chat if api == "chat" else endpoint.completion
    bodies = [ask("Say hello.", **parameters).body for _ in range(2)]
    for body in bodies:
        assert body.get("model") == endpoint.target.model, f"asked {endpoint.target.model}, got {body.get('model')!r}"
        assert body.get("object") == called, f"expected object {called!r}, got {body.get('object')!r}"
        assert len(body["choices"]) == 1, f"expected 1 choice, got {len(body['choices'])}"
        assert body["choices"][0].get("index") == 0, f"the only choice has index {body['choices'][0].get('index')!r}"
        role = body["choices"][0].get("message", {}).get("role")
        assert api != "chat" or role == "assistant", f"expected role 'assistant', got {role!r}"
    ids = [body.get("id") for body in bodies]
    assert all(isinstance(id_, str) and id_ for id_ in ids), f"answers without an id: {ids}"
    assert ids[0] != ids[1], f"two answers have the same id {ids[0]}: one of them is not this server's own"


def test_completion_continues_its_prompt(endpoint: EndpointClient) -> None:
    """``/v1/completions`` continues the text, without a chat template around it.

    Benchmarks and evaluation harnesses drive this path; the end token is disabled here, since a model may rightly
    have nothing to add.
    """
    answer = endpoint.completion("The capital of France is", temperature=0, max_tokens=12, ignore_eos=True)
    assert mentions_place(answer.text, "Paris"), f"'The capital of France is' was continued with {answer.text!r}"

"""The tokenizer endpoints and the chat template are the model's own, and lose nothing."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from pytest_vllm_stage import EndpointClient
from pytest_vllm_stage.checks.inference.patterns import pattern
from pytest_vllm_stage.checks.inference.properties import any_text, check_examples
from pytest_vllm_stage.checks.inference.relations.reading import describe_change
from pytest_vllm_stage.checks.inference.texts import TRICKY

Needs = Callable[..., None]

DIALOGUE = [
    {"role": "system", "content": "You are a gardener called Ada."},
    {"role": "user", "content": "Which tree grows in the yard?"},
    {"role": "assistant", "content": "A walnut tree, 12 m high."},
    {"role": "user", "content": "Since when? Antworte auf Deutsch: „früher“ ✓"},
]

#: Conversations that gateways rewrite: turns of code and numbers, and an order of roles that another API lacks.
REWRITTEN = {
    "a conversation about code and numbers": [
        {"role": "user" if place % 2 == 0 else "assistant", "content": text}
        for place, text in enumerate(list(TRICKY.values())[:7])
    ],
    "a conversation with an empty turn": [
        {"role": "user", "content": "Wait for my question."},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "Which tree is it?"},
    ],
    "a conversation with a later system turn and two of the user": [
        *DIALOGUE[:3],
        {"role": "system", "content": "From now on, answer briefly."},
        {"role": "user", "content": "Since when?"},
        {"role": "user", "content": "And how high is it?"},
    ],
}
#: A turn that is sent in two parts.
HALVES = ("Since when?", "Antworte auf Deutsch.")


def test_text_survives_the_tokenizer(endpoint: EndpointClient, needs: Needs) -> None:
    """``/detokenize`` gives back what ``/tokenize`` was given, for any text, and the count is that of the ids.

    Prompts of an exact length, and every count by which users pay, are made through these two; a tokenizer that loses a
    character belongs to another model or is behind a hop that re-encodes text.
    """
    needs("lossless_tokenizer")

    def survives(text: str) -> None:
        tokens = endpoint.tokenize(text, add_special_tokens=False)
        assert tokens.count == len(tokens.ids), f"{text!r}: count says {tokens.count}, {len(tokens.ids)} ids came"
        back = endpoint.detokenize(tokens.ids) if tokens.ids else ""
        assert back == text, f"{text!r} became {back!r} through {list(tokens.ids)}"

    check_examples(any_text(), 40, survives)


def test_tokenizer_endpoint_equals_the_engines_tokenizer(endpoint: EndpointClient, needs: Needs) -> None:
    """A completion was made from exactly the ids that ``/tokenize`` gives, and those ids as a prompt give the same.

    A tokenizer of another version makes counts that are right for short plain text, and wrong for the rest.
    """
    needs("token_ids")
    text = f"Größe: 3 µm, 你好 🙂\n{pattern(1).prompt()}"
    parameters = {"temperature": 0, "max_tokens": 5, "return_token_ids": True}
    ids = list(endpoint.tokenize(text).ids)
    for what, prompt in (("the text", text), ("its token ids", ids)):
        answer = endpoint.completion(prompt, **parameters)
        used = answer.choice.get("prompt_token_ids")
        assert used == ids, f"from {what} the engine made the prompt {used}, /tokenize reports {ids}"
        expected = pattern(1).answer
        assert answer.text.startswith(expected), (
            f"{what}: {pattern(1).prompt()!r} expected {expected!r}, got {answer.text!r}"
        )


@pytest.mark.parametrize("asks", [True, False], ids=["asking", "as-it-is"])
def test_chat_template_renders_every_turn(endpoint: EndpointClient, asks: bool) -> None:
    """The conversation rendered by the template holds every turn's text once, and roles change the rendering.

    A model asked without its template, or with that of another one, answers worse in ways that no status shows.
    """
    tokens = endpoint.tokenize(messages=DIALOGUE, add_generation_prompt=asks)
    rendered = endpoint.detokenize(tokens.ids)
    for turn in DIALOGUE:
        times = rendered.count(turn["content"])
        assert times == 1, f"{turn['role']}'s {turn['content']!r} is {times} times in the rendering {rendered!r}"
    swapped = [{**turn, "role": "user" if turn["role"] == "assistant" else turn["role"]} for turn in DIALOGUE]
    other = endpoint.raw("POST", "/tokenize", json={"model": endpoint.target.model, "messages": swapped})
    same = other.status_code == 200 and other.json().get("tokens") == list(tokens.ids)
    assert not same, "the rendering is the same for every role: the roles are lost"


def test_engine_sees_the_conversation_as_rendered(endpoint: EndpointClient, needs: Needs) -> None:
    """A chat answer was made from the ids that the template renders, from text or parts, in any order of roles.

    This is where a gateway that drops the system prompt, merges or moves turns, trims or masks text or flattens roles
    shows.
    """
    needs("token_ids")
    expected = list(endpoint.tokenize(messages=DIALOGUE).ids)
    parts = [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in DIALOGUE]
    parameters = {"temperature": 0, "max_tokens": 1, "return_token_ids": True}
    seen = {
        "the conversation": endpoint.chat(DIALOGUE, **parameters).body.get("prompt_token_ids"),
        "the conversation in parts": endpoint.chat(parts, **parameters).body.get("prompt_token_ids"),
    }
    halves: list[dict[str, Any]] = [
        *DIALOGUE[:-1],
        {"role": "user", "content": [{"type": "text", "text": half} for half in HALVES]},
    ]
    prompt = endpoint.detokenize(endpoint.chat(halves, **parameters).body.get("prompt_token_ids") or [])
    lost = [half for half in HALVES if half not in prompt]
    assert not lost, f"of a turn in two text parts, the engine did not see {lost}: {prompt!r}"
    for what, ids in seen.items():
        said = endpoint.detokenize(ids) if ids else None
        assert ids == expected, f"the engine did not see {what} as the template renders it, but {said!r}"
    for what, messages in REWRITTEN.items():
        # Some templates refuse an empty turn, or a system turn that is not the first one.
        rendered = endpoint.raw("POST", "/tokenize", json={"model": endpoint.target.model, "messages": messages})
        if rendered.status_code != 200:
            continue
        wanted, got = rendered.json()["tokens"], endpoint.chat(messages, **parameters).body.get("prompt_token_ids")
        if got != wanted:
            changed = describe_change(endpoint.detokenize(wanted), endpoint.detokenize(got) if got else "")
            pytest.fail(f"the engine did not see {what} as the template renders it: the prompt {changed}")

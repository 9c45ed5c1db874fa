"""The model sees the conversation: every turn, the system prompt, and any text that a user may write.

The proof needs only what any model does, however small: continue a pattern that appears in the turn. A pattern that
was dropped on the way cannot be continued.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from pytest_vllm_stage import EndpointClient
from pytest_vllm_stage.checks.inference.patterns import Pattern, pattern
from pytest_vllm_stage.checks.inference.properties import any_text, examples

Needs = Callable[..., None]

PLACES = ("system", "first-question", "earlier-answer", "last-question")
ROLES = ("system", "user", "assistant", "user")
#: How often the pattern is shown, and the beginning of the answer that must continue it.
TIMES = 6
BEGUN = "The list says:\n"
FILLER = ("You answer briefly.", "Name a colour.", "Blue.", "Name another one.")


def goes_on(endpoint: EndpointClient, shown: Pattern, place: int) -> str:
    """The model's continuation of a pattern's word, in a dialogue whose turn at ``place`` shows the pattern."""
    texts = [*FILLER[:place], shown.lines(TIMES).strip(), *FILLER[place + 1 :]]
    messages = [{"role": role, "content": text} for role, text in zip(ROLES, texts, strict=True)]
    messages.append({"role": "assistant", "content": BEGUN + shown.word})
    parameters = {"add_generation_prompt": False, "continue_final_message": True, "temperature": 0, "max_tokens": 6}
    return endpoint.chat(messages, **parameters).text


@pytest.mark.parametrize("place", range(len(PLACES)), ids=PLACES)
def test_every_turn_reaches_the_model(endpoint: EndpointClient, needs: Needs, place: int) -> None:
    """The answer continues the pattern in this turn, and another one when the turn shows another one.

    A dropped system prompt, a history cut to its last turn, or an answer cached by the last message alone give fluent
    answers to another conversation.
    """
    needs("continue_final_message")
    for shown in (pattern(5), pattern(40)):
        said = goes_on(endpoint, shown, place)
        assert said.startswith(shown.answer), (
            f"the {PLACES[place]} says {shown.line!r} {TIMES} times; "
            f"{shown.word!r} was continued with {said!r}: the model did not see it"
        )


def test_growing_conversation_is_counted_and_seen_whole(endpoint: EndpointClient, needs: Needs) -> None:
    """However a conversation grows, with any text in any turn, the engine sees it as the template renders it.

    Turns are added in every order; each time the engine's prompt equals the template's rendering, the usage counts it,
    the answer respects its limit, and no turn is lost.
    """
    from hypothesis import strategies as st
    from hypothesis.stateful import RuleBasedStateMachine, initialize, rule, run_state_machine_as_test

    needs("token_ids")

    class Conversation(RuleBasedStateMachine):
        """A dialogue that grows."""

        def __init__(self) -> None:
            super().__init__()
            self.messages: list[dict[str, str]] = []

        @initialize(text=st.none() | any_text())
        def system(self, text: str | None) -> None:
            self.messages = [{"role": "system", "content": text}] if text else []

        @rule(text=any_text(), limit=st.integers(1, 3))
        def asks(self, text: str, limit: int) -> None:
            self.messages.append({"role": "user", "content": text})
            answer = endpoint.chat(self.messages, temperature=0, max_tokens=limit, return_token_ids=True)
            expected = endpoint.tokenize(messages=self.messages)
            seen = answer.body.get("prompt_token_ids")
            assert seen == list(expected.ids), (
                f"the engine did not see {self.messages} as the template renders it: {seen}"
            )
            usage = answer.usage
            assert usage.prompt_tokens == expected.count, (
                f"usage reports {usage.prompt_tokens} prompt tokens of {expected.count}"
            )
            made = usage.completion_tokens
            assert 1 <= made <= limit, f"max_tokens={limit} gave {made} tokens: {answer.text!r}"
            rendered = endpoint.detokenize(seen)
            lost = [turn["content"] for turn in self.messages if turn["content"].strip() not in rendered]
            assert not lost, f"not in the prompt that the engine saw: {lost}"
            self.messages.append({"role": "assistant", "content": answer.text or "..."})

    run_state_machine_as_test(Conversation, settings=examples(4, steps=4))

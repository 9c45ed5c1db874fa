"""Answers end where the request says, and say why they ended."""

from __future__ import annotations

import pytest

from pytest_vllm_stage.serving.client import Client


@pytest.mark.parametrize("limit_name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_is_honoured(endpoint: Client, counting: str, limit_name: str) -> None:
    """An answer has exactly as many tokens as allowed when it has more to say, and a lower limit gives its beginning.

    An ignored limit lets one request hold its slot for the whole context length. The texts are compared as well, since
    a server that ignores the limit may still report it.
    """
    parameters = {"temperature": 0, "ignore_eos": True, "return_token_ids": True}
    short, longer = (endpoint.chat(counting, **parameters, **{limit_name: limit}) for limit in (6, 18))
    for answer, limit in ((short, 6), (longer, 18)):
        ids = answer.choice.get("token_ids")
        made = len(ids) if ids else answer.usage.completion_tokens
        assert made == limit, f"{limit_name}={limit} gave {made} tokens: {answer.text!r}"
    assert len(short.text) < len(longer.text), f"6 tokens and 18 tokens give the same text: {short.text!r}"
    assert longer.text.startswith(short.text), f"6 tokens: {short.text!r}\n18 tokens: {longer.text!r}"


def test_an_answer_cut_by_its_limit_says_length(endpoint: Client, counting: str) -> None:
    """``finish_reason`` is ``length`` for an answer that ``max_tokens`` cut, whole or streamed.

    It is how a client knows that it must not show or parse this as a complete answer.
    """
    parameters = {"temperature": 0, "max_tokens": 4}
    plain = endpoint.chat(counting, **parameters)
    assert plain.finish_reason == "length", f"cut after 4 tokens, the answer says {plain.finish_reason!r}"
    streamed = endpoint.stream_chat(counting, **parameters).read()
    assert list(streamed.finish_reasons) == ["length"], f"cut after 4 tokens, the stream says {streamed.finish_reasons}"


def test_an_answer_that_ends_by_itself_says_stop(endpoint: Client) -> None:
    """``finish_reason`` is ``stop`` for an answer that came to its end before the limit.

    An agent that reads ``length`` here asks for a continuation of a finished answer; a model whose end token is not
    recognised runs into the limit every time.
    """
    answer = endpoint.chat("What is the capital of France?", temperature=0, max_tokens=256)
    made = answer.usage.completion_tokens
    assert made < 256, f"a one-sentence answer ran into its limit of 256 tokens: {answer.text[-200:]!r}"
    assert answer.finish_reason == "stop", f"ended after {made} of 256 tokens, the answer says {answer.finish_reason!r}"


def test_stop_ends_the_answer_before_the_stop_text(endpoint: Client, counting: str) -> None:
    """The answer ends right before a stop text, which is not part of it, and says ``stop``; whole and streamed.

    Prompted formats end their turns with stop texts: ignored, the model talks on and answers itself; leaked, parsers
    break.
    """
    free = endpoint.chat(counting, temperature=0, max_tokens=20)
    stop = free.text[len(free.text) // 2 :][:3]
    expected = free.text.partition(stop)[0]
    assert len(expected) < len(free.text), f"no stop text could be taken from the answer {free.text!r}"
    plain = endpoint.chat(counting, temperature=0, max_tokens=20, stop=[stop])
    assert stop not in plain.text, f"the stop text {stop!r} was ignored or leaked: {plain.text!r}"
    assert plain.text == expected, f"with stop={stop!r}: {plain.text!r}\nuntil there: {expected!r}"
    assert plain.finish_reason == "stop", f"ended by its stop text, the answer says {plain.finish_reason!r}"
    streamed = endpoint.stream_chat(counting, temperature=0, max_tokens=20, stop=[stop]).read()
    assert streamed.text == expected, f"streamed with stop={stop!r}: {streamed.text!r}\nuntil there: {expected!r}"
    assert list(streamed.finish_reasons) == ["stop"], f"ended by its stop text, it says {streamed.finish_reasons}"

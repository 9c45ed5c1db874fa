"""Answers end where the request says, and say why they ended."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest

from pytest_vllm_stage import EndpointClient
from pytest_vllm_stage.checks.inference.patterns import pattern
from pytest_vllm_stage.checks.inference.relations.reading import read_answer
from pytest_vllm_stage.serving.client import CHAT, COMPLETIONS

Needs = Callable[..., None]

#: Tokens over what is left that a request asks for, at the end of the context.
OVER = 12
#: Seconds for a prompt that fills the context: the longest contexts take a small GPU minutes.
LONG_PROMPT_TIMEOUT_S = 600.0
#: What marks turns in the templates of common models.
MARKUP = re.compile(r"<\|[\w ]+\|>|</?s>|<(?:start|end)_of_turn>|\[/?INST\]|<(?:bos|eos|pad)>")
#: The line of a prompt that fills the context.
LINE = pattern(49)


@pytest.mark.parametrize("limit_name", ["max_tokens", "max_completion_tokens"])
def test_max_tokens_is_honoured(endpoint: EndpointClient, counting: str, limit_name: str) -> None:
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


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_answer_cut_by_its_limit_has_finish_reason_length(endpoint: EndpointClient, counting: str, api: str) -> None:
    """``finish_reason`` is ``length`` for an answer that ``max_tokens`` cut, whole or streamed.

    It is how a client knows that it must not show or parse this as a complete answer.
    """
    parameters = {"temperature": 0, "max_tokens": 4} | ({} if api == "chat" else {"ignore_eos": True})
    plain = (endpoint.chat if api == "chat" else endpoint.completion)(counting, **parameters)
    assert plain.finish_reason == "length", f"cut after 4 tokens, the finish reason is {plain.finish_reason!r}"
    streamed = (endpoint.stream_chat if api == "chat" else endpoint.stream_completion)(counting, **parameters).read()
    assert list(streamed.finish_reasons) == ["length"], f"cut after 4 tokens, the stream says {streamed.finish_reasons}"


def test_answer_that_ends_by_itself_has_finish_reason_stop(endpoint: EndpointClient, needs: Needs) -> None:
    """``finish_reason`` is ``stop`` for an answer that came to its end before the limit.

    An agent that reads ``length`` here asks for a continuation of a finished answer; a model whose end token is not
    recognised runs into the limit every time. The end token itself must not show in the text.
    """
    needs("content")
    parameters: dict[str, Any] = {"temperature": 0, "max_tokens": 256}
    answer = endpoint.chat("What is the capital of France?", **parameters)
    made = answer.usage.completion_tokens
    assert made < 256, f"a one-sentence answer ran into its limit of 256 tokens: {answer.text[-200:]!r}"
    assert answer.finish_reason == "stop", (
        f"ended after {made} of 256 tokens, the finish reason is {answer.finish_reason!r}"
    )
    streamed = endpoint.stream_chat("What is the capital of France?", **parameters).read()
    assert list(streamed.finish_reasons) == ["stop"], f"ended by itself, the stream says {streamed.finish_reasons}"
    for what, text in (("answer", answer.text), ("stream", streamed.text)):
        leaked = MARKUP.search(text)
        assert not leaked, f"the {what} shows {leaked[0]!r}, which marks turns and is not text: {text[-200:]!r}"


def test_answer_ends_before_the_stop_text(endpoint: EndpointClient, counting: str) -> None:
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
    assert plain.finish_reason == "stop", f"ended by its stop text, the finish reason is {plain.finish_reason!r}"
    streamed = endpoint.stream_chat(counting, temperature=0, max_tokens=20, stop=[stop]).read()
    assert streamed.text == expected, f"streamed with stop={stop!r}: {streamed.text!r}\nuntil there: {expected!r}"
    assert list(streamed.finish_reasons) == ["stop"], f"ended by its stop text, it says {streamed.finish_reasons}"
    # The shortest answer of all: its first character is the stop text.
    body = endpoint.chat_body(counting, temperature=0, max_tokens=20, stop=[free.text[:1]])
    response = endpoint.raw("POST", CHAT, json=body)
    what = f"an answer that its stop text {free.text[:1]!r} leaves empty"
    assert response.status_code == 200, f"{what} was answered {response.status_code}: {response.text[:200]}"
    said = read_answer(response.json()).choices[0]
    assert (said.text, said.finish_reason) == ("", "stop"), f"{what} is {said.text!r}, ended by {said.finish_reason!r}"


def test_stop_text_is_found_across_tokens(endpoint: EndpointClient, counting: str, needs: Needs) -> None:
    """A stop text that begins in one token and ends in the next one stops the answer, right before it.

    A server that compares token by token finds only short stop texts, and sends their beginning before it knows.
    """
    needs("logprobs")
    parameters = {"temperature": 0, "max_tokens": 16}
    free = endpoint.chat(counting, **parameters, logprobs=True, top_logprobs=1)
    scores = free.choice.get("logprobs")
    assert scores, f"logprobs were requested, got {scores!r}"
    tokens = [entry["token"] for entry in scores["content"]]
    ends = [len("".join(tokens[:place])) for place in range(1, len(tokens))]
    borders = [end for end in ends if end > 2 and free.text.find(free.text[end - 1 : end + 1]) == end - 1]
    assert borders, f"no border of two tokens in {tokens} makes a stop text of its own"
    stop, expected = free.text[borders[0] - 1 : borders[0] + 1], free.text[: borders[0] - 1]
    plain = endpoint.chat(counting, **parameters, stop=stop)
    streamed = endpoint.stream_chat(counting, **parameters, stop=stop).read()
    for what, said in (("plain", plain.text), ("streamed", streamed.text)):
        assert said == expected, f"{what} with stop={stop!r}, across two tokens: {said!r}; until there: {expected!r}"


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_stop_text_of_many_bytes_is_found(endpoint: EndpointClient, needs: Needs, stream: bool) -> None:
    """A stop text whose characters have several bytes ends the answer right before it.

    Tokens end inside such characters: a server that compares bytes, or token by token, never finds it.
    """
    needs("structured_outputs")
    parameters = {"temperature": 0, "max_tokens": 64, "structured_outputs": {"choice": ["Grüße 你好 🙂 und mehr"]}}
    for stop, expected in (("好", "Grüße 你"), ("🙂", "Grüße 你好 ")):
        if stream:
            said = endpoint.stream_chat("Say something.", stop=[stop], **parameters).read().text
        else:
            said = endpoint.chat("Say something.", stop=[stop], **parameters).text
        assert said == expected, f"with stop={stop!r}: {said!r}, expected {expected!r}"


def test_stop_token_ends_the_answer(endpoint: EndpointClient, counting: str, needs: Needs) -> None:
    """A token of ``stop_token_ids`` ends the answer, does not show, and is named as the reason.

    Agents stop at special tokens that have no text; dropped, the model talks on past the end of its turn.
    """
    needs("token_ids")
    parameters = {"temperature": 0, "max_tokens": 12, "return_token_ids": True}
    ids = endpoint.chat(counting, **parameters).choice["token_ids"]
    stop = ids[4]
    made = ids.index(stop) + 1
    answer = endpoint.chat(counting, **parameters, stop_token_ids=[stop])
    said = answer.usage.completion_tokens
    assert said == made, f"stop token {stop} is token {made} of the answer, which went on to {said}: {answer.text!r}"
    assert answer.finish_reason == "stop", f"ended by its stop token, the finish reason is {answer.finish_reason!r}"
    assert answer.choice.get("stop_reason") == stop, f"stopped by {stop}, it says {answer.choice.get('stop_reason')!r}"


def repeat_line(endpoint: EndpointClient, count: int) -> tuple[list[int], str]:
    """So many tokens of one line again and again, and the text of the token that follows: a digit of its number."""
    longer, shorter = (endpoint.tokenize(LINE.lines(times), add_special_tokens=False).ids for times in (8, 7))
    line = list(longer[len(shorter) - len(longer) :])
    texts = [endpoint.detokenize([number]).strip() for number in line]
    # Before it the word of the line, after which only its number comes.
    place = next((place for place, text in enumerate(texts) if text.isdecimal()), 0)
    tokens = [*line, *line] * (count // len(line) + 1)
    return (tokens + line[:place])[-count:], texts[place]


def test_the_whole_context_can_be_used(endpoint: EndpointClient) -> None:
    """A prompt of one token less than ``max_model_len`` is answered by one token; one of the whole length is refused.

    Users fill the context that they were promised to the last token; off by one, the longest documents fail. An answer
    never runs over the end either: it is cut there, or the request is refused. The longest prompt has a seed: a server
    that computes it in parts has to keep the seed's generator through all of them. It is one line again and again, and
    the answer is the line's next token, whatever the model: positions that are computed wrongly, or parts that are
    mixed up, make nonsense of long prompts alone.
    """
    limit = endpoint.tokenize("x").max_model_len
    assert limit, "/tokenize reports no max_model_len"
    seeded = {"temperature": 1.0, "top_k": 1, "seed": 7, "repetition_penalty": 1.0}
    prompt, expected = repeat_line(endpoint, limit - 1)
    with endpoint.with_new_connections(silence_timeout_s=LONG_PROMPT_TIMEOUT_S) as patient:
        answer = patient.completion(prompt, max_tokens=1, **seeded)
    full = answer.usage
    assert (full.prompt_tokens, full.completion_tokens) == (limit - 1, 1), f"{limit - 1} and 1 tokens gave {full}"
    assert answer.text.strip() == expected, (
        f"after {limit - 1} tokens of {LINE.line!r} again and again, {expected!r} must follow, "
        f"and {answer.text!r} came: long prompts are not computed right"
    )
    body = endpoint.completion_body([*prompt, prompt[0]], max_tokens=1)
    over = endpoint.raw("POST", COMPLETIONS, json=body)
    assert over.status_code in (400, 413, 422), (
        f"a prompt of {limit} tokens, with no room for an answer, was answered {over.status_code}: {over.text[:200]}"
    )
    body = endpoint.completion_body(prompt, max_tokens=OVER, temperature=0, ignore_eos=True)
    with endpoint.with_new_connections(silence_timeout_s=LONG_PROMPT_TIMEOUT_S) as patient:
        beyond = patient.raw("POST", COMPLETIONS, json=body)
    total = beyond.json()["usage"]["total_tokens"] if beyond.status_code == 200 else 0
    assert beyond.status_code in (200, 400, 422), f"an answer over the context's end: {beyond.status_code}"
    assert total <= limit, f"prompt and answer have {total} tokens, in a context of {limit}"

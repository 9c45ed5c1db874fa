"""Whatever is asked, in whatever combination, the answer keeps to what was asked: property tests over the parameters.

The examples follow from the tests alone, so a run is repeatable; a failure is shrunk to the smallest request that shows
it, which stands in the report.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage import EndpointClient, Usage
from pytest_vllm_stage.checks.inference.properties import any_text, check_examples

if TYPE_CHECKING:
    from hypothesis import strategies as st

Needs = Callable[..., None]

Choices = tuple[dict[int, str], list[Any], Usage]


def possible(asked: dict[str, Any]) -> dict[str, Any]:
    """Several greedy answers would all be one, and are refused."""
    return asked if asked["temperature"] else {key: value for key, value in asked.items() if key != "n"}


def any_request() -> st.SearchStrategy[tuple[str, dict[str, Any], bool]]:
    """A text, parameters, and whether the answer is streamed."""
    from hypothesis import strategies as st

    parameters = st.fixed_dictionaries(
        {"max_tokens": st.integers(1, 3), "temperature": st.sampled_from([0, 0.7, 2.0])},
        optional={
            "top_p": st.sampled_from([0.01, 0.5, 1.0]),
            "top_k": st.sampled_from([0, 1, 50]),
            "min_p": st.sampled_from([0.0, 0.1]),
            "seed": st.integers(0, 2**31 - 1),
            "n": st.just(2),
            "stop": st.sampled_from([["e"], [" the", "\n"]]),
            "frequency_penalty": st.sampled_from([-2.0, 0.5, 2.0]),
            "repetition_penalty": st.just(1.2),
            "ignore_eos": st.booleans(),
            "logprobs": st.just(True),
        },
    ).map(possible)
    return st.tuples(any_text(), parameters, st.booleans())


def choices_of(endpoint: EndpointClient, text: str, asked: dict[str, Any], stream: bool) -> Choices:
    """The text of each choice, every finish reason, and the usage."""
    if not stream:
        answer = endpoint.chat(text, **asked)
        choices = answer.body["choices"]
        texts = {choice["index"]: choice["message"]["content"] or "" for choice in choices}
        return texts, [choice["finish_reason"] for choice in choices], answer.usage
    streamed = endpoint.stream_chat(text, stream_options={"include_usage": True}, **asked).read()
    texts = dict.fromkeys((choice["index"] for chunk in streamed.chunks for choice in chunk["choices"]), "")
    for chunk in streamed.chunks:
        for choice in chunk["choices"]:
            texts[choice["index"]] += choice["delta"].get("content") or ""
    carry = len(streamed.usage_chunks)
    # With --enable-force-include-usage every chunk does.
    assert carry in (1, len(streamed.chunks)), f"usage was requested, but {carry} chunks carry it"
    return texts, list(streamed.finish_reasons), Usage.of(streamed.usage_chunks[-1])


def test_any_request_gets_what_it_asks_for(endpoint: EndpointClient) -> None:
    """Any text with any parameters: so many choices, each ended for a reason, no stop text in any, and all counted.

    Users combine parameters as no test of single ones does; it is at two that meet where servers and gateways break.
    """

    def keeps_to_it(drawn: tuple[str, dict[str, Any], bool]) -> None:
        text, asked, stream = drawn
        texts, reasons, usage = choices_of(endpoint, text, asked, stream)
        said = f"{text!r} with {asked}, {'streamed' if stream else 'plain'}:"
        wanted = asked.get("n", 1)
        assert set(texts) == set(range(wanted)), f"{said} n={wanted} gave the choices {sorted(texts)}"
        assert len(reasons) == wanted, f"{said} {wanted} choices ended for {len(reasons)} reasons"
        assert set(reasons) <= {"stop", "length"}, f"{said} the finish reasons are {reasons}"
        leaked = [stop for stop in asked.get("stop", []) if any(stop in one for one in texts.values())]
        assert not leaked, f"{said} the stop text {leaked[0]!r} is in {texts}"
        most = wanted * asked["max_tokens"]
        assert wanted <= usage.completion_tokens <= most, f"{said} {usage.completion_tokens} tokens, of at most {most}"
        counted = endpoint.tokenize(messages=text).count
        assert usage.prompt_tokens == counted, f"{said} usage says {usage.prompt_tokens} prompt tokens of {counted}"

    check_examples(any_request(), 16, keeps_to_it)


def test_any_text_is_completed_by_its_own_tokens(endpoint: EndpointClient, needs: Needs) -> None:
    """Any text as a plain prompt: the engine works on the tokens that ``/tokenize`` gives, and counts them.

    A character that a hop drops, doubles or recodes changes the prompt without a trace in the answer.
    """
    needs("token_ids")

    def is_completed(text: str) -> None:
        answer = endpoint.completion(text, temperature=0, max_tokens=1, return_token_ids=True)
        tokens = endpoint.tokenize(text)
        seen = answer.choice.get("prompt_token_ids")
        assert seen == list(tokens.ids), f"{text!r}: the engine saw {seen}, /tokenize says {list(tokens.ids)}"
        counted = answer.usage.prompt_tokens
        assert counted == tokens.count, f"{text!r}: usage says {counted} prompt tokens of {tokens.count}"

    check_examples(any_text(), 12, is_completed)

"""The simulated engine's guided answers, tool calls, choices and scores: as asked, by an independent judge."""

from __future__ import annotations

import json
import math
import random
import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.checks.inference.schema import schema_violation
from pytest_vllm_stage.standins.engine import answers, logprobs, tokenizer
from pytest_vllm_stage.standins.engine.generation import Generated, generate
from pytest_vllm_stage.standins.engine.parameters import Kind, Parameters, parameters_of
from pytest_vllm_stage.standins.engine.structure import Unsupported, fitting, matching

PATTERNS = [
    r"[a-f]{3}-[0-9]{4}",
    r"(yes|no)( indeed)?!*",
    r"\d+\.\d{2} (EUR|USD)",
    r"[^a-z]{4,6}",
    r"^x.y$",
    "Grüße 🙂",
]
SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 8},
        "age": {"type": "integer", "minimum": 0, "maximum": 9},
        "share": {"type": "number", "minimum": 0.5, "maximum": 1.5},
        "kind": {"enum": ["a", "b"]},
        "tags": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
        "more": {"anyOf": [{"type": "null"}, {"type": "object", "properties": {"x": {"const": 7}}, "required": ["x"]}]},
    },
    "required": ["name", "age", "share", "kind", "tags", "more"],
    "additionalProperties": False,
}


def asked(kind: Kind = "chat", text: str = "Say something.", **body: Any) -> Parameters:
    what = {"messages": [{"role": "user", "content": text}]} if kind == "chat" else {"prompt": text}
    return parameters_of({"temperature": 0, "max_tokens": 256, **what, **body}, kind, 2048)


def answer(parameters: Parameters, salt: int = 1) -> Generated:
    return generate(parameters, 0, salt)


def text_of(generated: Generated) -> str:
    return "".join(generated.texts)


@given(st.sampled_from(PATTERNS), st.integers())
def test_what_is_drawn_from_an_expression_matches_it(pattern: str, seed: int) -> None:
    assert re.fullmatch(pattern, matching(pattern, random.Random(seed)))


@given(st.integers())
def test_what_is_drawn_from_a_schema_fits_it(seed: int) -> None:
    assert schema_violation(fitting(SCHEMA, random.Random(seed)), SCHEMA) == ""


@pytest.mark.parametrize("schema", [{"type": "nope"}, {"type": ["string"]}, 7])
def test_a_schema_that_is_not_known_is_never_guessed(schema: Any) -> None:
    with pytest.raises(Unsupported):
        fitting(schema, random.Random(0))


def test_a_pattern_is_gone_on_with() -> None:
    text = "kiwi 3201\nlamp 17\nkiwi 3201\nkiwi"
    assert text_of(answer(asked("completion", text, max_tokens=8))).startswith(" 3201\nkiwi")
    assert answers.copied("nothing to copy") is None
    messages = [{"role": "system", "content": "kiwi 3201\nkiwi 3201"}, {"role": "assistant", "content": "kiwi"}]
    goes_on = {"messages": messages, "add_generation_prompt": False, "continue_final_message": True, "temperature": 0}
    assert text_of(answer(parameters_of(goes_on, "chat", 512))).startswith(" 3201\n")


def test_a_guided_answer_ends_by_itself_or_at_its_limit() -> None:
    whole = answer(asked(structured_outputs={"choice": ["Grüße 🙂"]}))
    assert (text_of(whole), whole.finish_reason) == ("Grüße 🙂", "stop")
    cut = answer(asked(structured_outputs={"choice": ["Grüße 🙂"]}, max_tokens=2))
    assert (len(cut.pieces), cut.finish_reason) == (2, "length")
    stopped = answer(asked(structured_outputs={"choice": ["one, two"]}, stop=[", "]))
    assert (text_of(stopped), stopped.finish_reason, stopped.stop_reason) == ("one", "stop", ", ")


def test_tools_are_called_as_the_choice_says() -> None:
    names = ("weather", "clock")
    tools = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in names]
    required = answer(asked(text="The weather?", tools=tools, tool_choice="required"))
    assert (required.calls, required.finish_reason) == (["weather"], "tool_calls")
    assert schema_violation(json.loads(text_of(required)), SCHEMA) == ""
    named = answer(asked(tools=tools, tool_choice={"type": "function", "function": {"name": "clock"}}))
    assert (named.calls, named.finish_reason) == (["clock"], "stop")
    said = '<tool_call>\n{"name": "clock", "arguments": {"x": 1}}\n</tool_call>'
    auto = answer(asked(tools=tools, structured_outputs={"choice": [said]}))
    assert (auto.calls, text_of(auto), auto.finish_reason) == (["clock"], '{"x": 1}', "tool_calls")
    assert answer(asked(tools=tools, tool_choice="none", structured_outputs={"choice": [said]})).calls == []


def said_calls(*calls: dict[str, Any]) -> str:
    return "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)


TWO_CALLS = said_calls({"name": "clock", "arguments": {"x": 1}}, {"name": "weather", "arguments": {"city": "Zürich"}})


def answer_with_tools(text: str, **body: Any) -> Generated:
    tools = [{"type": "function", "function": {"name": name}} for name in ("weather", "clock")]
    return answer(asked(tools=tools, structured_outputs={"choice": [text]}, **body))


def test_each_tool_call_block_is_a_call() -> None:
    two = answer_with_tools(f"One moment. {TWO_CALLS}")
    assert (two.calls, two.finish_reason) == (["clock", "weather"], "tool_calls")
    assert [two.arguments(0), two.arguments(1), two.content] == ['{"x": 1}', '{"city": "Zürich"}', "One moment. "]


@pytest.mark.parametrize("block", ['{"name": "clock"', '{"arguments": {}}', "[1]", "7"])
def test_a_block_that_is_not_a_call_stays_text(block: str) -> None:
    text = f"<tool_call>{block}</tool_call>"
    generated = answer_with_tools(text)
    assert (generated.calls, generated.content, generated.finish_reason) == ([], text, "stop")


def test_a_call_that_the_limit_leaves_out_is_not_announced() -> None:
    cut = answer_with_tools(TWO_CALLS, max_tokens=2)
    assert (cut.calls, cut.finish_reason) == (["clock"], "length")


def test_references_of_a_schema_name_its_definitions() -> None:
    schema = {"type": "object", "properties": {"z": {"$ref": "#/$defs/letter"}}, "required": ["z"]}
    dice = random.Random(1)
    assert fitting(schema | {"$defs": {"letter": {"const": "A"}}}, dice) == {"z": "A"}
    with pytest.raises(Unsupported, match=r"cannot resolve the reference '#/\$defs/letter'"):
        fitting(schema, dice)


def test_bias_penalties_and_stop_tokens_decide() -> None:
    first = answer(asked(max_tokens=4))
    banned = tokenizer.token_id(first.pieces[0])
    assert first.pieces[0] not in answer(asked(max_tokens=4, logit_bias={str(banned): -100})).pieces
    forced = tokenizer.token_id(b" kelp")
    assert answer(asked(max_tokens=3, logit_bias={str(forced): 100})).pieces == [b" kelp"] * 3
    assert answer(asked(max_tokens=3, allowed_token_ids=[forced])).pieces == [b" kelp"] * 3
    word = first.pieces[0].decode().strip()
    assert first.pieces[0] not in answer(asked(max_tokens=4, bad_words=[word])).pieces
    assert answer(asked(max_tokens=4, frequency_penalty=1.0)).pieces != first.pieces
    stopped = answer(asked(max_tokens=4, stop_token_ids=[tokenizer.token_id(first.pieces[2])]))
    assert (stopped.pieces, stopped.finish_reason) == (first.pieces[:3], "stop")
    assert stopped.stop_reason == tokenizer.token_id(first.pieces[2])
    text = first.pieces[1].decode()
    kept = answer(asked(max_tokens=4, stop=[text], include_stop_str_in_output=True))
    assert text_of(kept) == b"".join(first.pieces[:2]).decode()


@pytest.mark.parametrize("only", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}, {"temperature": 1e-5}])
def test_where_one_token_is_left_nothing_is_drawn(only: dict[str, Any]) -> None:
    greedy = answer(asked())
    assert answer(asked(**{"temperature": 1.0, **only})).pieces == greedy.pieces
    assert answer(asked(temperature=1.0)).pieces != greedy.pieces


@given(st.text(min_size=1, max_size=20), st.integers(2, 20))
def test_the_scores_are_log_probabilities(text: str, count: int) -> None:
    parameters = asked(text=text, logprobs=True, top_logprobs=count, max_tokens=6, prompt_logprobs=1)
    entries = logprobs.of_answer(parameters, answer(parameters), range(6)) or {}
    for entry in entries["content"]:
        top = [one["logprob"] for one in entry["top_logprobs"]]
        assert len(top) == count
        assert top == sorted(top, reverse=True)
        assert sum(map(math.exp, top)) <= 1.0
    scored = logprobs.of_prompt(parameters) or []
    assert scored[0] is None
    assert len(scored) == len(parameters.prompt)
    for one in scored[1:]:
        assert one is not None
        assert sum(math.exp(entry["logprob"]) for entry in one.values()) <= 1.0

"""Answers that programs read: guided output and tool calls are valid, complete and what was asked for."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage import Answer, EndpointClient, ModelProfile
from pytest_vllm_stage.checks.inference.properties import check_examples
from pytest_vllm_stage.checks.inference.schema import schema_violation
from pytest_vllm_stage.checks.inference.together import ask_together
from pytest_vllm_stage.checks.inference.tools import ToolCall, find_finish_reason, read_calls, read_streamed_calls
from pytest_vllm_stage.serving.client import CHAT
from pytest_vllm_stage.serving.failures import shown

if TYPE_CHECKING:
    from hypothesis import strategies as st

Needs = Callable[..., None]

#: Between the parts of JSON a model may put white space without end: the limit may cut it, but not every time.
ROOM = 80

WEATHER: dict[str, Any] = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "enum": ["Paris", "Rome", "Oslo"]},
        "days": {"type": "integer", "enum": [1, 2, 3]},
    },
    "required": ["city", "days"],
    "additionalProperties": False,
}
CLOCK: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
SCHEMAS = {"get_weather": WEATHER, "get_time": CLOCK}
#: Nine letters and digits each: the tokenizer of Mistral's models refuses all others, and vLLM only cuts longer ones.
CALL_IDS = {"UTC": "callUTC01", "CET": "callCET01"}
QUESTION = "What is the weather in Rome for 2 days? Use a tool."
DRAW: dict[str, Any] = {"temperature": 0, "max_tokens": ROOM}


def test_schema_constraint_yields_json_of_that_schema(endpoint: EndpointClient, needs: Needs) -> None:
    """For any of many small schemas, a complete answer is JSON that fits the schema.

    Programs parse it unseen: one missing field is an exception in another program's code. An answer that its
    limit cuts says so; it need not be complete, but not all may be cut. The keys come in the schema's order: a schema
    that asks for the reasons before the verdict means it.
    """
    needs("structured_outputs")
    complete = []

    def fits(schema: dict[str, Any]) -> None:
        wanted = {"type": "json_schema", "json_schema": {"name": "thing", "schema": schema, "strict": True}}
        answer = endpoint.chat("Describe a thing as JSON.", response_format=wanted, **DRAW)
        if answer.finish_reason == "length":
            return
        complete.append(answer)
        value = read(answer.text, "constrained to a schema, the answer")
        problem = schema_violation(value, schema, "the answer")
        assert not problem, f"{problem}; it was constrained to {schema}"
        expected = [key for key in schema["properties"] if key in value]
        assert list(value) == expected, (
            f"the answer's keys come in the order {list(value)}, expected that of the schema, {expected}: "
            "something on the way sorts the keys of requests"
        )

    check_examples(any_schema(), 5, fits)
    assert complete, f"no answer constrained to a schema ended within {ROOM} tokens"


def any_schema() -> st.SearchStrategy[dict[str, Any]]:
    """Of an object with one or two keys, the last in the alphabet first; small, so that any model completes it."""
    from hypothesis import strategies as st

    values = st.sampled_from(
        [
            {"type": "boolean"},
            {"enum": ["red", "green", "blue"]},
            {"enum": ["Grüße", "你好"]},
            {"type": "integer", "minimum": 0, "maximum": 9},
            {"type": "string", "pattern": "^[a-c]{2,4}$"},
            {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 2},
        ]
    )
    return st.dictionaries(st.sampled_from(["name", "kind", "count"]), values, min_size=1, max_size=2).map(
        lambda of: {
            "type": "object",
            "properties": {key: of[key] for key in sorted(of, reverse=True)},
            "required": sorted(of),
            "additionalProperties": False,
        }
    )


def any_pattern() -> st.SearchStrategy[tuple[str, float]]:
    """A regular expression and a temperature."""
    from hypothesis import strategies as st

    expressions = st.builds(
        lambda head, count, tail: f"[{head}]{{{count}}}{tail}",
        st.sampled_from(["a-f", "0-9", "A-Z_"]),
        st.integers(1, 4),
        st.sampled_from(["", "-[0-9]{2}", "(yes|no)", " ü!"]),
    )
    return st.tuples(expressions, st.sampled_from([0, 1.5]))


def tools(*, strict: bool = True) -> list[dict[str, Any]]:
    """The two tools; vLLM constrains the arguments of strict ones to their schema."""
    return [
        {"type": "function", "function": {"name": name, "description": name, "strict": strict, "parameters": schema}}
        for name, schema in SCHEMAS.items()
    ]


def read(text: str, what: str) -> Any:
    """The JSON that a text should be."""
    assert isinstance(text, str), f"{what} is of type {type(text).__name__}, expected a string of JSON"
    problem = ""
    try:
        return json.loads(text)
    except ValueError as error:
        problem = f"{what} is not JSON ({error}): {text!r}"
    return pytest.fail(problem)


def test_regex_constraint_yields_a_full_match(endpoint: EndpointClient, needs: Needs) -> None:
    """For any of many regular expressions, the whole answer matches, drawn at a high temperature too.

    Identifiers, dates and codes are asked for so; a match of the beginning alone, or at temperature 0 alone, is none.
    """
    needs("structured_outputs")

    def matches(drawn: tuple[str, float]) -> None:
        pattern, temperature = drawn
        asked = {"structured_outputs": {"regex": pattern}, "temperature": temperature, "max_tokens": 40, "seed": 1}
        text = endpoint.chat("Say something.", **asked).text
        assert re.fullmatch(pattern, text), f"constrained to {pattern!r}, the answer is {text!r}"

    check_examples(any_pattern(), 8, matches)


def test_choice_constraint_yields_exactly_one_choice(endpoint: EndpointClient, needs: Needs) -> None:
    """The answer is one of the choices, whole or streamed, in chats and plain completions.

    Classifiers compare the answer letter by letter with their labels; a label with extra words is not a label.
    """
    needs("structured_outputs")
    choices = ["violet", "orange", "white and black"]
    asked = {"structured_outputs": {"choice": choices}, "temperature": 0, "max_tokens": 16}
    ways: dict[str, Callable[[], str]] = {
        "chat": lambda: endpoint.chat("Name a colour.", **asked).text,
        "streamed chat": lambda: endpoint.stream_chat("Name a colour.", **asked).read().text,
        "completion": lambda: endpoint.completion("My favourite colour is", **asked).text,
    }
    said = ask_together(ways)
    wrong = {what: text for what, text in said.items() if text not in choices}
    assert not wrong, f"constrained to one of {choices}, the answers are {wrong}"


def valid(calls: list[ToolCall], what: str) -> ToolCall:
    """The one call, of a known tool, whose arguments fit its schema."""
    assert len(calls) == 1, f"{what}: expected one tool call, got {len(calls)}"
    (call,) = calls
    assert call.name in SCHEMAS, f"{what}: unknown tool {call.name!r} was called; known: {sorted(SCHEMAS)}"
    assert call.id, f"{what}: the call of {call.name} has no id to answer it by"
    assert call.type == "function", f"{what}: the call of {call.name} has the type {call.type!r}"
    arguments = read(call.arguments, f"{what}: the text of {call.name}'s arguments")
    problem = schema_violation(arguments, SCHEMAS[call.name], f"{what}: {call.name}'s arguments")
    assert not problem, problem
    return call


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
@pytest.mark.parametrize("named", [None, "get_time"], ids=["required", "named"])
def test_requested_tool_call_comes_and_is_valid(
    endpoint: EndpointClient, needs: Needs, named: str | None, stream: bool
) -> None:
    """With ``tool_choice`` required or naming a tool, exactly one call comes, and its arguments fit the tool's schema.

    An agent runs each call it gets: one that comes as text, of another tool, or with broken arguments ends it.
    """
    needs("tools")
    choice = {"type": "function", "function": {"name": named}} if named else "required"
    calls, reason, _ = asked_for_calls(endpoint, stream, tool_choice=choice, tools=tools())
    call = valid(calls, f"tool_choice {named or 'required'}")
    assert named in (None, call.name), f"expected a call of {named}, got {call.name}"
    # vLLM says "stop" after a named call, as OpenAI does.
    expected = ("tool_calls", "stop") if named else ("tool_calls",)
    assert reason in expected, f"after a tool call the finish reason is {reason!r}"


def asked_for_calls(
    endpoint: EndpointClient, stream: bool, question: str = QUESTION, **asked: Any
) -> tuple[list[ToolCall], str | None, str]:
    """The calls in the answer to a question, the finish reason, and the text besides the calls."""
    if stream:
        streamed = endpoint.stream_chat(question, **{**DRAW, **asked}).read()
        return read_streamed_calls(streamed.chunks), find_finish_reason(streamed), streamed.text
    answer = endpoint.chat(question, **{**DRAW, **asked})
    return read_calls(answer.choice), answer.finish_reason, answer.text


@pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])
def test_automatic_tool_call_is_parsed(
    endpoint: EndpointClient, needs: Needs, model_profile: ModelProfile | None, stream: bool
) -> None:
    """With ``tool_choice`` auto, the call that the model writes comes as a call, not as text.

    A tool parser that does not fit the model leaves its call in the text, and agents stop working without any error. A
    model too small to call a tool by itself is constrained to the text of a call, as its profile says.
    """
    needs("tools", "auto_tools")
    asked: dict[str, Any] = {"tools": tools(strict=False), "tool_choice": "auto"}
    if model_profile is None:
        _skip_unless_it_may_call(endpoint, asked)
    if model_profile and model_profile.tool_format == "hermes":
        needs("structured_outputs")
        call = {"name": "get_time", "arguments": {"zone": "CET"}}
        asked["structured_outputs"] = {"choice": [f"<tool_call>\n{json.dumps(call)}\n</tool_call>"]}
    calls, reason, text = asked_for_calls(endpoint, stream, question="What time is it in CET? Use a tool.", **asked)
    if model_profile is None and not calls:
        pytest.skip(f"{endpoint.target.model} called no tool by itself, and no profile says how it can be made to")
    found = valid(calls, f"tool_choice auto, finish_reason {reason!r}")
    said = (found.name, json.loads(found.arguments))
    assert said == ("get_time", {"zone": "CET"}), f"the time in the zone CET became {found}"
    assert reason == "tool_calls", f"after a tool call the finish reason is {reason!r}"
    assert '"zone"' not in text, f"the call came as a call, and stayed in the text too: {text!r}"


def _skip_unless_it_may_call(endpoint: EndpointClient, asked: dict[str, Any]) -> None:
    """For a server without a profile, its own refusal decides."""
    probe = endpoint.raw("POST", CHAT, json=endpoint.chat_body(QUESTION, max_tokens=1, **asked))
    assert probe.status_code < 500, f"tool_choice auto is answered with {probe.status_code}: {shown(probe.text)}"
    if probe.status_code == 400 and "--enable-auto-tool-choice" in probe.text:
        pytest.skip(f"the server says that its flags do not allow it: {probe.json()['error']['message']}")


def test_tool_choice_none_yields_no_tool_call(endpoint: EndpointClient, needs: Needs) -> None:
    """With ``tool_choice`` none, no call comes, however much the question asks for it."""
    needs("tools")
    calls, _, _ = asked_for_calls(endpoint, False, tools=tools(), tool_choice="none", max_tokens=24)
    assert not calls, f"tool_choice is none, but {calls[0].name} was called"


def test_tool_result_reaches_the_model(endpoint: EndpointClient, needs: Needs) -> None:
    """The results of two calls, sent back as ``tool`` messages, are in the prompt of the next answer, in their order.

    Tools exist for this round trip: if a result is dropped, the model invents one. Clients send the assistant's turn
    back as it came, with null for the text.
    """
    needs("tools", "token_ids")
    called = [
        {
            "id": call_id,
            "type": "function",
            "function": {"name": "get_time", "arguments": f'{{"zone": "{zone}"}}'},
        }
        for zone, call_id in CALL_IDS.items()
    ]
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "What time is it?"},
        {"role": "assistant", "content": None, "tool_calls": called},
        {"role": "tool", "tool_call_id": CALL_IDS["UTC"], "content": "It is 17:42 and sunny."},
        {"role": "tool", "tool_call_id": CALL_IDS["CET"], "content": "It is 18:42 and windy."},
    ]
    answer: Answer = endpoint.chat(messages, temperature=0, max_tokens=8, tools=tools(), return_token_ids=True)
    seen = endpoint.detokenize(answer.body.get("prompt_token_ids") or [])
    assert "17:42" in seen, f"the tool's result is not in the prompt that the engine saw: {seen!r}"
    assert -1 < seen.find("17:42") < seen.find("18:42"), (
        f"the results of two tools are swapped in the prompt, or the second one is lost: {seen!r}"
    )

"""Tool calls at their edges: none of the parameters, one call of several, a call cut in two, any characters."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from pytest_vllm_stage import EndpointClient, ModelProfile, does_not_apply
from pytest_vllm_stage.checks.inference.together import ask_together, together
from pytest_vllm_stage.checks.inference.tools import (
    ToolCall,
    find_finish_reason,
    is_cut,
    read_calls,
    read_streamed_calls,
)
from pytest_vllm_stage.serving.client import CHAT
from pytest_vllm_stage.serving.failures import shown

Needs = Callable[..., None]

ZONES: dict[str, Any] = {
    "type": "object",
    "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
    "required": ["zone"],
    "additionalProperties": False,
}
#: Its one value has at least so many tokens in any vocabulary.
LONG_ZONE_TOKENS = 80
LONG_ZONE = ZONES | {"properties": {"zone": {"type": "string", "enum": [" ".join(["UTC"] * LONG_ZONE_TOKENS)]}}}
NOTHING: dict[str, Any] = {"type": "object", "properties": {}, "additionalProperties": False}

#: JSON allows white space anywhere, and a small model may fill its arguments with it: each further one is less likely.
FILL_PENALTY = 2.0

streamed_too = pytest.mark.parametrize("stream", [False, True], ids=["plain", "stream"])


def tool(name: str, parameters: dict[str, Any], *, strict: bool = True) -> dict[str, Any]:
    """A tool; vLLM constrains the arguments of a strict one to its schema."""
    function = {"name": name, "description": name, "strict": strict, "parameters": parameters}
    return {"type": "function", "function": function}


def ask(endpoint: EndpointClient, stream: bool, question: str, **asked: Any) -> tuple[list[ToolCall], str | None, bool]:
    """The calls of an answer, its last finish reason, and whether ``max_tokens`` ended it."""
    asked = {"temperature": 0, "max_tokens": 80, **asked}
    if stream:
        streamed = endpoint.stream_chat(question, stream_options={"include_usage": True}, **asked).read()
        reason = find_finish_reason(streamed)
        counted = next(iter(streamed.usage_chunks[-1:]), {})
        return read_streamed_calls(streamed.chunks), reason, is_cut(counted, reason, asked["max_tokens"])
    answer = endpoint.chat(question, **asked)
    cut = is_cut(answer.body, answer.finish_reason, asked["max_tokens"])
    return read_calls(answer.choice), answer.finish_reason, cut


def ask_whole(endpoint: EndpointClient, stream: bool, question: str, **asked: Any) -> list[ToolCall]:
    """The calls of an answer that ``max_tokens`` has not cut."""
    for penalty in (0.0, FILL_PENALTY):
        calls, _, cut = ask(endpoint, stream, question, frequency_penalty=penalty, **asked)
        if not cut:
            return calls
    return does_not_apply("the model fills its call with white space up to max_tokens, which JSON allows")


def arguments_of(calls: list[ToolCall], what: str) -> Any:
    """The arguments of the one call."""
    assert len(calls) == 1, f"{what}: expected one tool call, got {len(calls)}"
    text = calls[0].arguments
    assert isinstance(text, str), f"{what}: the arguments are of type {type(text).__name__}, expected a string of JSON"
    try:
        return json.loads(text)
    except ValueError as error:
        problem = f"{what}: the text of the arguments is not JSON ({error}): {text!r}"
    return pytest.fail(problem)


@pytest.fixture
def written(model_profile: ModelProfile | None, needs: Needs) -> Callable[[list[dict[str, Any]]], dict[str, Any]]:
    """What makes a model write the given calls, in the format of the ``hermes`` parser."""

    def write(calls: list[dict[str, Any]]) -> dict[str, Any]:
        needs("auto_tools", "structured_outputs")
        if model_profile is None or model_profile.tool_format != "hermes":
            does_not_apply("the profile does not say how the model can be made to call a tool (tool_format)")
        text = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
        return {"structured_outputs": {"choice": [text]}, "max_tokens": 120, "tool_choice": "auto"}

    return write


@streamed_too
@pytest.mark.parametrize("choice", ["required", "auto"])
def test_tool_without_parameters_gets_an_empty_object(
    request: pytest.FixtureRequest, endpoint: EndpointClient, needs: Needs, choice: str, stream: bool
) -> None:
    """The arguments of a tool that has no parameters are ``{}``, whole or streamed, and not an empty text.

    Clients parse them, and drop a call whose arguments are not JSON.
    """
    needs("tools")
    asked: dict[str, Any] = {"tool_choice": choice}
    if choice == "auto":
        asked = request.getfixturevalue("written")([{"name": "ring", "arguments": {}}])
    asked["tools"] = [tool("ring", NOTHING, strict=choice != "auto")]
    calls = ask_whole(endpoint, stream, "Ring the bell.", **asked)
    what = f"tool_choice {choice}, a tool without parameters"
    arguments = arguments_of(calls, what)
    assert (calls[0].name, arguments) == ("ring", {}), f"{what}: expected ring({{}}), got {calls[0].name}({arguments})"


@streamed_too
def test_parallel_tool_calls_can_be_switched_off(
    endpoint: EndpointClient, needs: Needs, written: Callable[..., dict[str, Any]], stream: bool
) -> None:
    """With ``parallel_tool_calls`` false, one call comes of an answer that has two; both come with true.

    Agents that can run one call at a time set it, and lose the second call without a word.
    """
    needs("tools")
    asked = written([{"name": "get_time", "arguments": {"zone": zone}} for zone in ("UTC", "CET")])
    asked["tools"] = [tool("get_time", ZONES, strict=False)]

    def call(allowed: bool) -> list[ToolCall]:
        return ask(endpoint, stream, "What time is it?", parallel_tool_calls=allowed, **asked)[0]

    expectations = {True: 2, False: 1}
    for (allowed, expected), calls in zip(
        expectations.items(), together(call, expectations, at_once=len(expectations)), strict=True
    ):
        said = [f"{call.name}({call.arguments})" for call in calls]
        assert len(calls) == expected, f"parallel_tool_calls {allowed}: of two calls expected {expected}, got {said}"


@streamed_too
@pytest.mark.parametrize("choice", ["required", "named"])
def test_tool_call_cut_by_its_limit_has_finish_reason_length(
    endpoint: EndpointClient, needs: Needs, choice: str, stream: bool
) -> None:
    """A tool call that ``max_tokens`` cut says ``length``, so that no client runs half a call.

    It is cut before its arguments and within them: what has streamed a part of a call knows it as one. A server may
    refuse a whole answer with half a call in it, as long as it is not a server error.
    """
    needs("tools")
    chosen = "required" if choice == "required" else {"type": "function", "function": {"name": "get_time"}}
    for limit, parameters in ((4, ZONES), (LONG_ZONE_TOKENS - 30, LONG_ZONE)):
        asked = {"tools": [tool("get_time", parameters)], "tool_choice": chosen, "temperature": 0, "max_tokens": limit}
        if not stream:
            response = endpoint.raw("POST", CHAT, json=endpoint.chat_body("What time is it?", **asked))
            status = response.status_code
            assert status < 500, f"half a tool call ({choice}): answered {status}: {shown(response.text)}"
            if status != 200:
                continue
        _, reason, _ = ask(endpoint, stream, "What time is it?", **asked)
        assert reason == "length", (
            f"a tool call ({choice}) cut after {limit} tokens ends with {reason!r}, expected 'length'"
        )


@streamed_too
def test_tool_arguments_keep_their_characters(endpoint: EndpointClient, needs: Needs, stream: bool) -> None:
    """Arguments with characters of several bytes, quotes and line breaks arrive intact, whole or streamed.

    They are JSON inside of JSON: a layer that decodes once too often, or cuts bytes, changes a name or an address.
    """
    needs("tools")
    expected = {"zone": 'Zürich "N"\nA\\B'}
    place = ZONES | {"properties": {"zone": {"type": "string", "enum": [expected["zone"]]}}}
    asked = {"tools": [tool("get_time", place)], "tool_choice": "required"}
    calls = ask_whole(endpoint, stream, "What time is it?", **asked)
    arguments = arguments_of(calls, "a tool for Zürich")
    assert arguments == expected, f"expected the arguments {expected}, got {arguments}"


#: Ways to constrain an answer, beyond those of the other checks.
FORMS: dict[str, dict[str, Any]] = {
    "json": {
        "structured_outputs": {
            "json": {
                "type": "object",
                "properties": {"z": {"$ref": "#/$defs/letter"}},
                "required": ["z"],
                "$defs": {"letter": {"const": "A"}},
            }
        }
    },
    "grammar": {"structured_outputs": {"grammar": 'root ::= "amber and black"'}},
    "json_object": {"response_format": {"type": "json_object"}},
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_structure_is_kept(endpoint: EndpointClient, needs: Needs, form: str) -> None:
    """A schema with a reference, a grammar and ``json_object`` constrain chats and completions, whole and streamed.

    A server or gateway that knows one form drops another one, mostly on the way that is used less. Schemas that are
    made from classes have definitions and references to them, which some cannot resolve.
    """
    needs("structured_outputs")
    question, asked = "Describe a thing as JSON.", {**FORMS[form], "temperature": 0, "max_tokens": 40}
    ways: dict[str, Callable[[], str]] = {
        "chat": lambda: endpoint.chat(question, **asked).text,
        "streamed chat": lambda: endpoint.stream_chat(question, **asked).read().text,
        "completion": lambda: endpoint.completion(question, **asked).text,
        "streamed completion": lambda: endpoint.stream_completion(question, **asked).read().text,
    }
    said = ask_together(ways)
    broken = {what: text for what, text in said.items() if not has_form(form, text)}
    assert not broken, f"constrained by {FORMS[form]}, the answers are {broken}"


def has_form(form: str, text: str) -> bool:
    """Whether a text has its form; a limit may cut the JSON of a model that goes on, and white space is free."""
    if form == "grammar":
        return text == "amber and black"
    try:
        value = json.loads(text)
    except ValueError:
        return text != "" and text.lstrip()[:1] in ("{", "") and not text.rstrip().endswith("}")
    return isinstance(value, dict) and (form == "json_object" or value.get("z") == "A")

"""What a request constrains the answer to: a choice, a regular expression, a schema, or a tool call."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.standins.engine.refusal import impossible, malformed
from pytest_vllm_stage.standins.engine.structure import Unsupported, fitting, json_text, matching

#: A call in the text of a model, as the ``hermes`` parser reads it.
_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)

_LITERAL = r'"(?:[^"\\]|\\.)*"'
_GRAMMAR = re.compile(rf"\s*root\s*::=\s*({_LITERAL}(?:\s*\|\s*{_LITERAL})*)\s*")

Maker = Callable[[random.Random], str]


@dataclass(frozen=True, slots=True)
class GuidedCall:
    """A tool call: the function's name and its arguments as JSON."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Guide:
    """Generates the text that an answer is constrained to.

    Attributes:
        text: Generates the text from dice.
        tool: The tool whose arguments the text is; None if the answer is plain text.
        finish_reason: Of a complete call; in vLLM ``tool_calls`` for a required one, ``stop`` for a named one.
    """

    text: Maker
    tool: str | None = None
    finish_reason: str = "stop"


def guide_of(body: Mapping[str, Any]) -> Guide | None:
    """The constraint in the body; None if the answer is unconstrained.

    Raises:
        Refusal: a field is invalid; the refusal names it.
    """
    guide = _tool_guide(body) or _structure(body)
    if guide is not None:
        _try(guide)
    return guide


def parse_calls(text: str) -> tuple[str, list[GuidedCall]]:
    """The text before the first call, and the calls, as vLLM's ``hermes`` parser finds them.

    A block that is not a call leaves the whole text as it is; what follows the first call is dropped.
    """
    try:
        blocks = [json.loads(block) for block in _CALL.findall(text)]
        calls = [GuidedCall(block["name"], json_text(block["arguments"])) for block in blocks]
    except (ValueError, TypeError, KeyError):
        return text, []
    return (text.partition("<tool_call>")[0], calls) if calls else (text, [])


def has_tools(body: Mapping[str, Any]) -> bool:
    """The model may call a tool."""
    return bool(body.get("tools")) and body.get("tool_choice", "auto") != "none"


def _try(guide: Guide) -> None:
    try:
        guide.text(random.Random(0))  # noqa: S311 - a trial, not a secret
    except Unsupported as error:
        raise impossible(f"Grammar error: {error}", "structured_outputs") from None


def _structure(body: Mapping[str, Any]) -> Guide | None:
    wanted = body.get("structured_outputs") or {}
    if not isinstance(wanted, dict):
        raise malformed("dict_type", "body.structured_outputs", "Input should be a valid dictionary")
    if "choice" in wanted:
        choices: list[str] = wanted["choice"]
        if not choices:
            raise impossible("Choice must not be empty.", "structured_outputs", choices)
        return Guide(lambda dice: dice.choice(choices))
    if "regex" in wanted:
        pattern: str = wanted["regex"]
        return Guide(lambda dice: matching(pattern, dice))
    if "json" in wanted:
        return _schema_guide(wanted["json"])
    if "grammar" in wanted:
        return _grammar_guide(wanted["grammar"])
    return _response_format(body.get("response_format") or {"type": "text"})


def _response_format(wanted: Any) -> Guide | None:
    kind = wanted.get("type") if isinstance(wanted, dict) else None
    if kind == "text":
        return None
    if kind == "json_object":
        return _schema_guide({"type": "object", "properties": {"answer": {"type": "string"}}, "required": ["answer"]})
    if kind == "json_schema":
        return _schema_guide((wanted.get("json_schema") or {}).get("schema"))
    raise malformed("literal_error", "body.response_format.type", "Input should be text, json_object or json_schema")


def _grammar_guide(grammar: Any) -> Guide:
    """A grammar of one rule with literals; no other one is needed here."""
    rule = _GRAMMAR.fullmatch(grammar) if isinstance(grammar, str) else None
    if rule is None:
        raise impossible('Grammar error: expected `root ::= "..." | "..."`', "structured_outputs", grammar)
    texts = [json.loads(literal) for literal in re.findall(_LITERAL, rule[1])]
    return Guide(lambda dice: dice.choice(texts))


def _schema_guide(schema: Any) -> Guide:
    return Guide(lambda dice: json_text(fitting(schema, dice)))


def _tool_guide(body: Mapping[str, Any]) -> Guide | None:
    choice, tools = body.get("tool_choice"), body.get("tools")
    if tools is not None and not (isinstance(tools, list) and all(_is_tool(tool) for tool in tools)):
        raise malformed("list_type", "body.tools", "Input should be a valid list of functions")
    if choice in (None, "none", "auto"):
        return None
    if not tools:
        raise impossible("When using `tool_choice`, `tools` must be set.", "tool_choice", choice)
    functions = {tool["function"]["name"]: tool["function"] for tool in tools}
    if choice == "required":
        name = min(functions, key=lambda known: (known not in json.dumps(body["messages"]), known))
        return _call_guide(functions[name], "tool_calls")
    name = choice["function"]["name"] if isinstance(choice, dict) else ""
    if name not in functions:
        raise impossible("The tool specified in `tool_choice` does not match any of the `tools`", "tool_choice", name)
    return _call_guide(functions[name], "stop")


def _is_tool(tool: Any) -> bool:
    function = tool.get("function") if isinstance(tool, dict) else None
    return isinstance(function, dict) and isinstance(function.get("name"), str)


def _call_guide(function: Mapping[str, Any], finish_reason: str) -> Guide:
    schema = function.get("parameters") or {"type": "object"}
    return Guide(lambda dice: json_text(fitting(schema, dice)), function["name"], finish_reason)

"""Faults of machine-read answers: structure ignored or wrapped, tool calls lost, broken or left in the text."""

from __future__ import annotations

import json
from typing import Any

from pytest_vllm_stage.standins.engine.faults import Event, Fault, fault
from pytest_vllm_stage.standins.engine.generation import Generated
from pytest_vllm_stage.standins.engine.guided import guide_of
from pytest_vllm_stage.standins.engine.parameters import Parameters
from pytest_vllm_stage.standins.engine.refusal import Refusal


@fault("ignored_structure")
class IgnoredStructure(Fault):
    """Schema, expression and choice are dropped: the answer is free text."""

    def on_parameters(self, parameters: Parameters) -> None:
        if parameters.guide is not None and parameters.guide.tool is None:
            parameters.guide = None


@fault("structure_in_a_fence")
class StructureInAFence(Fault):
    """A guided answer is wrapped in a Markdown fence."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if parameters.guide is not None and not generated.calls:
            generated.texts[0] = "```\n" + generated.texts[0]
            generated.texts[-1] += "\n```"


@fault("bad_structures_accepted")
class BadStructuresAccepted(Fault):
    """An invalid expression or schema is dropped, and the answer is free text."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        try:
            guide_of(body)
        except Refusal:
            body.pop("structured_outputs", None)
            body.pop("response_format", None)


@fault("tool_calls_as_text")
class ToolCallsAsText(Fault):
    """No tool parser reads the answer: the call stays in the text."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        generated.calls = []


@fault("wrong_tool")
class WrongTool(Fault):
    """A call names a tool that does not exist."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if generated.calls:
            generated.calls = [f"{name}_v2" for name in generated.calls]


@fault("another_tool")
class AnotherTool(Fault):
    """The last tool is called, whichever was named."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        if isinstance(body.get("tool_choice"), dict) and body.get("tools"):
            body["tool_choice"] = {"type": "function", "function": {"name": body["tools"][0]["function"]["name"]}}


@fault("cut_tool_arguments")
class CutToolArguments(Fault):
    """The arguments of a call are truncated."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if generated.calls:
            generated.texts = ["" if text == "}" else text for text in generated.texts]


@fault("tool_arguments_in_a_string")
class ToolArgumentsInAString(Fault):
    """The arguments are encoded twice."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if generated.calls:
            generated.texts = [json.dumps("".join(generated.texts)), *("" for _ in generated.texts[1:])]


@fault("tool_arguments_ignore_schema")
class ToolArgumentsIgnoreSchema(Fault):
    """The arguments are JSON, and do not fit the tool's schema."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if generated.calls:
            generated.texts = ['{"anything": 1}', *("" for _ in generated.texts[1:])]


@fault("lost_tool_piece")
class LostToolPiece(Fault):
    """A relay loses a piece of a streamed call."""

    def on_stream(self, events: list[Event]) -> None:
        places = [place for place, event in enumerate(events) if _call_of(event)]
        if len(places) > 3:
            del events[places[2]]


@fault("tool_call_without_id")
class ToolCallWithoutId(Fault):
    """Calls have no id, so no result can be sent back."""

    def on_answer(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            for call in choice.get("message", {}).get("tool_calls", []):
                call["id"] = None

    def on_stream(self, events: list[Event]) -> None:
        for event in events:
            for call in _call_of(event):
                call.pop("id", None)


@fault("tool_call_says_stop")
class ToolCallSaysStop(Fault):
    """After a call the finish reason is ``stop``: an agent considers the turn finished."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if generated.calls:
            generated.finish_reason = "stop"


@fault("forbidden_tool_call")
class ForbiddenToolCall(Fault):
    """A tool is called although ``tool_choice`` is none."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        if body.get("tools") and body.get("tool_choice") == "none":
            body["tool_choice"] = "required"


@fault("dropped_tool_results")
class DroppedToolResults(Fault):
    """A gateway drops tool messages."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        if isinstance(body.get("messages"), list):
            body["messages"] = [one for one in body["messages"] if one.get("role") != "tool"]


def _call_of(event: Event) -> list[dict[str, Any]]:
    choices = event.data["choices"] if isinstance(event.data, dict) else []
    return [call for choice in choices for call in choice.get("delta", {}).get("tool_calls") or []]


@fault("tool_parser_fails")
class ToolParserFails(Fault):
    """The tool parser raises on a call of the model's own choice, and the server answers 500."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if generated.calls and generated.finish_reason == "tool_calls":
            raise Refusal(500, "tool parser: list index out of range", "InternalServerError", None)

"""Tool calls of an answer, whole or put together from a stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.serving.answers import Answer, StreamedAnswer


@dataclass(frozen=True)
class Call:
    """A tool call as the server sent it; the arguments are the text that should be JSON."""

    id: str
    name: str
    arguments: str


def calls_of(answer: Answer) -> list[Call]:
    """The calls of a whole answer's first choice."""
    calls = answer.choice["message"].get("tool_calls") or []
    return [Call(str(call.get("id") or ""), *_function(call)) for call in calls]


def streamed_calls(answer: StreamedAnswer) -> list[Call]:
    """The calls of a stream's first choice: pieces of one index make one call."""
    parts: dict[int, list[str]] = {}
    for chunk in answer.chunks:
        for choice in chunk["choices"]:
            for piece in choice["delta"].get("tool_calls") or []:
                call = parts.setdefault(piece["index"], ["", "", ""])
                for place, text in enumerate((piece.get("id") or "", *_function(piece))):
                    call[place] += str(text)
    return [Call(*parts[index]) for index in sorted(parts)]


def _function(call: dict[str, Any]) -> tuple[str, str]:
    function = call.get("function") or {}
    return function.get("name") or "", function.get("arguments") or ""

"""Tool calls of an answer, whole or put together from a stream."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.serving.answers import StreamedAnswer


@dataclass(frozen=True)
class ToolCall:
    """A tool call as the server sent it; the arguments are the text that should be JSON."""

    id: str
    name: str
    arguments: str
    type: str = "function"


def read_calls(choice: Mapping[str, Any]) -> list[ToolCall]:
    """The calls of a whole answer's choice."""
    calls = (choice.get("message") or {}).get("tool_calls") or []
    return [ToolCall(str(call.get("id") or ""), *_function(call), str(call.get("type"))) for call in calls]


def is_cut(body: Mapping[str, Any], finish_reason: str | None, max_tokens: int) -> bool:
    """Whether ``max_tokens`` ended an answer, by its finish reason or its count of tokens.

    vLLM says ``tool_calls`` of a streamed call that ``max_tokens`` cut: https://github.com/vllm-project/vllm/issues/53269

    Args:
        body: A whole answer, or the chunk of a stream that carries the usage.
        finish_reason: What the server says.
        max_tokens: The request's.
    """
    tokens = (body.get("usage") or {}).get("completion_tokens")
    return finish_reason == "length" or (isinstance(tokens, int) and tokens >= max_tokens)


def find_finish_reason(streamed: StreamedAnswer) -> str:
    """The last finish reason of a stream, which fails without one: no content of such a stream means anything."""
    if not streamed.finish_reasons:
        raise AssertionError(
            f"the stream ended with status 200, {len(streamed.chunks)} chunks and no finish reason: the engine gave "
            "up, and its log has the reason"
        )
    return streamed.finish_reasons[-1]


def read_streamed_calls(chunks: Iterable[Mapping[str, Any]], choice_index: int = 0) -> list[ToolCall]:
    """The calls of one choice of a stream: pieces of one index make one call."""
    parts: dict[int, list[str]] = {}
    for chunk in chunks:
        for choice in chunk.get("choices") or []:
            if choice.get("index", 0) != choice_index:
                continue
            for piece in choice.get("delta", {}).get("tool_calls") or []:
                if not isinstance(piece.get("index"), int):
                    raise AssertionError(
                        f"a streamed tool call has no index, by which clients join its pieces: {piece}"
                    )
                call = parts.setdefault(piece["index"], ["", "", ""])
                if call[0] and piece.get("id"):
                    raise AssertionError(
                        f"a streamed tool call has an id again, {call[0]} and then {piece['id']}: clients join the "
                        "pieces, and take the second id for a part of the first"
                    )
                for place, text in enumerate((piece.get("id") or "", *_function(piece))):
                    call[place] += str(text)
    return [ToolCall(*parts[index]) for index in sorted(parts)]


def _function(call: Mapping[str, Any]) -> tuple[str, str]:
    function = call.get("function") or {}
    return function.get("name") or "", function.get("arguments") or ""

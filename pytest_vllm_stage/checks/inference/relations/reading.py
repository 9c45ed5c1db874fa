"""What is compared of an answer, whole or put together from a stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_stage.checks.inference.tools import ToolCall, read_calls, read_streamed_calls
from pytest_vllm_stage.serving.answers import read_text
from pytest_vllm_stage.serving.failures import RequestFailed

#: One text has tokens of another number where a grammar leaves the split into tokens and the white space of JSON free;
#: more than this factor apart, the count is wrong.
FREE_TOKENS_FACTOR = 2.0
#: Scores of one text move by so much with the batch that a request runs in.
SCORE_TOLERANCE_NATS = 0.3


@dataclass
class ReadChoice:
    """One choice of an answer.

    Attributes:
        text: Its text.
        calls: Its tool calls.
        finish_reason: Why it ended.
        tokens: The tokens that have logprobs.
        scores: Their logprobs.
    """

    text: str = ""
    calls: Sequence[ToolCall] = ()
    finish_reason: str | None = None
    tokens: list[str] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)


@dataclass
class Reading:
    """An answer.

    Attributes:
        choices: Its choices, in the order of their indexes.
        usage: Its token counts by name.
    """

    choices: list[ReadChoice]
    usage: dict[str, Any]


def read_answer(body: dict[str, Any]) -> Reading:
    """Read a whole answer."""
    choices = []
    for choice in sorted(body.get("choices") or [], key=lambda one: one["index"]):
        message = choice.get("message") or {"content": choice.get("text")}
        tokens, scores = _scores(choice.get("logprobs"))
        text = read_text(message) or ""
        choices.append(ReadChoice(text, read_calls(choice), choice.get("finish_reason"), tokens, scores))
    return Reading(choices, _counts(body.get("usage")))


def read_chunks(chunks: Sequence[dict[str, Any]]) -> Reading:
    """Put the chunks of a stream together.

    Raises:
        RequestFailed: the pieces of its tool calls do not fit together.
    """
    choices: dict[int, ReadChoice] = {}
    for chunk in chunks:
        for piece in chunk.get("choices") or []:
            choice = choices.setdefault(piece["index"], ReadChoice())
            choice.text += (read_text(piece["delta"]) if "delta" in piece else piece.get("text")) or ""
            choice.finish_reason = piece.get("finish_reason") or choice.finish_reason
            tokens, scores = _scores(piece.get("logprobs"))
            choice.tokens += tokens
            choice.scores += scores
    for index, choice in choices.items():
        try:
            choice.calls = read_streamed_calls(chunks, index)
        except AssertionError as error:
            raise RequestFailed(str(error)) from None
    usage = next((chunk["usage"] for chunk in reversed(chunks) if chunk.get("usage")), None)
    return Reading([choices[index] for index in sorted(choices)], _counts(usage))


def _scores(logprobs: Any) -> tuple[list[str], list[float]]:
    if not logprobs:
        return [], []
    if "content" in logprobs:
        entries = logprobs["content"] or []
        return [entry["token"] for entry in entries], [entry["logprob"] for entry in entries]
    return list(logprobs["tokens"]), [score or 0.0 for score in logprobs["token_logprobs"]]


def _counts(usage: Any) -> dict[str, Any]:
    names = ("prompt_tokens", "completion_tokens", "total_tokens")
    return {name: usage.get(name) for name in names} if isinstance(usage, dict) else {}


def find_difference(expected: Reading, got: Reading, what: str, *, free_tokens: bool = False) -> str:
    """The first thing in which an answer differs from the expected one, in words; empty where there is none.

    Args:
        expected: The answer to compare with.
        got: The answer.
        what: What gave it, as the subject of the sentence: ``the stream``.
        free_tokens: A grammar fixes the text and leaves its split into tokens to the model, where near ties decide; so
            the tokens are compared as text, without white space, and their number by its magnitude.
    """
    if len(expected.choices) != len(got.choices):
        return f"{what} has {len(got.choices)} choices, expected {len(expected.choices)}"
    for place, (one, other) in enumerate(zip(expected.choices, got.choices, strict=True)):
        problem = _choice_difference(one, other, what, free_tokens=free_tokens)
        if problem:
            return problem + (f" (choice {place})" if len(expected.choices) > 1 else "")
    if expected.usage != got.usage and not (free_tokens and _differs_by_free_tokens(expected.usage, got.usage)):
        return f"{what} counts {got.usage}, expected {expected.usage}"
    return ""


def _differs_by_free_tokens(expected: dict[str, Any], got: dict[str, Any]) -> bool:
    if not expected or not got or expected["prompt_tokens"] != got["prompt_tokens"]:
        return False
    counts = [int(expected["completion_tokens"]), int(got["completion_tokens"])]
    return bool(
        got["total_tokens"] == got["prompt_tokens"] + got["completion_tokens"]
        and min(counts) > 0
        and max(counts) <= FREE_TOKENS_FACTOR * min(counts)
    )


def _choice_difference(expected: ReadChoice, got: ReadChoice, what: str, *, free_tokens: bool) -> str:
    calls = [[(call.name, call.arguments) for call in one.calls] for one in (expected, got)]
    if calls[0] != calls[1]:
        return f"{what} has the tool calls {calls[1]}, expected {calls[0]}"
    ids = [call.id for call in got.calls]
    if not all(ids) or len(set(ids)) < len(ids):
        return f"{what} has tool calls with the ids {ids}, expected one of its own for each"
    if expected.text != got.text:
        return f"{what} {describe_change(expected.text, got.text)}"
    if expected.finish_reason != got.finish_reason:
        return f"{what} ends with finish_reason {got.finish_reason!r}, expected {expected.finish_reason!r}"
    if expected.tokens != got.tokens:
        return _tokens_difference(expected.tokens, got.tokens, what, free_tokens=free_tokens)
    moved = max((abs(a - b) for a, b in zip(expected.scores, got.scores, strict=True)), default=0.0)
    return f"{what} has logprobs that differ by {moved:.2f}" if moved > SCORE_TOLERANCE_NATS else ""


def _tokens_difference(expected: Sequence[str], got: Sequence[str], what: str, *, free_tokens: bool) -> str:
    texts = ["".join(tokens) for tokens in (expected, got)]
    if free_tokens and "".join(texts[0].split()) == "".join(texts[1].split()):
        return ""
    if texts[0] == texts[1]:
        return f"{what} has logprobs of the tokens {list(got)}, expected {list(expected)}"
    return f"{what} has logprobs of {len(got)} tokens, {texts[1]!r}, expected {len(expected)}, {texts[0]!r}"


def describe_change(expected: str, got: str) -> str:
    """What became of a text, as a verb with its object: ``lost ', 5'``."""
    start = next(
        (at for at, (a, b) in enumerate(zip(expected, got, strict=False)) if a != b), min(len(expected), len(got))
    )
    rest, got_rest = expected[start:], got[start:]
    end = 0
    while end < min(len(rest), len(got_rest)) and rest[-1 - end] == got_rest[-1 - end]:
        end += 1
    lost, added = rest[: len(rest) - end], got_rest[: len(got_rest) - end]
    where = f" after {expected[max(start - 20, 0) : start]!r}" if start else ""
    if not added:
        return f"lost {lost!r}{where}"
    return f"added {added!r}{where}" if not lost else f"says {added!r} instead of {lost!r}{where}"

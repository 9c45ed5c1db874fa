"""What the relations are checked for: features of a request by factor, and the requests that their rows stand for.

Every answer is certain, so that two ways of asking can be compared to the letter: a counted or repeated pattern, or a
grammar with a single text. Values that exclude each other do so for the reason that `exclusion` gives.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.checks.inference.patterns import pattern
from pytest_vllm_stage.checks.inference.relations.covering import Choice, Row, cover_pairs
from pytest_vllm_stage.checks.inference.relations.ways import WAYS
from pytest_vllm_stage.serving.client import CHAT, COMPLETIONS

FACTORS: dict[str, tuple[str, ...]] = {
    "api": ("chat", "completions"),
    "answer": (
        "text",
        "choice",
        "regex",
        "json schema",
        "named tool",
        "required tool",
        "several tool calls",
        "no tool call",
    ),
    "end": ("token limit", "stop text", "absent stop text", "min tokens", "ignored end"),
    "extra": ("nothing", "logprobs", "n", "seed", "penalties", "bias", "echo"),
    "prompt": ("short", "long", "system", "turns"),
    "way": tuple(WAYS),
}
#: Answers that are calls of tools.
CALLED = ("named tool", "required tool", "several tool calls")
TOOLS = (*CALLED, "no tool call")
GUIDED = ("choice", "regex", "json schema", *CALLED)
#: Answers in which the white space of JSON is free: a grammar leaves it to the model, or a tool parser writes its own.
FREE_SPACE = ("json schema", *CALLED)
#: Values that no message names, as they add nothing to a plain request.
NEUTRAL = ("text", "token limit", "nothing", "short")

#: Lines of a long prompt, which takes several blocks of the prefix cache.
LONG = 40
COUNT = "Write the numbers from 1 to 100, separated by commas."
LABEL = "amber, black"
TOOL_SCHEMA = {
    "type": "object",
    "properties": {"z": {"type": "string", "enum": ["A"]}},
    "required": ["z"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "now", "strict": True, "parameters": TOOL_SCHEMA}}
CALLS = [{"name": "now", "arguments": {"z": "A"}}, {"name": "now", "arguments": {"z": "B"}}]

#: (value, other value) to the reason why a request cannot have both.
_EXCLUDED: dict[tuple[str, str], str] = {
    **{("completions", tool): "tools are a feature of chats" for tool in TOOLS},
    ("completions", "system"): "roles are a feature of chats",
    ("completions", "turns"): "roles are a feature of chats",
    ("chat", "echo"): "echo is a feature of completions",
    **{
        (answer, end): "the grammar says where the answer ends"
        for answer in GUIDED
        for end in ("min tokens", "ignored end")
    },
    **{(tool, "stop text"): "a call cut by a stop text is not promised to be parsed" for tool in TOOLS},
    **{(answer, "seed"): "one text is left to draw" for answer in GUIDED},
    **{(answer, "echo"): "echo is of completions without a grammar" for answer in FACTORS["answer"][1:]},
    ("system", "echo"): "echo is a feature of completions",
    ("turns", "echo"): "echo is a feature of completions",
    ("stop text", "echo"): "the stop text is taken from the answer alone",
}


def exclusion(one: Choice, other: Choice) -> str:
    """Why two choices cannot stand in one request; empty where they can."""
    return _EXCLUDED.get((one[1], other[1]), "") or _EXCLUDED.get((other[1], one[1]), "")


@dataclass(frozen=True)
class Case:
    """One row of the matrix.

    Attributes:
        place: Its place in the matrix, which gives completions a prompt of their own.
        row: The value of each factor.
    """

    place: int
    row: Row

    @property
    def id(self) -> str:
        """The row as a test's id."""
        return "-".join(value.replace(" ", "_") for value in self.row.values())

    @property
    def features(self) -> str:
        """The features in words, without the neutral ones."""
        values = [self.row[factor] for factor in ("answer", "end", "extra", "prompt")]
        return " x ".join(value for value in values if value not in NEUTRAL) or "plain text"

    @property
    def path(self) -> str:
        """The API's path."""
        return CHAT if self.row["api"] == "chat" else COMPLETIONS

    @property
    def needs(self) -> list[str]:
        """The capabilities that the request needs."""
        needed = {
            "chat": self.row["api"] == "chat",
            "structured_outputs": self.row["answer"] in (*GUIDED[:3], "several tool calls"),
            "tools": self.row["answer"] in TOOLS,
            "auto_tools": self.row["answer"] == "several tool calls",
            "logprobs": self.row["extra"] == "logprobs",
        }
        return [capability for capability, is_needed in needed.items() if is_needed]

    def without(self, factor: str) -> Case:
        """The same request without the feature of a factor."""
        return Case(self.place, self.row | {factor: FACTORS[factor][0]})

    def body(self, model: str) -> dict[str, Any]:
        """The request's body, without its way and its stop text."""
        chat = self.row["api"] == "chat"
        prompt = {"messages": _messages(self.row["prompt"])} if chat else {"prompt": self._completion_prompt()}
        body = {"model": model, "temperature": 0, "max_tokens": 8, **prompt}
        return body | _answer(self.row["answer"]) | _end(self.row["end"]) | self._extra()

    def _completion_prompt(self) -> str:
        return pattern(100 + self.place).prompt(LONG if self.row["prompt"] == "long" else 3)

    def _extra(self) -> dict[str, Any]:
        logprobs = {"logprobs": True, "top_logprobs": 2} if self.row["api"] == "chat" else {"logprobs": 2}
        extras: dict[str, dict[str, Any]] = {
            "logprobs": logprobs,
            # vLLM refuses several answers at temperature 0.
            "n": {"n": 2, "temperature": 1.0, "top_k": 1},
            "seed": {"temperature": 0.1, "seed": 7},
            # Larger ones make near ties of the commas.
            "penalties": {"frequency_penalty": 0.02, "presence_penalty": 0.02},
            "echo": {"echo": True},
        }
        return extras.get(self.row["extra"], {})


def _messages(prompt: str) -> list[dict[str, str]]:
    question = {"role": "user", "content": COUNT}
    if prompt == "long":
        return [{"role": "user", "content": pattern(99).lines(LONG) + COUNT}]
    if prompt == "system":
        return [{"role": "system", "content": "You count correctly."}, question]
    if prompt == "turns":
        return [
            question,
            {"role": "assistant", "content": "1, 2, 3, 4, 5, 6, 7, 8"},
            {"role": "user", "content": COUNT},
        ]
    return [question]


def _hermes(calls: list[dict[str, Any]]) -> dict[str, Any]:
    text = "\n".join(f"<tool_call>\n{json.dumps(call)}\n</tool_call>" for call in calls)
    return {
        "tools": [_loose_tool()],
        "tool_choice": "auto",
        "structured_outputs": {"choice": [text]},
        "max_tokens": 120,
    }


def _loose_tool() -> dict[str, Any]:
    """The tool without strict arguments, which would be another grammar."""
    return {"type": "function", "function": {**TOOL["function"], "strict": False}}  # type: ignore[dict-item]


def _answer(answer: str) -> dict[str, Any]:
    named = {"type": "function", "function": {"name": "now"}}
    schema = {"type": "object", "properties": {"z": {"const": "A"}}, "required": ["z"]}
    wanted = {
        "type": "json_schema",
        "json_schema": {"name": "z", "schema": schema | {"additionalProperties": False}},
    }
    answers: dict[str, dict[str, Any]] = {
        "choice": {"structured_outputs": {"choice": [LABEL]}, "max_tokens": 40},
        "regex": {"structured_outputs": {"regex": "(amber, ){2}black"}, "max_tokens": 40},
        "json schema": {"response_format": wanted, "max_tokens": 60},
        "named tool": {"tools": [TOOL], "tool_choice": named, "max_tokens": 60},
        "required tool": {"tools": [TOOL], "tool_choice": "required", "max_tokens": 80},
        "several tool calls": _hermes(CALLS),
        "no tool call": {"tools": [TOOL], "tool_choice": "none"},
    }
    return answers.get(answer, {})


def _end(end: str) -> dict[str, Any]:
    ends: dict[str, dict[str, Any]] = {
        "absent stop text": {"stop": ["@@@@@@", "no answer has this"]},
        "min tokens": {"min_tokens": 4},
        "ignored end": {"ignore_eos": True},
    }
    return ends.get(end, {})


MATRIX = [Case(place, row) for place, row in enumerate(cover_pairs(FACTORS, exclusion))]

"""The defects of an endpoint that the suite must catch: each with the checks that must fail, and the symptom they name.

A defect is a fault of the simulated engine, by its name or as an object of a fault script. No check may fail beyond
those in ``by`` and ``also``: what a defect does not touch stays green. ``also`` is for defects that change what is
drawn, where a check can come out right by chance.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass
from typing import Any

from tests.defects.checks import (
    ANY_REQUEST,
    ANY_TEXT,
    ARRIVES,
    BAD_FIELD,
    BAD_JSON,
    BAD_STRUCTURE,
    CHARACTERS,
    CHOICE,
    CREATED,
    DONE,
    ENGINES_TOKENS,
    EXPRESSION,
    GROWING,
    N_STREAMED,
    ONE_PIECE,
    OVER_LONG,
    PROMPT_CHAT,
    PROMPT_COMPLETION,
    RECOVERS,
    RENDERED,
    SAYS_LENGTH,
    SCHEMA,
    STOP,
    STOP_ACROSS,
    STREAM_EQUAL,
    STREAM_EQUAL_COMPLETION,
    STREAM_USAGE,
    UNKNOWN_MODEL,
)  # fmt: skip


@dataclass(frozen=True)
class Defect:
    """One defect.

    Attributes:
        fault: The fault's name, or an object of a fault script.
        by: Every check that must fail.
        says: What the output must say: the symptom in words.
        also: Checks that may fail as well.
    """

    fault: Any
    by: Set[str]
    says: str
    also: Set[str] = frozenset()

    @property
    def name(self) -> str:
        """The fault's name, with its parameters where it has some."""
        if isinstance(self.fault, str):
            return self.fault
        return " ".join(
            [self.fault["fault"], *(f"{key}={value}" for key, value in self.fault.items() if key != "fault")]
        )


STREAMED_TEXT = {STREAM_EQUAL, STREAM_EQUAL_COMPLETION, STOP, STOP_ACROSS, CHARACTERS}
EVERY_STREAM = {*STREAMED_TEXT, SAYS_LENGTH, ARRIVES, DONE, ONE_PIECE, STREAM_USAGE, CREATED, N_STREAMED}
EVERY_REFUSAL = {UNKNOWN_MODEL, BAD_JSON, BAD_FIELD, BAD_STRUCTURE, OVER_LONG, RECOVERS}
PROMPTS = {PROMPT_CHAT, PROMPT_COMPLETION, ENGINES_TOKENS, RENDERED, GROWING, ANY_REQUEST, ANY_TEXT}
GUIDED = {SCHEMA, EXPRESSION, CHOICE, CHARACTERS}

DEFECTS: list[Defect] = []

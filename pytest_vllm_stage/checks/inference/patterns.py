"""Prompts whose greedy answer is certain for any language model: it goes on with a line that it has just seen thrice.

No knowledge and no obedience is asked for, only attention to the prompt; so a small model answers as surely as a large
one, alone or in any batch, and each pattern's answer shows which prompt it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass

_WORDS = ("kiwi", "lamp", "river", "stone", "cloud", "table", "horse", "paper", "glass", "train", "bread", "chair")


@dataclass(frozen=True)
class Pattern:
    """A word with its number."""

    word: str
    number: int

    @property
    def line(self) -> str:
        """What is repeated."""
        return f"{self.word} {self.number}"

    @property
    def answer(self) -> str:
        """How the text after the word goes on."""
        return f" {self.number}"

    def lines(self, times: int = 3) -> str:
        """The line, so many times."""
        return f"{self.line}\n" * times

    def prompt(self, times: int = 3) -> str:
        """A prompt for plain completion, ending with the word whose number should follow."""
        return self.lines(times) + self.word


def pattern(place: int) -> Pattern:
    """The pattern of a place; each of the first 9000 has a number of its own."""
    return Pattern(_WORDS[place % len(_WORDS)], 1000 + (place * 2741 + 2201) % 9000)

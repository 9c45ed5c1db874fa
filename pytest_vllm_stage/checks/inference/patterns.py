"""Prompts with a certain greedy answer for any language model: it continues a line that it has just seen three times.

Neither knowledge nor instruction following is needed, only attention to the prompt: a small model answers as surely
as a large one, alone or in any batch, and each pattern's answer shows which prompt it belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass

_WORDS = ("kiwi", "lamp", "river", "stone", "cloud", "table", "horse", "paper", "glass", "train", "bread", "chair")


@dataclass(frozen=True)
class Pattern:
    """A word and its number."""

    word: str
    number: int

    @property
    def line(self) -> str:
        """What is repeated."""
        return f"{self.word} {self.number}"

    @property
    def answer(self) -> str:
        """The expected continuation after the word."""
        return f" {self.number}"

    def lines(self, times: int = 3) -> str:
        return f"{self.line}\n" * times

    def prompt(self, times: int = 3) -> str:
        """A prompt for plain completion, ending with the word that its number should follow."""
        return self.lines(times) + self.word


def pattern(place: int) -> Pattern:
    """The pattern at an index; each of the first 9000 has its own number."""
    return Pattern(_WORDS[place % len(_WORDS)], 1000 + (place * 2741 + 2201) % 9000)

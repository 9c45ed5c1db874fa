"""SQL's LIKE as PostgreSQL has it: ``%`` any text, ``_`` any character, a backslash takes what follows literally."""

from __future__ import annotations

from functools import lru_cache
from typing import Final

#: Any text, any one character; everything else in a pattern is a character.
ANY_TEXT: Final = 1
ANY_CHARACTER: Final = 2

Token = str | int


@lru_cache(maxsize=1024)
def tokens_of(pattern: str) -> tuple[Token, ...] | None:
    """The pattern's parts; None where it ends in the middle of an escape, which matches nothing."""
    tokens: list[Token] = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            escaped = next(characters, None)
            if escaped is None:
                return None
            tokens.append(escaped)
        else:
            tokens.append({"%": ANY_TEXT, "_": ANY_CHARACTER}.get(character, character))
    return tuple(tokens)


def like(pattern: str, text: str) -> bool:
    """Whether the whole text fits the pattern, case included.

    On a mismatch only the last ``%`` takes one character more: an earlier one cannot help any further.
    """
    tokens = tokens_of(pattern)
    if tokens is None:
        return False
    at = place = 0
    star, resume = -1, 0
    while at < len(text):
        token = tokens[place] if place < len(tokens) else None
        if token == ANY_TEXT:
            star, resume = place, at
            place += 1
        elif token == ANY_CHARACTER or token == text[at]:
            at += 1
            place += 1
        elif star >= 0:
            resume += 1
            at, place = resume, star + 1
        else:
            return False
    return all(token == ANY_TEXT for token in tokens[place:])

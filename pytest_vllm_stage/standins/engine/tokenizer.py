"""A tokenizer without a vocabulary: a token is a short piece of UTF-8, its id is the piece's bytes read as a number.

It is reversible for any text, needs no state, splits about as finely as a real one, and splits four-byte characters
as byte-level BPE does, so that clients receive tokens that are not a whole character.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

#: Up to five letters with the space before them, a digit, up to three bytes of other script, or any one byte.
_PIECE = re.compile(rb" ?[A-Za-z]{1,5}|[0-9]|[\x80-\xff]{1,3}|[\x00-\xff]", re.DOTALL)

START = b"<|im_start|>"
END = b"<|im_end|>"
#: Pieces are at most six bytes long, so that no text can produce these longer ones.
_SPECIAL_IDS = {START: 1, END: 2}
_SPECIAL_PIECES = {number: piece for piece, number in _SPECIAL_IDS.items()}
#: The id of a piece is below this: a one, and at most six bytes.
MAX_ID = 2 << 48


class UnknownToken(ValueError):
    """A number that is not a token id."""


def split(text: str) -> list[bytes]:
    """The pieces of a text; joined they are its UTF-8."""
    return _PIECE.findall(text.encode("utf-8", "surrogatepass"))


def token_id(piece: bytes) -> int:
    """The id of a piece."""
    return _SPECIAL_IDS.get(piece) or int.from_bytes(b"\x01" + piece)


def piece_of(number: int) -> bytes:
    """The piece of an id.

    Raises:
        UnknownToken: the number is not a token id.
    """
    special = _SPECIAL_PIECES.get(number)
    if special is not None:
        return special
    digits = number.to_bytes(7) if 0 < number < MAX_ID else b""
    marked = digits.lstrip(b"\0")
    if len(marked) < 2 or marked[0] != 1:
        raise UnknownToken(f"{number} is not a token id")
    return marked[1:]


def encode(text: str) -> list[int]:
    """The token ids of a text."""
    return [token_id(piece) for piece in split(text)]


def decode(numbers: Iterable[int]) -> str:
    """The text of token ids; what is not UTF-8 becomes U+FFFD.

    Raises:
        UnknownToken: a number is not a token id.
    """
    return b"".join(piece_of(number) for number in numbers).decode(errors="replace")


def render(messages: Sequence[Mapping[str, Any]], *, asks: bool = True, goes_on: bool = False) -> list[bytes]:
    """The pieces of a conversation in ChatML.

    Args:
        messages: The conversation.
        asks: End with the start of the assistant's next turn.
        goes_on: Leave the last message open, so that the assistant continues it.
    """
    pieces: list[bytes] = []
    for message in messages:
        pieces += [START, *split(f"{message['role']}\n{content_of(message)}"), END, b"\n"]
    if goes_on:
        return pieces[:-2]
    return [*pieces, START, *split("assistant\n")] if asks else pieces


def content_of(message: Mapping[str, Any]) -> str:
    """A message's text, given as a string or in parts."""
    content = message.get("content")
    if isinstance(content, list):
        return "".join(part.get("text", "") for part in content)
    return content or ""

"""Whether the tokens of log probabilities spell a text."""

from __future__ import annotations

import re
from collections.abc import Sequence

#: What stands for the bytes of a token that ends inside a character.
_REPLACEMENT = "\ufffd"


def spells(tokens: Sequence[str], text: str) -> bool:
    """Whether the tokens are the text's, one after the other; tokens after its end, as a special one, do not count.

    vLLM decodes each token alone. That loses the space before a word of a SentencePiece tokenizer, until
    https://github.com/vllm-project/vllm/pull/48674, and shows a part of a character as U+FFFD.
    """
    patterns = [_match_alone(token) for token in tokens]
    return any(re.fullmatch("".join(patterns[:end]), text, re.DOTALL) for end in range(len(patterns), -1, -1))


def _match_alone(token: str) -> str:
    return " ?" + re.escape(token).replace(_REPLACEMENT, ".?")

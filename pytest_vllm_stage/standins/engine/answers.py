"""What the simulated engine says: a few facts, and otherwise words that follow from the prompt and the seed alone."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, count, repeat
from zlib import crc32

from pytest_vllm_stage.standins.engine.tokenizer import END, split

CAPITALS = {
    "France": "Paris",
    "Italy": "Rome",
    "Japan": "Tokyo",
    "Spain": "Madrid",
    "Germany": "Berlin",
    "Egypt": "Cairo",
    "Norway": "Oslo",
    "Portugal": "Lisbon",
}
_ASKED = re.compile(rf"capital of ({'|'.join(CAPITALS)})\b")
_BEGUN = re.compile(rf"capital of ({'|'.join(CAPITALS)}) is\s*$")

#: Each with its space is one token.
WORDS = tuple(
    b" " + word
    for word in (
        b"amber apple april arch ash atlas aunt badge baker basin bay beam bell birch bird blue board boat book brass "
        b"bread brick brook brush cabin calm camel canal candy cape cedar chalk chart chess cider clay cliff cloud "
        b"coal coast cobra comet coral crane creek crow crown dawn deer delta desk dish dove draft dune eagle earth "
        b"east echo elbow elm ember field fig finch fire flame flax fleet flint flute fog ford fox frost gale gate "
        b"glass globe goat gold grain grape grass green grove gulf hall harp hawk hazel heath hedge heron hill holly "
        b"honey horn house ice inlet iris iron isle ivory ivy jade jar joy june juno kelp kite knot lake lamp larch "
        b"lark leaf lemon light lily lime linen lion loaf loom lotus lyre maple march marsh mast may mill mint mist "
        b"moon moss moth mule nest night noon north oak oasis oat ocean olive onyx opal orbit otter owl palm paper "
        b"path peach pearl pear pine plain plum pond poppy port quail quay queen rain raven reed reef ridge river road "
        b"robin rock rope rose rowan ruby sage sail salt sand sea seal shell ship silk sky slate snow south"
    ).split()
)
_EMOJI = split("🙂")
_MASK = (1 << 64) - 1
#: Words of an answer that ends by itself: at least so many, and at most as many more.
LEAST_WORDS = 24
MORE_WORDS = 40


def key_of(prompt: Sequence[bytes], seed: int, salt: int = 0) -> int:
    """What an answer follows from: the same prompt, seed and salt give the same key in every process."""
    text = b"".join(prompt)
    return (crc32(text) << 32 | crc32(text[::-1])) ^ (seed * 0x9E3779B97F4A7C15 + salt * 0xD1B54A32D192ED03) & _MASK


def answer_to(question: str, key: int) -> Iterator[bytes]:
    """The pieces of an answer to a chat, which then ends by itself."""
    asked = _ASKED.search(question)
    if asked:
        return iter(split(f"The capital of {asked[1]} is {CAPITALS[asked[1]]}."))
    return words(key, range(LEAST_WORDS + key % MORE_WORDS), plain=question.isascii())


def continuation_of(prompt: str, key: int) -> Iterator[bytes]:
    """The pieces of a plain completion, which then ends by itself."""
    begun = _BEGUN.search(prompt)
    if begun:
        return iter(split(f" {CAPITALS[begun[1]]}."))
    return words(key, range(LEAST_WORDS + key % MORE_WORDS), plain=prompt.isascii())


def copied(prompt: str) -> Iterator[bytes] | None:
    """The rest of the latest earlier line that begins as the prompt's last line does, again and again.

    Any language model goes on with a pattern that it has just seen; None where there is none.
    """
    *earlier, begun = prompt.replace(END.decode(), "\n").split("\n")
    line = next((line for line in reversed(earlier) if line.startswith(begun) and line != begun), None)
    if not begun or line is None:
        return None
    again = split(f"{line}\n")
    return chain(split(f"{line.removeprefix(begun)}\n"), chain.from_iterable(repeat(again)))


def more_words(key: int, *, plain: bool) -> Iterator[bytes]:
    """Words without end, for an answer that may not end by itself."""
    return words(key, count(LEAST_WORDS + MORE_WORDS), plain=plain)


def words(key: int, places: Iterable[int], *, plain: bool) -> Iterator[bytes]:
    """Words that each follow from the key and the place; with characters of several tokens among them unless plain."""
    for place in places:
        mixed = (key ^ place * 0xBF58476D1CE4E5B9) * 0x94D049BB133111EB & _MASK
        mixed ^= mixed >> 29
        if not plain and mixed % 5 == 0:
            yield from _EMOJI
        else:
            yield WORDS[mixed % len(WORDS)]

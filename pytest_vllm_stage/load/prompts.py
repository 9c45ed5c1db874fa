"""Prompts of an exact number of tokens, as the server's own tokenizer counts them, all different.

A prompt is ``Text:`` and words. Only words are used that the tokenizer turns into exactly one token each when they
follow one another, which is determined by requests to it; a prompt's length is then known without a request. The
answers' usage confirms it for every request.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError, StageFailure
from pytest_vllm_stage.load.words import WORDS
from pytest_vllm_stage.measurement.step import LoadStep

#: Tokens of a text, or of a conversation with this text as the user's message, as the step's API makes a prompt of it.
Count = Callable[[str], int]

_START = "Text:"
#: With fewer usable words two prompts could be equal too easily.
LEAST_WORDS = 32
#: A prompt needs this many words of its own to be unlike every other.
LEAST_OWN_TOKENS = 8
#: This many prompts of each length are counted by the server before they are sent, and one of each use afterwards.
CHECKED = 16
#: Prompts that are counted at the same time: a tokenizer's answer is mostly waiting.
_AT_ONCE = 8

#: What the time of a lone answer depends on: API, prompt tokens, output tokens.
PaceKey = tuple[str, int, int]


def pace_key(step: LoadStep) -> PaceKey:
    """Steps with the same key have answers of the same pace."""
    return step.api, step.prompt_tokens, step.output_tokens


@dataclass(frozen=True)
class PromptMaker:
    """Makes prompts for one server.

    Attributes:
        overhead: Tokens of a prompt without any word: the chat template's, and the beginning.
        words: The words that are one token each.
        count: The server's tokenizer; it is asked from several threads.
        fastest_s: How long the fastest answer took, for each pace that is known.
        checked_lengths: Prompt lengths that the server has counted `CHECKED` prompts of.
        answered_at_s: When (``time.monotonic``) the server last answered a step of these lengths.
    """

    overhead: int
    words: tuple[str, ...]
    count: Count
    fastest_s: dict[PaceKey, float] = field(default_factory=dict, compare=False)
    checked_lengths: set[int] = field(default_factory=set, compare=False)
    answered_at_s: dict[PaceKey, float] = field(default_factory=dict, compare=False)

    def learn(self, step: LoadStep, answer_s: float) -> None:
        """Record how long an answer took, if none was faster."""
        key = pace_key(step)
        self.fastest_s[key] = min(answer_s, self.fastest_s.get(key, answer_s))

    def texts(self, step: LoadStep, count: int, purpose: str) -> list[str]:
        """Make different texts, each of exactly ``step.prompt_tokens`` tokens.

        Args:
            step: Gives their length, their shared prefix, and the seed.
            count: How many.
            purpose: Makes texts for different uses (``step``, ``warm-up``) differ with the same seed.

        Raises:
            ConfigError: the prompt is too short for the template and for being unique.
            StageFailure: the tokenizer counts one differently from what its words promise.
        """
        texts = list(self.unchecked_texts(step, count, purpose))
        self._check_all(self._to_check(texts, step.prompt_tokens), step.prompt_tokens)
        return texts

    def unchecked_texts(self, step: LoadStep, count: int, purpose: str) -> Iterator[str]:
        """The same texts as `texts`, one by one, without asking the server; fewer are the first of more.

        Raises:
            ConfigError: the prompt is too short for the template and for being unique.
        """
        length = step.prompt_tokens - self.overhead
        shared = max(0, step.shared_prefix_tokens - self.overhead)
        if length - shared < LEAST_OWN_TOKENS:
            raise ConfigError(
                f"step {step.id}: prompt_tokens: {step.prompt_tokens} is too short: the chat template takes "
                f"{self.overhead}, the shared prefix {shared}, and {LEAST_OWN_TOKENS} must be the prompt's own"
            )
        prefix = self._words(random.Random(f"{step.seed} shared"), shared)  # noqa: S311 - test data, no secret
        return self._unique(f"{step.seed} {purpose}", prefix, length - shared, count)

    def _to_check(self, texts: Sequence[str], length: int) -> Sequence[str]:
        if length in self.checked_lengths:
            return texts[-1:]
        return texts[:: max(1, len(texts) // CHECKED)]

    def _check_all(self, texts: Sequence[str], length: int) -> None:
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            for _ in pool.map(lambda text: self._check(text, length), texts):
                pass
        if len(texts) >= CHECKED:
            self.checked_lengths.add(length)

    def _words(self, dice: random.Random, count: int) -> list[str]:
        return dice.choices(self.words, k=count)

    def _unique(self, seed: str, prefix: Sequence[str], own: int, count: int) -> Iterator[str]:
        dice = random.Random(seed)  # noqa: S311 - test data, no secret
        begun: set[tuple[str, ...]] = set()
        while len(begun) < count:
            words = self._words(dice, own)
            beginning = tuple(words[:LEAST_OWN_TOKENS])
            if beginning not in begun:
                begun.add(beginning)
                yield " ".join([_START, *prefix, *words])

    def _check(self, text: str, expected: int) -> None:
        counted = self.count(text)
        if counted != expected:
            raise StageFailure(
                f"the server's tokenizer counts {counted} tokens in a prompt made of {expected}: {text[:60]!r} ...",
                hint="ask /tokenize the same text twice: a tokenizer whose counts change cannot be used",
            )


def make_prompt_maker(count: Count, words: Sequence[str] = WORDS) -> PromptMaker:
    """Determine the words that the server's tokenizer counts as one token.

    Raises:
        StageFailure: it has fewer than `LEAST_WORDS` words of one token.
    """
    overhead = count(_START)
    usable = tuple(_additive(count, overhead, tuple(dict.fromkeys(words))))
    if len(usable) < LEAST_WORDS:
        raise StageFailure(
            f"the server's tokenizer has {len(usable)} of {len(words)} common words as one token, "
            f"{LEAST_WORDS} are needed to make prompts of an exact length",
            hint="give make_prompt_maker words of the model's own language",
        )
    return PromptMaker(overhead, usable, count)


def _additive(count: Count, overhead: int, words: Sequence[str]) -> Iterator[str]:
    """The words that add one token each; a group is halved until it does or is one word that does not."""
    if not words:
        return
    if count(" ".join([_START, *words])) == overhead + len(words):
        yield from words
    elif len(words) > 1:
        middle = len(words) // 2
        yield from _additive(count, overhead, words[:middle])
        yield from _additive(count, overhead, words[middle:])


def make_body(step: LoadStep, text: str) -> bytes:
    """The request for one prompt: streamed, with usage, and an answer of exactly the step's length."""
    chat = {"messages": [{"role": "user", "content": text}]}
    prompt: dict[str, Any] = chat if step.api == "chat" else {"prompt": text}
    fields = {
        "model": step.model,
        **prompt,
        "max_tokens": step.output_tokens,
        "min_tokens": step.output_tokens,
        "ignore_eos": True,
        "temperature": 0.0,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    return json.dumps(fields, separators=(",", ":")).encode()

"""Recorded references of models (answers and scores), and how far a server deviates from them."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from pytest_vllm_stage.checks.inference.scores import Scores
from pytest_vllm_stage.core.files import read_text
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.load.guidellm.document import Node, parse_document

#: Neighbouring tokens are alike: a confidence interval resamples blocks of this many.
BLOCK_TOKENS = 16
RESAMPLES = 2000
#: Up to this deviation per token, a server computes as the recorded one did: same kernels, same rounding. A recording
#: may state a smaller one.
SAME_KERNELS_NATS = 0.02
#: Two-sided confidence of the intervals.
CONFIDENCE = 0.98
_HINT = "record one: python fixtures/prompts/record.py URL MODEL > NAME.json"


@dataclass(frozen=True)
class Reference:
    """One recording of a model; the file documents how it was made.

    A recording names others of the same model that were made with other kernels, each in a file of its own.

    Attributes:
        model: Served name of the recorded model.
        golden: Prompt to every answer given at temperature 0, over repeated runs alone and in batches.
        golden_tokens: ``max_tokens`` of those answers.
        least_agreement: Mean agreement with the golden answers below which it is not the same model.
        scores: Text name to its recorded scores.
        tolerance_nats: How far the mean log probability of a text may be from the recorded one.
        full: File of the reference of the full model that this one quantises; None if it is not quantised.
        most_gap_nats: Allowed mean loss per token against the full model, in nats.
        least_same_token: Minimum share of positions where both models rank the same token first.
        simulated: It was recorded from the simulated engine, for its own tests.
        engine_version: The engine that it was recorded from; empty where the file does not say.
        kernels: Which kernels computed it, for example ``cpu-avx512``; empty where the file does not say.
        other_kernels: Files of recordings of the same model that other kernels computed.
        same_kernels_nats: Deviation per token up to which a server computes as the recorded one did.
    """

    model: str
    golden: Mapping[str, Sequence[str]]
    golden_tokens: int
    least_agreement: float
    scores: Mapping[str, Scores]
    tolerance_nats: float
    full: Path | None = None
    most_gap_nats: float = 0.0
    least_same_token: float = 0.0
    simulated: bool = False
    engine_version: str = ""
    kernels: str = ""
    other_kernels: Sequence[Path] = ()
    same_kernels_nats: float = SAME_KERNELS_NATS

    @classmethod
    def read_recording(cls, path: Path, kernels: str) -> Reference:
        """Read the recording that was made with the kernels which compute the model.

        Args:
            path: A recording; it names the others.
            kernels: What the run knows of them; empty where it does not know them.

        Returns:
            The recording that states these kernels; that of ``path`` where none states them, or they are not known.

        Raises:
            ConfigError: a file is not a reference.
        """
        found = cls.read(path)
        if kernels in ("", found.kernels):
            return found
        return next((one for one in map(cls.read, found.other_kernels) if one.kernels == kernels), found)

    @classmethod
    def read(cls, path: Path) -> Reference:
        """Read one recording.

        Raises:
            ConfigError: the file is not a reference.
        """
        found = parse_document(read_text(path, "reference").encode(), f"reference {path}", _HINT)
        golden, scores = found.child("golden"), found.child("scores")
        full = found.child("quantisation_of") if found.value.get("quantisation_of") else None
        others = _filled(found.child("other_kernels")) if "other_kernels" in found.value else []
        return cls(
            _string(found.child("model")),
            {
                prompt: [_string(one) for one in _filled(answers)]
                for prompt, answers in _entries(golden.child("answers"))
            },
            int(golden.child("max_tokens").number()),
            golden.child("least_agreement").number(),
            {name: _parse_scores(entry) for name, entry in _entries(scores.child("texts"))},
            scores.child("tolerance_nats").number(),
            path.parent / _string(full.child("reference")) if full else None,
            full.child("most_gap_nats").number() if full else 0.0,
            full.child("least_same_token").number() if full else 0.0,
            bool(found.value.get("simulated", False)),
            str(found.value.get("engine_version", "")),
            _string(found.child("kernels")) if "kernels" in found.value else "",
            [path.parent / _string(one) for one in others],
            scores.child("same_kernels_nats").number() if "same_kernels_nats" in scores.value else SAME_KERNELS_NATS,
        )


def _parse_scores(entry: Node) -> Scores:
    logprobs = [one.number() for one in _filled(entry.child("logprobs"))]
    likeliest = [int(one.number()) for one in _filled(entry.child("likeliest"))]
    if len(logprobs) != len(likeliest):
        entry.refuse(f"has {len(logprobs)} logprobs and {len(likeliest)} likeliest tokens")
    return Scores(logprobs, likeliest)


def _entries(node: Node) -> list[tuple[str, Node]]:
    """The entries of an object that is not empty: without any, nothing would be compared."""
    if not isinstance(node.value, dict) or not node.value:
        node.expect("an object that is not empty")
    return [(name, node.child(name)) for name in node.value]


def _filled(node: Node) -> list[Node]:
    return list(node.items()) or node.expect("a list that is not empty")


def _string(node: Node) -> str:
    return node.value if isinstance(node.value, str) else node.expect("a string")


def deviation_nats(now: Mapping[str, Scores], then: Mapping[str, Scores]) -> float:
    """The root mean square of the differences between a model's scores and recorded ones, token by token.

    A mean over a text hides what moves tokens up and down alike. Measured: 0.000 where engine and kernels are those of
    the recording, 0.06 to 0.10 with other kernels, 0.09 to 0.32 with the scales of one layer of 30 wrong by 5 %.

    Raises:
        ValueError: the two were not scored on the same tokens.
    """
    moved = [a - b for name, one in then.items() for a, b in zip(now[name].logprobs, one.logprobs, strict=True)]
    return math.sqrt(fmean(difference**2 for difference in moved))


def texts() -> dict[str, str]:
    """The texts to score, by name."""
    path = fixtures_dir() / "prompts" / "texts.json"
    found: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return found


def agreement(said: str, recorded: Sequence[str]) -> float:
    """The common prefix of an answer and a recorded one, as a share of the recorded answer."""
    return max(_common(said, one) / max(len(one), 1) for one in recorded)


def _common(said: str, one: str) -> int:
    return next(
        (place for place, (a, b) in enumerate(zip(said, one, strict=False)) if a != b), min(len(said), len(one))
    )


@dataclass(frozen=True)
class Estimate:
    """A mean over tokens with its confidence interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mean:.3f} ({self.low:.3f} to {self.high:.3f})"


def estimate(values: Sequence[float]) -> Estimate:
    """The mean of values in token order, with a block bootstrap interval."""
    starts = range(max(len(values) - BLOCK_TOKENS, 0) + 1)
    blocks = math.ceil(len(values) / BLOCK_TOKENS)
    dice = random.Random(len(values))  # noqa: S311 - a repeatable draw, not a secret

    def draw() -> float:
        return fmean(value for at in dice.choices(starts, k=blocks) for value in values[at : at + BLOCK_TOKENS])

    means = sorted(draw() for _ in range(RESAMPLES))
    cut = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return Estimate(fmean(values), means[cut], means[-1 - cut])


@dataclass(frozen=True)
class Quantisation:
    """A quantised model against the full one, over the same tokens.

    Attributes:
        gap_nats: Loss of log probability per token, in nats.
        same_token: 1 where both models rank the same token first, 0 elsewhere.
    """

    gap_nats: Estimate
    same_token: Estimate


def compare(full: Mapping[str, Scores], quantised: Mapping[str, Scores]) -> Quantisation:
    """Compare the scores of texts, token by token.

    Raises:
        ValueError: the two were not scored on the same tokens.
    """
    gaps: list[float] = []
    same: list[float] = []
    for name, one in full.items():
        other = quantised[name]
        gaps += [a - b for a, b in zip(one.logprobs, other.logprobs, strict=True)]
        same += [float(a == b) for a, b in zip(one.likeliest, other.likeliest, strict=True)]
    return Quantisation(estimate(gaps), estimate(same))

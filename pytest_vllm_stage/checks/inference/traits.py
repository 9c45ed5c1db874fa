"""What a client can see of the server behind one connection: replicas of one model have it in common."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.serving.client import EndpointClient

#: A conversation that another tokenizer or template renders differently.
ASKED = [{"role": "user", "content": "Größe? 你好 🙂 1234"}]
#: A prompt after which several tokens are likely, so that other weights give other scores.
OPEN = "The weather in the mountains is"
ALTERNATIVES = 5
#: What a batch's rounding may move a log probability by, in nats; seen are 0.02.
ROUNDING_NATS = 0.25


@dataclass(frozen=True)
class ServerTraits:
    """One server as its answers show it.

    Attributes:
        stated: What it says of itself, by the request that asks for it.
        scores: Likeliest tokens after a fixed prompt, with their log probabilities; empty where none were asked for.
    """

    stated: Mapping[str, Any]
    scores: Mapping[str, float]


def read_traits(endpoint: EndpointClient, *, scores: bool) -> ServerTraits:
    """Ask for the traits, over the client's connection.

    Raises:
        RequestFailed: no usable answer.
    """
    cards = {card["id"]: card for card in endpoint.models()}
    own = cards.get(endpoint.target.model, {})
    stated = {
        "GET /version": endpoint.version(),
        "GET /v1/models": {name: own.get(name) for name in ("root", "parent", "max_model_len")},
        "POST /tokenize of a conversation": _render(endpoint),
    }
    return ServerTraits(stated, _read_scores(endpoint) if scores else {})


def _render(endpoint: EndpointClient) -> str:
    """The conversation's tokens, readable; a model without a template refuses it."""
    response = endpoint.raw("POST", "/tokenize", json={"model": endpoint.target.model, "messages": ASKED})
    if response.status_code != 200:
        return f"{response.status_code}"
    tokens = response.json().get("tokens") or []
    return f"{len(tokens)} tokens of {endpoint.detokenize(tokens)!r}"


def _read_scores(endpoint: EndpointClient) -> dict[str, float]:
    answer = endpoint.completion(OPEN, temperature=0, max_tokens=1, logprobs=ALTERNATIVES, ignore_eos=True)
    scores = answer.choice.get("logprobs") or {}
    return next(iter(scores.get("top_logprobs") or []), None) or {}


def find_other_trait(one: ServerTraits, other: ServerTraits) -> str:
    """The first trait in which a server differs from another one, in words; empty where there is none."""
    for what, value in one.stated.items():
        if other.stated[what] != value:
            return f"{what} gives {other.stated[what]}, the first one {value}"
    if not one.scores or not other.scores:
        return ""
    token = max(one.scores, key=lambda text: one.scores[text])
    moved = abs(one.scores[token] - other.scores.get(token, -math.inf))
    if moved <= ROUNDING_NATS:
        return ""
    return f"after {OPEN!r} the scores are {dict(other.scores)}, the first one's {dict(one.scores)}: other weights"

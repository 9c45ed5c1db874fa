"""Made-up log probabilities, which are in order, add up to less than one, and follow from the tokens alone."""

from __future__ import annotations

import math
from typing import Any
from zlib import crc32

from pytest_vllm_stage.standins.engine.generation import Generated
from pytest_vllm_stage.standins.engine.parameters import Parameters
from pytest_vllm_stage.standins.engine.tokenizer import END, token_id

#: Each further alternative has half of what the one before it has, so that they add up to what the chosen one leaves.
_STEP = math.log(2.0)
_UNLIKELY = 3.0


def of_answer(parameters: Parameters, generated: Generated, places: range) -> dict[str, Any] | None:
    """Made-up log probabilities that are in order and add up to less than one; None where none were asked for."""
    if parameters.top_logprobs is None:
        return None
    pieces = [generated.pieces[place] for place in places]
    tokens = ["" if piece == END else piece.decode(errors="replace") for piece in pieces]
    # What was drawn is the likeliest token only half of the time.
    drawn = not (parameters.greedy or parameters.temperature == 0)
    unlikely = [drawn and crc32(piece) % 2 == 0 for piece in pieces]
    chosen = [_logprob(piece) - _UNLIKELY * less for piece, less in zip(pieces, unlikely, strict=True)]
    if parameters.kind == "chat":
        content = [
            {
                "token": token,
                "logprob": logprob,
                "bytes": [] if piece == END else list(piece),
                "top_logprobs": _top(token, logprob, parameters.top_logprobs),
            }
            for piece, token, logprob in zip(pieces, tokens, chosen, strict=True)
        ]
        return {"content": content}
    begun = len(b"".join(parameters.prompt).decode(errors="replace")) if parameters.echo else 0
    lengths = [len("" if piece == END else piece.decode(errors="replace")) for piece in generated.pieces]
    offsets = [begun + sum(lengths[:place]) for place in places]
    top = [
        {entry["token"]: entry["logprob"] for entry in _top(token, logprob, max(parameters.top_logprobs, 1))}
        for token, logprob in zip(tokens, chosen, strict=True)
    ]
    scores = {"text_offset": offsets, "token_logprobs": chosen, "tokens": tokens, "top_logprobs": top}
    return _with_echo(parameters, scores) if parameters.echo and places.start == 0 else scores


def _with_echo(parameters: Parameters, scores: dict[str, Any]) -> dict[str, Any]:
    """The scores of an echoed prompt in front of the answer's; its first token has none."""
    tokens = [piece.decode(errors="replace") for piece in parameters.prompt]
    chosen = [_logprob(before + piece) for before, piece in zip(parameters.prompt, parameters.prompt[1:], strict=False)]
    tops = [
        {entry["token"]: entry["logprob"] for entry in _top(token, logprob, max(parameters.top_logprobs or 0, 1))}
        for token, logprob in zip(tokens[1:], chosen, strict=True)
    ]
    echoed: dict[str, list[Any]] = {
        "text_offset": [sum(map(len, tokens[:place])) for place in range(len(tokens))],
        "token_logprobs": [None, *chosen],
        "tokens": tokens,
        "top_logprobs": [None, *tops],
    }
    return {name: [*echoed[name], *values] for name, values in scores.items()}


def _logprob(piece: bytes) -> float:
    return -0.01 - (crc32(piece) % 600) / 1000


def _top(token: str, logprob: float, count: int) -> list[dict[str, Any]]:
    """The chosen token and its alternatives, likeliest first; those of an unlikely one are likelier than itself."""
    rest = math.log1p(-math.exp(logprob))
    if logprob > -_UNLIKELY:
        rest = min(rest, logprob)
    scores = {token: logprob} | {f" other{place}": rest - _STEP * place for place in range(1, max(count, 2))}
    best = sorted(scores.items(), key=lambda entry: -entry[1])[:count]
    return [{"token": name, "logprob": value, "bytes": list(name.encode())} for name, value in best]


def of_prompt(parameters: Parameters) -> list[dict[str, Any] | None] | None:
    """The same for the prompt's tokens after the first, by id, with the likeliest one where that is another."""
    if parameters.prompt_logprobs is None:
        return None
    scored: list[dict[str, Any] | None] = [None]
    for before, piece in zip(parameters.prompt, parameters.prompt[1:], strict=False):
        likeliest = crc32(before + piece) % 3 > 0
        logprob = _logprob(before + piece) if likeliest else -1.0 + _logprob(before + piece)
        entry = {"logprob": logprob, "rank": 1 if likeliest else 2, "decoded_token": piece.decode(errors="replace")}
        scored.append({str(token_id(piece)): entry})
        if not likeliest and parameters.prompt_logprobs > 0:
            other = {"logprob": math.log1p(-math.exp(logprob)) - 0.1, "rank": 1, "decoded_token": "other"}
            scored[-1] = {str(token_id(piece)): entry, "0": other}
    return scored

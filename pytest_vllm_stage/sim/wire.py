"""The bodies and chunks that leave, in vLLM's shapes; chunks come from templates, as thousands are sent a second."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any
from zlib import crc32

from pytest_vllm_stage.sim import SERVER
from pytest_vllm_stage.sim.generation import Generated
from pytest_vllm_stage.sim.parameters import Kind, Parameters
from pytest_vllm_stage.sim.tokenizer import token_id

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Identity:
    """What every body and chunk of one answer repeats."""

    id: str
    kind: Kind
    created: int
    model: str


def usage_of(parameters: Parameters, generated: Generated) -> dict[str, Any]:
    """The token counts."""
    prompt, completion = len(parameters.prompt), len(generated.pieces)
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def answer_body(who: Identity, parameters: Parameters, generated: Generated, usage: dict[str, Any]) -> dict[str, Any]:
    """A whole answer."""
    text = "".join(generated.texts)
    ids = [token_id(piece) for piece in generated.pieces] if parameters.return_token_ids else None
    choice: dict[str, Any] = {"index": 0}
    if who.kind == "chat":
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    choice["logprobs"] = logprobs_of(parameters, generated, range(len(generated.pieces)))
    choice |= {
        "finish_reason": generated.finish_reason,
        "stop_reason": generated.stop_reason,
        "token_ids": ids,
    }
    return {
        "id": who.id,
        "object": "chat.completion" if who.kind == "chat" else "text_completion",
        "created": who.created,
        "model": who.model,
        "choices": [choice],
        "system_fingerprint": SERVER,
        "usage": usage,
        "prompt_token_ids": [token_id(piece) for piece in parameters.prompt] if parameters.return_token_ids else None,
    }


def emissions_of(who: Identity, parameters: Parameters, generated: Generated, usage: dict[str, Any]) -> list[bytes]:
    """What leaves with each token of a stream: its chunk, before the first one the role, after the last one the end."""
    chunks = _Chunks(who)
    last = len(generated.texts) - 1
    emissions = [
        chunks.text(text, _extra(parameters, generated, place)) for place, text in enumerate(generated.texts[:-1])
    ]
    emissions.append(b"".join(_ending(chunks, parameters, generated, last)))
    if who.kind == "chat":
        emissions[0] = chunks.role() + emissions[0]
    if parameters.include_usage:
        emissions[-1] += chunks.usage(usage)
    emissions[-1] += DONE
    return emissions


def _ending(chunks: _Chunks, parameters: Parameters, generated: Generated, last: int) -> Iterator[bytes]:
    """The last token: with its text and the finish reason in one chunk, or without any text at the end token."""
    extra = _extra(parameters, generated, last)
    reason = {"finish_reason": generated.finish_reason, "stop_reason": generated.stop_reason}
    text = generated.texts[last]
    if generated.ended_itself and not text:
        yield chunks.last(None, reason, extra)
    else:
        yield chunks.last(text, reason, extra)


class _Chunks:
    """Makes the chunks of one stream."""

    def __init__(self, who: Identity) -> None:
        self._chat = who.kind == "chat"
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        head = {"id": who.id, "object": kind, "created": who.created, "model": who.model}
        self._head = b"data: " + _dumps(head)[:-1]
        opening = b'{"content":' if self._chat else b""
        self._open = self._head + b',"choices":[{"index":0,' + (b'"delta":' if self._chat else b'"text":') + opening
        self._close = (
            b'},"logprobs":null,"finish_reason":null}]}\n\n'
            if self._chat
            else (b',"logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n')
        )

    def role(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return self._whole({"index": 0, "delta": delta, "logprobs": None, "finish_reason": None})

    def text(self, text: str, extra: dict[str, Any]) -> bytes:
        if not extra:
            return self._open + _json_text(text) + self._close
        return self._whole(self._choice(text) | {"logprobs": None, "finish_reason": None} | extra)

    def last(self, text: str | None, reason: dict[str, Any], extra: dict[str, Any]) -> bytes:
        return self._whole(self._choice(text) | {"logprobs": None} | reason | extra)

    def usage(self, usage: dict[str, Any]) -> bytes:
        return self._head + b',"choices":[],"usage":' + _dumps(usage) + b"}\n\n"

    def _choice(self, text: str | None) -> dict[str, Any]:
        if self._chat:
            return {"index": 0, "delta": {} if text is None else {"content": text}}
        return {"index": 0, "text": text or ""}

    def _whole(self, choice: dict[str, Any]) -> bytes:
        return self._head + b',"choices":[' + _dumps(choice) + b"]}\n\n"


def _extra(parameters: Parameters, generated: Generated, place: int) -> dict[str, Any]:
    """What a chunk carries only when asked."""
    extra: dict[str, Any] = {}
    if parameters.return_token_ids:
        extra["token_ids"] = [token_id(generated.pieces[place])]
    if parameters.top_logprobs is not None:
        extra["logprobs"] = logprobs_of(parameters, generated, range(place, place + 1))
    return extra


def logprobs_of(parameters: Parameters, generated: Generated, places: range) -> dict[str, Any] | None:
    """Made-up log probabilities that are in order and add up to less than one; None where none were asked for."""
    if parameters.top_logprobs is None:
        return None
    tokens = [generated.pieces[place].decode(errors="replace") for place in places]
    chosen = [_logprob(generated.pieces[place]) for place in places]
    if parameters.kind == "chat":
        content = [
            {
                "token": token,
                "logprob": logprob,
                "bytes": list(generated.pieces[place]),
                "top_logprobs": _top(token, logprob, parameters.top_logprobs),
            }
            for place, token, logprob in zip(places, tokens, chosen, strict=True)
        ]
        return {"content": content}
    offsets = [sum(map(len, generated.texts[:place])) for place in places]
    top = [
        {entry["token"]: entry["logprob"] for entry in _top(token, logprob, max(parameters.top_logprobs, 1))}
        for token, logprob in zip(tokens, chosen, strict=True)
    ]
    return {"text_offset": offsets, "token_logprobs": chosen, "tokens": tokens, "top_logprobs": top}


def _logprob(piece: bytes) -> float:
    return -0.01 - (crc32(piece) % 600) / 1000


def _top(token: str, logprob: float, count: int) -> list[dict[str, Any]]:
    others = [{"token": f" other{place}", "logprob": logprob - 1.0 - place} for place in range(count - 1)]
    return [{"token": token, "logprob": logprob}, *others][:count]


@lru_cache(maxsize=4096)
def _json_text(text: str) -> bytes:
    return _dumps(text)


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()

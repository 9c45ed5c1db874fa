"""The bodies and chunks that leave, in vLLM's shapes; chunks come from templates, as thousands are sent a second."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from pytest_vllm_stage.standins.engine import SERVER, logprobs
from pytest_vllm_stage.standins.engine.generation import Generated
from pytest_vllm_stage.standins.engine.parameters import Kind, Parameters
from pytest_vllm_stage.standins.engine.tokenizer import token_id

DONE = b"data: [DONE]\n\n"


@dataclass(slots=True)
class Identity:
    """What every body and chunk of one answer repeats."""

    id: str
    kind: Kind
    created: int
    model: str


def usage_of(parameters: Parameters, choices: Sequence[Generated]) -> dict[str, Any]:
    """The token counts."""
    prompt = sum(len(one.prompt) for one in parameters.of_prompts)
    completion = sum(len(generated.pieces) for generated in choices)
    return {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}


def answer_body(
    who: Identity, parameters: Parameters, choices: Sequence[Generated], usage: dict[str, Any]
) -> dict[str, Any]:
    """A whole answer."""
    body: dict[str, Any] = {
        "id": who.id,
        "object": "chat.completion" if who.kind == "chat" else "text_completion",
        "created": who.created,
        "model": who.model,
        "choices": [
            _choice(who, parameters.of_choice(index), generated, index) for index, generated in enumerate(choices)
        ],
        "system_fingerprint": SERVER,
        "usage": usage,
    }
    # In a chat they are the answer's, in a plain completion each choice's.
    for index, place in enumerate([body] if who.kind == "chat" else body["choices"]):
        own = parameters.of_choice(index)
        place["prompt_logprobs"] = logprobs.of_prompt(own)
        place["prompt_token_ids"] = [token_id(piece) for piece in own.prompt] if own.return_token_ids else None
    return body


def _choice(who: Identity, parameters: Parameters, generated: Generated, index: int) -> dict[str, Any]:
    choice: dict[str, Any] = {"index": index}
    if who.kind == "completion":
        choice["text"] = "".join(generated.texts)
    else:
        choice["message"] = {"role": "assistant", "content": generated.content}
        if generated.calls:
            choice["message"]["tool_calls"] = _calls(who, generated, index)
    choice["logprobs"] = logprobs.of_answer(parameters, generated, range(len(generated.pieces)))
    return choice | {
        "finish_reason": generated.finish_reason,
        "stop_reason": generated.stop_reason,
        "token_ids": [token_id(piece) for piece in generated.pieces] if parameters.return_token_ids else None,
    }


def _calls(who: Identity, generated: Generated, index: int) -> list[dict[str, Any]]:
    return [
        {
            "id": call_id(who, index, call_index),
            "type": "function",
            "function": {"name": name, "arguments": generated.arguments(call_index)},
        }
        for call_index, name in enumerate(generated.calls)
    ]


def call_id(who: Identity, index: int, call_index: int) -> str:
    """The id of a tool call in a choice."""
    return f"{who.id}-tool-{index}-{call_index}"


def emissions_of(
    who: Identity, parameters: Parameters, choices: Sequence[Generated], usage: dict[str, Any]
) -> list[bytes]:
    """What leaves with each token of a stream: its chunk, before the first one the role, after the last one the end."""
    emissions = [b""] * max(len(generated.pieces) for generated in choices)
    for index, generated in enumerate(choices):
        own = parameters.of_choice(index)
        for place, data in enumerate(_choice_emissions(_Chunks(who, index), own, generated)):
            emissions[place] += _add_usage(data, len(own.prompt), place + 1) if own.continuous_usage else data
    if who.kind == "chat":
        roles = b"".join(_Chunks(who, index).role() for index in range(len(choices)))
        counted = _add_usage(roles, len(parameters.prompt), 0) if parameters.continuous_usage else roles
        emissions[0] = counted + emissions[0]
    if parameters.include_usage:
        emissions[-1] += _Chunks(who, 0).usage(usage)
    emissions[-1] += DONE
    return emissions


def _add_usage(emission: bytes, prompt_tokens: int, completion_tokens: int) -> bytes:
    """The same chunks with the counts so far."""
    counts = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    usage = counts | {"total_tokens": prompt_tokens + completion_tokens}
    chunks = [json.loads(event[len(b"data: ") :]) for event in emission.split(b"\n\n") if event]
    return b"".join(b"data: " + _dumps(chunk | {"usage": usage}) + b"\n\n" for chunk in chunks)


def _choice_emissions(chunks: _Chunks, parameters: Parameters, generated: Generated) -> Iterator[bytes]:
    if generated.calls:
        yield from _call_emissions(chunks, parameters, generated)
        return
    for place, text in enumerate(generated.texts[:-1]):
        yield chunks.text(text, _extra(parameters, generated, place))
    last = len(generated.texts) - 1
    ended_silently = generated.ended_itself and not generated.texts[last]
    text_or_none = None if ended_silently else generated.texts[last]
    yield chunks.last(text_or_none, _reason(generated), _extra(parameters, generated, last))


def _call_emissions(chunks: _Chunks, parameters: Parameters, generated: Generated) -> Iterator[bytes]:
    """The content, each call's head with the first piece of its arguments, the other pieces, and an empty end."""
    last, begun = len(generated.texts) - 1, -1
    for place, (text, index) in enumerate(zip(generated.texts, generated.call_indexes, strict=True)):
        head = body = b""
        extra = _extra(parameters, generated, place)
        if index > begun:
            head, begun = chunks.call_head(generated.calls[index], index), index
        if text:
            body = chunks.text(text, extra) if index < 0 else chunks.call_arguments(text, index, extra)
        yield head + body + (chunks.last(None, _reason(generated), {} if text else extra) if place == last else b"")


def _reason(generated: Generated) -> dict[str, Any]:
    return {"finish_reason": generated.finish_reason, "stop_reason": generated.stop_reason}


class _Chunks:
    """Makes the chunks of one stream."""

    def __init__(self, who: Identity, index: int) -> None:
        self._who, self._index = who, index
        self._chat = who.kind == "chat"
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        head = {"id": who.id, "object": kind, "created": who.created, "model": who.model}
        self._head = b"data: " + _dumps(head)[:-1]
        opening = b'{"content":' if self._chat else b""
        self._open = (
            self._head + b',"choices":[{"index":%d,' % index + (b'"delta":' if self._chat else b'"text":') + opening
        )
        self._close = (
            b'},"logprobs":null,"finish_reason":null}]}\n\n'
            if self._chat
            else (b',"logprobs":null,"finish_reason":null,"stop_reason":null}]}\n\n')
        )

    def role(self) -> bytes:
        delta = {"role": "assistant", "content": ""}
        return self._whole({"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None})

    def text(self, text: str, extra: dict[str, Any]) -> bytes:
        if not extra:
            return self._open + _json_text(text) + self._close
        return self._whole(self._choice(text) | {"logprobs": None, "finish_reason": None} | extra)

    def last(self, text: str | None, reason: dict[str, Any], extra: dict[str, Any]) -> bytes:
        return self._whole(self._choice(text) | {"logprobs": None} | reason | extra)

    def call_head(self, name: str, call_index: int) -> bytes:
        call_identity = {"id": call_id(self._who, self._index, call_index), "type": "function", "index": call_index}
        return self._call(call_identity | {"function": {"name": name}}, {})

    def call_arguments(self, text: str, call_index: int, extra: dict[str, Any]) -> bytes:
        return self._call({"index": call_index, "function": {"arguments": text}}, extra)

    def _call(self, call: dict[str, Any], extra: dict[str, Any]) -> bytes:
        delta = {"content": None, "tool_calls": [call]}
        return self._whole({"index": self._index, "delta": delta, "logprobs": None, "finish_reason": None} | extra)

    def usage(self, usage: dict[str, Any]) -> bytes:
        return self._head + b',"choices":[],"usage":' + _dumps(usage) + b"}\n\n"

    def _choice(self, text: str | None) -> dict[str, Any]:
        if self._chat:
            return {"index": self._index, "delta": {} if text is None else {"content": text}}
        return {"index": self._index, "text": text or ""}

    def _whole(self, choice: dict[str, Any]) -> bytes:
        return self._head + b',"choices":[' + _dumps(choice) + b"]}\n\n"


def _extra(parameters: Parameters, generated: Generated, place: int) -> dict[str, Any]:
    """What a chunk carries only when asked."""
    extra: dict[str, Any] = {}
    if parameters.return_token_ids:
        extra["token_ids"] = [token_id(generated.pieces[place])]
    if parameters.top_logprobs is not None:
        extra["logprobs"] = logprobs.of_answer(parameters, generated, range(place, place + 1))
    return extra


@lru_cache(maxsize=4096)
def _json_text(text: str) -> bytes:
    return _dumps(text)


def _dumps(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()

"""What a request asks for, checked as vLLM checks it and refused in vLLM's words."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pytest_vllm_stage.standins.engine import tokenizer
from pytest_vllm_stage.standins.engine.guided import Guide, guide_of, has_tools
from pytest_vllm_stage.standins.engine.refusal import Refusal, impossible, malformed

Kind = Literal["chat", "completion"]

MAX_STOPS = 4


def parse_json(raw: bytes) -> dict[str, Any]:
    """The body as a JSON object.

    Raises:
        Refusal: the body is not a JSON object.
    """
    try:
        body = json.loads(raw)
    except json.JSONDecodeError as error:
        raise malformed("json_invalid", f"body.{error.pos}", "JSON decode error") from None
    except UnicodeDecodeError as error:
        raise malformed("json_invalid", f"body.{error.start}", "JSON decode error: not UTF-8") from None
    if not isinstance(body, dict):
        raise malformed("model_attributes_type", "body", "Input should be a valid dictionary")
    return body


@dataclass(slots=True)
class Parameters:
    """A checked request for generation.

    Attributes:
        prompt: The pieces of the whole prompt.
        question: The text that decides the answer: the last message, or the prompt.
        limit: Maximum number of generated tokens.
        greedy: The likeliest token is always taken: temperature 0, or filters that leave only one.
        penalised: A penalty changes the scores.
        bias: Piece to the value added to its score; only forbidding or forcing a token has an effect here.
        stop_pieces: Tokens that end the answer.
        top_logprobs: Number of alternatives reported per token; None reports no logprobs.
        prompt_logprobs: The same for the tokens of the prompt.
        continuous_usage: Every chunk of a stream carries the counts so far.
        parallel_calls: More than one tool call is returned.
        others: The requests of the further prompts, where one request has several.
    """

    kind: Kind
    prompt: list[bytes]
    question: str
    limit: int
    min_tokens: int = 0
    ignore_eos: bool = False
    stop: tuple[str, ...] = ()
    stream: bool = False
    include_usage: bool = False
    temperature: float = 1.0
    seed: int | None = None
    return_token_ids: bool = False
    top_logprobs: int | None = None
    prompt_logprobs: int | None = None
    n: int = 1
    greedy: bool = False
    penalised: bool = False
    bias: Mapping[bytes, float] = field(default_factory=dict)
    stop_pieces: frozenset[bytes] = frozenset()
    include_stop: bool = False
    guide: Guide | None = None
    has_tools: bool = False
    echo: bool = False
    continuous_usage: bool = False
    parallel_calls: bool = True
    others: tuple[Parameters, ...] = ()

    @property
    def of_prompts(self) -> tuple[Parameters, ...]:
        """The request of each prompt."""
        return (self, *self.others)

    def of_choice(self, index: int) -> Parameters:
        """The request that a choice answers: each prompt has its ``n`` choices, in the prompts' order."""
        return self.of_prompts[index // self.n]


_INTEGER, _NUMBER, _TEXT, _SWITCH = "integer", "number", "string", "boolean"
_TYPES: Mapping[str, tuple[type, ...]] = {
    _INTEGER: (int,),
    _NUMBER: (int, float),
    _TEXT: (str,),
    _SWITCH: (bool,),
    "list": (list,),
    "dictionary": (dict,),
}
_FIELDS: Mapping[str, str] = {
    "model": _TEXT,
    "messages": "list",
    "max_tokens": _INTEGER,
    "max_completion_tokens": _INTEGER,
    "min_tokens": _INTEGER,
    "n": _INTEGER,
    "seed": _INTEGER,
    "temperature": _NUMBER,
    "top_p": _NUMBER,
    "stream": _SWITCH,
    "ignore_eos": _SWITCH,
    "echo": _SWITCH,
    "return_token_ids": _SWITCH,
    "parallel_tool_calls": _SWITCH,
    "stream_options": "dictionary",
    "top_logprobs": _INTEGER,
    "prompt_logprobs": _INTEGER,
    "top_k": _INTEGER,
    "min_p": _NUMBER,
    "frequency_penalty": _NUMBER,
    "presence_penalty": _NUMBER,
    "repetition_penalty": _NUMBER,
    "logit_bias": "dictionary",
    "stop_token_ids": "list",
    "include_stop_str_in_output": _SWITCH,
    "add_generation_prompt": _SWITCH,
    "continue_final_message": _SWITCH,
    "bad_words": "list",
    "allowed_token_ids": "list",
    "chat_template_kwargs": "dictionary",
    "reasoning_effort": _TEXT,
    "truncate_prompt_tokens": _INTEGER,
}
#: Field to its minimum, whether the minimum itself is allowed, and its maximum.
_RANGES: Mapping[str, tuple[float, bool, float]] = {
    "temperature": (0.0, True, 2.0),
    "top_p": (0.0, False, 1.0),
    "min_p": (0.0, True, 1.0),
    "frequency_penalty": (-2.0, True, 2.0),
    "presence_penalty": (-2.0, True, 2.0),
    "repetition_penalty": (0.0, False, 2.0),
}
#: A score raised by this much always wins, and one lowered by this much always loses.
_DECIDING_BIAS = 50.0
#: Features of vLLM that this engine refuses, so that ignoring them is never mistaken for an answer.
_UNSUPPORTED = ("suffix", "use_beam_search", "truncate_prompt_tokens")


def check_types(body: Mapping[str, Any]) -> None:
    """Refuse fields of the wrong type; null counts as absent.

    Raises:
        Refusal: a field is invalid; the refusal names it.
    """
    for name, value in body.items():
        kind = _FIELDS.get(name)
        if kind is None or value is None:
            continue
        if not isinstance(value, _TYPES[kind]) or (isinstance(value, bool) and kind != _SWITCH):
            raise malformed(f"{kind}_type", f"body.{name}", f"Input should be a valid {kind}")


def parameters_of(body: Mapping[str, Any], kind: Kind, max_model_len: int) -> Parameters:
    """Check a body whose types are right, and its prompt against the context length.

    Raises:
        Refusal: a field is invalid; the refusal names it.
    """
    for name in _UNSUPPORTED:
        if body.get(name):
            raise Refusal(400, f"the simulated engine does not support {name}", "BadRequestError", name)
    prompt, question = _chat_prompt(body) if kind == "chat" else _completion_prompt(body)
    if len(prompt) > max_model_len:
        raise impossible(
            f"This model's maximum context length is {max_model_len} tokens. However, your prompt contains "
            f"{len(prompt)} input tokens. Please reduce the length of the input prompt.",
            "input_tokens",
            len(prompt),
        )
    options = body.get("stream_options") or {}
    parameters = Parameters(
        kind,
        prompt,
        question,
        limit=_limit(body, kind, len(prompt), max_model_len),
        min_tokens=_least(body, "min_tokens", 0, 0),
        ignore_eos=bool(body.get("ignore_eos")),
        stop=_stop(body),
        stream=bool(body.get("stream")),
        include_usage=bool(options.get("include_usage")),
        continuous_usage=bool(options.get("include_usage") and options.get("continuous_usage_stats")),
        temperature=_in_range(body, "temperature", 1.0),
        seed=body.get("seed"),
        return_token_ids=bool(body.get("return_token_ids")),
        top_logprobs=_top_logprobs(body, kind),
        prompt_logprobs=_prompt_logprobs(body),
        n=_least(body, "n", 1, 1),
        greedy=_greedy(body),
        penalised=_penalised(body),
        bias=_bias(body),
        stop_pieces=frozenset(pieces_of(body.get("stop_token_ids") or [], "stop_token_ids")),
        include_stop=bool(body.get("include_stop_str_in_output")),
        guide=guide_of(body),
        has_tools=has_tools(body),
        echo=kind == "completion" and bool(body.get("echo")),
        parallel_calls=body.get("parallel_tool_calls") is not False,
    )
    if parameters.n > 1 and parameters.temperature == 0:
        raise impossible(f"n must be 1 when using greedy sampling, got {parameters.n}.", "n", parameters.n)
    if parameters.min_tokens > parameters.limit:
        raise impossible(
            f"min_tokens must be less than or equal to max_tokens={parameters.limit}.", "min_tokens", body["min_tokens"]
        )
    return parameters


def parameters_of_prompts(body: Mapping[str, Any], kind: Kind, max_model_len: int) -> Parameters:
    """The same for a completion's list of prompts, each of which is answered as if it were asked alone.

    Raises:
        Refusal: a field is invalid; the refusal names it.
    """
    prompts = body.get("prompt")
    if kind == "chat" or not (isinstance(prompts, list) and prompts and isinstance(prompts[0], str | list)):
        return parameters_of(body, kind, max_model_len)
    first, *others = (parameters_of({**body, "prompt": prompt}, kind, max_model_len) for prompt in prompts)
    return replace(first, others=tuple(others))


def _chat_prompt(body: Mapping[str, Any]) -> tuple[list[bytes], str]:
    messages = messages_of(body)
    return rendered(body, messages), tokenizer.content_of(messages[-1])


def rendered(body: Mapping[str, Any], messages: list[Mapping[str, Any]]) -> list[bytes]:
    """The pieces of a conversation, up to where the model continues, as the body specifies.

    Raises:
        Refusal: the body names two places to continue from.
    """
    asks, goes_on = body.get("add_generation_prompt") is not False, bool(body.get("continue_final_message"))
    if asks and goes_on:
        message = "Cannot set both `continue_final_message` and `add_generation_prompt` to True."
        raise impossible(message, "continue_final_message", True)
    return tokenizer.render(messages, asks=asks, goes_on=goes_on)


def messages_of(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The messages of a chat.

    Raises:
        Refusal: there are none, or one is not a message.
    """
    messages = body.get("messages")
    if messages is None:
        raise malformed("missing", "body.messages", "Field required")
    if not messages:
        raise Refusal(400, "Cannot apply chat template to an empty conversation.", "BadRequestError", "messages")
    for place, message in enumerate(messages):
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else []
        if (
            not isinstance(message, dict)
            or not isinstance(message.get("role"), str)
            or not isinstance(content, str | list | None)
            or not all(isinstance(part, dict) and isinstance(part.get("text", ""), str) for part in parts)
        ):
            raise malformed("message_type", f"body.messages.{place}", "Input should be a message with role and content")
    return list(messages)


def _completion_prompt(body: Mapping[str, Any]) -> tuple[list[bytes], str]:
    prompt = body.get("prompt")
    if prompt is None:
        raise malformed("missing", "body.prompt", "Field required")
    if isinstance(prompt, str):
        return tokenizer.split(prompt), prompt
    if isinstance(prompt, list) and prompt and all(type(number) is int for number in prompt):
        pieces = pieces_of(prompt, "prompt")
        return pieces, b"".join(pieces).decode(errors="replace")
    raise malformed("prompt_type", "body.prompt", "Input should be a string or a list of token ids")


def pieces_of(numbers: list[Any], name: str) -> list[bytes]:
    """The pieces of token ids.

    Raises:
        Refusal: a number is not a token id.
    """
    if not all(type(number) is int for number in numbers):
        raise malformed("int_type", f"body.{name}", "Input should be a valid integer")
    try:
        return [tokenizer.piece_of(number) for number in numbers]
    except tokenizer.UnknownToken as error:
        raise impossible(f"{error}.", name) from None


def _limit(body: Mapping[str, Any], kind: Kind, prompt_tokens: int, max_model_len: int) -> int:
    name = "max_completion_tokens" if body.get("max_completion_tokens") is not None else "max_tokens"
    room = max_model_len - prompt_tokens
    limit = _least(body, name, 1, room if kind == "chat" else min(16, room))
    if limit > max_model_len:
        raise impossible(f"{name}={limit} cannot be greater than max_model_len={max_model_len}.", name, limit)
    if room < 1:
        raise impossible(f"{name} must be at least 1, got {room}.", name, room)
    return min(limit, room)


def _least(body: Mapping[str, Any], name: str, least: int, default: int) -> int:
    value = body.get(name)
    if value is None:
        return default
    if value < least:
        raise impossible(f"{name} must be at least {least}, got {value}.", name, value)
    return int(value)


def _in_range(body: Mapping[str, Any], name: str, default: float) -> float:
    value = body.get(name)
    if value is None:
        return default
    least, included, most = _RANGES[name]
    if not least <= value <= most or (value == least and not included):
        raise impossible(f"{name} must be in {'[' if included else '('}{least:g}, {most:g}], got {value}.", name, value)
    return float(value)


def _greedy(body: Mapping[str, Any]) -> bool:
    """Whether only the likeliest token is left to draw."""
    top_k = body.get("top_k") or 0
    if top_k < -1:
        raise impossible(f"top_k must be 0 (disable), or at least 1, got {top_k}.", "top_k", top_k)
    tiny = 1e-3
    return (
        _in_range(body, "temperature", 1.0) < tiny
        or top_k == 1
        or _in_range(body, "top_p", 1.0) < tiny
        or _in_range(body, "min_p", 0.0) == 1.0
    )


def _penalised(body: Mapping[str, Any]) -> bool:
    neutral = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0}
    return [_in_range(body, name, value) for name, value in neutral.items()] != list(neutral.values())


def _bias(body: Mapping[str, Any]) -> dict[bytes, float]:
    bias = body.get("logit_bias") or {}
    numbers = [int(number) if number.isdecimal() else 0 for number in bias]
    pieces = zip(pieces_of(numbers, "logit_bias"), bias.values(), strict=True)
    deciding = {piece: float(value) for piece, value in pieces if abs(value) >= _DECIDING_BIAS}
    # Where several tokens are allowed, an answer of the first one is right, too.
    allowed = pieces_of(body.get("allowed_token_ids") or [], "allowed_token_ids")
    return deciding | dict.fromkeys(_bad_pieces(body), -100.0) | dict.fromkeys(allowed, 100.0)


def _bad_pieces(body: Mapping[str, Any]) -> list[bytes]:
    """The tokens that ``bad_words`` forbids: words of one token, at the beginning and in the middle of a text."""
    words = body.get("bad_words") or []
    if not all(isinstance(word, str) and word for word in words):
        raise impossible("bad_words cannot contain an empty string.", "bad_words", words)
    found = [tokenizer.split(f"{space}{word.lstrip()}") for word in words for space in ("", " ")]
    return [pieces[0] for pieces in found if len(pieces) == 1]


def _prompt_logprobs(body: Mapping[str, Any]) -> int | None:
    count = body.get("prompt_logprobs")
    if count is not None and not 0 <= count <= 20:
        raise impossible("`prompt_logprobs` must be a positive value or -1.", "prompt_logprobs", count)
    return count


def _stop(body: Mapping[str, Any]) -> tuple[str, ...]:
    stop = body.get("stop") or []
    stops = [stop] if isinstance(stop, str) else stop
    if not isinstance(stops, list) or not all(isinstance(text, str) for text in stops):
        raise malformed("string_type", "body.stop", "Input should be a valid string or a list of them")
    if "" in stops:
        raise impossible("stop cannot contain an empty string.", "stop", stops)
    if len(stops) > MAX_STOPS:
        raise impossible(f"stop can have at most {MAX_STOPS} texts.", "stop", len(stops))
    return tuple(stops)


def _top_logprobs(body: Mapping[str, Any], kind: Kind) -> int | None:
    asked = body.get("logprobs")
    if asked is None or asked is False:
        return None
    if kind == "chat" and not isinstance(asked, bool):
        raise malformed("boolean_type", "body.logprobs", "Input should be a valid boolean")
    if kind == "completion" and type(asked) is not int:
        raise malformed("integer_type", "body.logprobs", "Input should be a valid integer")
    count: int = asked if kind == "completion" else (body.get("top_logprobs") or 0)
    if not 0 <= count <= 20:
        raise impossible(f"Requested sample logprobs of {count}, which is greater than max allowed: 20.", "logprobs")
    return count

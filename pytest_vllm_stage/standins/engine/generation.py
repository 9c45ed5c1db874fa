"""The tokens of one answer and the text that each of them releases, decided before the first one is sent."""

from __future__ import annotations

import codecs
import random
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

from pytest_vllm_stage.standins.engine import answers
from pytest_vllm_stage.standins.engine.guided import Guide, GuidedCall, parse_calls
from pytest_vllm_stage.standins.engine.parameters import Parameters
from pytest_vllm_stage.standins.engine.tokenizer import END, split, token_id


@dataclass(slots=True)
class Generated:
    """One answer.

    Attributes:
        pieces: The tokens, including the end token if the answer ended with it.
        texts: For each token the text that it releases: empty while a character or a stop text may be incomplete.
        finish_reason: ``stop``, ``length`` or ``tool_calls``.
        stop_reason: The stop text, or the id of the stop token, that ended the answer.
        calls: The names of the called tools; empty if the answer is text.
        call_indexes: For each token the index of the call whose arguments it belongs to; -1 for content.
    """

    pieces: list[bytes]
    texts: list[str]
    finish_reason: str
    stop_reason: str | int | None = None
    calls: list[str] = field(default_factory=list)
    call_indexes: list[int] = field(default_factory=list)

    @property
    def ended_itself(self) -> bool:
        """The last token is the end token, which has no text."""
        return self.pieces[-1] == END

    def arguments(self, call_index: int) -> str:
        """The arguments of one call."""
        return "".join(text for text, index in zip(self.texts, self.call_indexes, strict=True) if index == call_index)

    @property
    def content(self) -> str:
        """The text that is not part of a call."""
        return self.arguments(-1) if self.calls else "".join(self.texts)


def generate(parameters: Parameters, seed: int, salt: int) -> Generated:
    """The answer to a request.

    Args:
        parameters: The checked request.
        seed: The engine's seed.
        salt: Makes answers differ if the temperature is above 0 and the request has no seed.
    """
    if parameters.greedy or parameters.temperature == 0:
        salt = 0
    elif parameters.seed is not None:
        salt = parameters.seed + 1
    warmth = 0 if salt == 0 else round(parameters.temperature * 100)
    key = answers.key_of(parameters.prompt, seed, salt + (parameters.penalised << 40) + (warmth << 44))
    generated = _generate(parameters, key)
    if parameters.echo:
        generated.texts[0] = b"".join(parameters.prompt).decode(errors="replace") + generated.texts[0]
    return generated


def _generate(parameters: Parameters, key: int) -> Generated:
    if parameters.guide is not None:
        return _guided(parameters.guide, parameters, key)
    pieces, ended = _pieces(_source(parameters, key), parameters, key)
    texts = _texts(pieces)
    finish_reason = "stop" if ended else "length"
    if parameters.stop:
        return _stopped(pieces, texts, parameters, finish_reason)
    return Generated(pieces, texts, finish_reason, _stop_token(pieces, parameters))


def _source(parameters: Parameters, key: int) -> Iterator[bytes]:
    """The tokens of an unconstrained answer."""
    copied = answers.copied(b"".join(parameters.prompt).decode(errors="replace"))
    source = answers.answer_to if parameters.kind == "chat" else answers.continuation_of
    natural = copied or source(parameters.question, key)
    return (_biased(piece, parameters) for piece in natural)


def _biased(piece: bytes, parameters: Parameters) -> bytes:
    """A token after the bias: another one if it is forbidden, and always the forced one."""
    if not parameters.bias:
        return piece
    forced = max(parameters.bias, key=lambda one: parameters.bias[one])
    if parameters.bias[forced] > 0:
        return forced
    return next(word for word in (piece, *answers.WORDS) if word not in parameters.bias)


def _guided(guide: Guide, parameters: Parameters, key: int) -> Generated:
    """An answer constrained to a structure: it ends when that is complete, or is cut by its limit."""
    dice = random.Random(key)  # noqa: S311 - decides an answer, not a secret
    text = guide.text(dice)
    content, calls = ("", [GuidedCall(guide.tool, text)]) if guide.tool else (text, [])
    if parameters.has_tools and not guide.tool:
        content, calls = parse_calls(text)
        calls = calls if parameters.parallel_calls else calls[:1]
    parts = [(-1, content), *enumerate(call.arguments for call in calls)]
    tokens = [(index, piece) for index, part in parts for piece in split(part)]
    tokens.append((len(calls) - 1, END))
    complete = len(tokens) <= parameters.limit
    indexes, pieces = (list(column) for column in zip(*tokens[: parameters.limit], strict=True))
    finish_reason = "length" if not complete else "tool_calls" if calls and not guide.tool else guide.finish_reason
    if parameters.stop and not calls:
        return _stopped(pieces, _texts(pieces), parameters, finish_reason)
    names = [call.name for call in calls[: max(indexes) + 1]]
    return Generated(pieces, _texts(pieces), finish_reason, calls=names, call_indexes=indexes)


def _stop_token(pieces: list[bytes], parameters: Parameters) -> int | None:
    return token_id(pieces[-1]) if pieces[-1] in parameters.stop_pieces else None


def _pieces(natural: Iterator[bytes], parameters: Parameters, key: int) -> tuple[list[bytes], bool]:
    """As many tokens as the request allows, and whether the answer ended by itself."""
    limit = parameters.limit
    pieces: list[bytes] = []
    for piece in islice(natural, limit):
        pieces.append(piece)
        if piece in parameters.stop_pieces and len(pieces) > parameters.min_tokens:
            return pieces, True
    if len(pieces) == limit:
        return pieces, False
    least = limit if parameters.ignore_eos else parameters.min_tokens
    if len(pieces) < least:
        more = answers.more_words(key, plain=parameters.question.isascii())
        pieces += islice(more, least - len(pieces))
    if len(pieces) == limit:
        return pieces, False
    return [*pieces, END], True


def _texts(pieces: list[bytes]) -> list[str]:
    """The text that each token completes; a character split by the end of the answer is never released."""
    if b"".join(pieces).isascii():
        return ["" if piece is END else piece.decode() for piece in pieces]
    decoder = codecs.getincrementaldecoder("utf-8")()
    return ["" if piece is END else decoder.decode(piece) for piece in pieces]


def _stopped(pieces: list[bytes], texts: list[str], parameters: Parameters, finish_reason: str) -> Generated:
    """Cut at the first stop text, and hold back text that may become one."""
    held = max(map(len, parameters.stop)) - 1
    out: list[str] = []
    text, sent = "", 0
    for place, more in enumerate(texts, start=1):
        searched_from = max(len(text) - held, 0)
        text += more
        found = _first(text, parameters.stop, searched_from) if place > parameters.min_tokens else None
        if found is not None:
            at, stop = found
            until = at + len(stop) if parameters.include_stop else at
            return Generated(pieces[:place], [*out, text[sent:until]], "stop", stop)
        until = max(len(text) - held, sent)
        out.append(text[sent:until])
        sent = until
    out[-1] += text[sent:]
    return Generated(pieces, out, finish_reason)


def _first(text: str, stops: tuple[str, ...], start: int) -> tuple[int, str] | None:
    found = [(at, stop) for stop in stops if (at := text.find(stop, start)) >= 0]
    return min(found) if found else None

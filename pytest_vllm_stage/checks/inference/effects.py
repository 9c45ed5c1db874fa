"""The effect of each parameter on an answer, looked for in any way of asking: on either API, whole or streamed.

A gateway maps parameters per API and per way: one that counts in a plain chat may be dropped from completions or from
streams. Each effect holds for any model: it compares answers to one prompt, or counts tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from pytest_vllm_stage.checks.inference.relations.reading import Reading, read_answer, read_chunks
from pytest_vllm_stage.serving.client import EndpointClient

#: A prompt whose greedy answer is certain, and one whose draws differ, by API.
CERTAIN = {"chat": "Write the numbers from 1 to 100, separated by commas.", "completions": "1, 2, 3, 4, 5, 6, 7, 8,"}
OPEN = {"chat": "Write a story.", "completions": "Here is a story that no one has heard yet:"}
#: A model's generation_config.json may filter draws by default, down to one token (Qwen2.5-VL: ``top_k`` 1), and
#: penalise repetition (Qwen2.5: 1.05): then the greedy token is not always the one with the best score, as vLLM's
#: scores are those before penalties (--logprobs-mode raw_logprobs).
UNFILTERED = {"top_k": -1, "top_p": 1.0}
UNPENALISED = {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
#: Drawn at temperature 2, eight tokens never come the same twice by chance, whatever the model.
HOT = {"temperature": 2.0, "max_tokens": 8, "ignore_eos": True} | UNFILTERED
LONG = {"temperature": 0, "max_tokens": 48, "ignore_eos": True}
#: Drawn at a temperature below 1, so many tokens hardly come the same twice, and never for every seed of these.
WARM = {"temperature": 0.9, "max_tokens": 16, "ignore_eos": True} | UNFILTERED
WARM_SEEDS = range(31, 39)
#: The first integers that a floating-point number of 64 bits, as JavaScript and Lua have them, takes for one.
LARGE = 2**53
#: A seed makes the same draws; where other requests fill the batch, rounding may still tip one of them.
ATTEMPTS = 3
FORCED = " river"


@dataclass
class WayOfAsking:
    """One way of asking an endpoint.

    Attributes:
        endpoint: The client.
        api: ``chat`` or ``completions``.
        streams: Whether answers are streamed.
    """

    endpoint: EndpointClient
    api: str
    streams: bool

    def ask(self, prompt: str, **parameters: Any) -> Reading:
        """The answer to one request."""
        if self.streams:
            stream = self.endpoint.stream_chat if self.api == "chat" else self.endpoint.stream_completion
            options = {"include_usage": True}
            return read_chunks(stream(prompt, stream_options=options, **parameters).read().chunks)
        plain = self.endpoint.chat if self.api == "chat" else self.endpoint.completion
        return read_answer(plain(prompt, **parameters).body)

    def certain(self, **parameters: Any) -> Reading:
        return self.ask(CERTAIN[self.api], **parameters)

    def open(self, **parameters: Any) -> str:
        return self.ask(OPEN[self.api], **parameters).choices[0].text

    @cached_property
    def greedy(self) -> str:
        """The certain answer, twelve tokens long."""
        return self.certain(temperature=0, max_tokens=12).choices[0].text

    @cached_property
    def unpenalised(self) -> str:
        """A greedy answer to the open prompt, long enough for any penalty to change it."""
        return self.open(**LONG)

    @cached_property
    def ids(self) -> Sequence[int]:
        """The tokens of the certain answer, asked for whole."""
        plain = WayOfAsking(self.endpoint, self.api, streams=False)
        ask = plain.endpoint.chat if self.api == "chat" else plain.endpoint.completion
        ids: list[int] = ask(CERTAIN[self.api], temperature=0, max_tokens=6, return_token_ids=True).choice["token_ids"]
        return ids


def _seed(way: WayOfAsking) -> str:
    pairs = [(way.open(seed=0, **HOT), way.open(seed=0, **HOT)) for _ in range(ATTEMPTS)]
    return "" if any(first == again for first, again in pairs) else f"seed 0 never repeated its answer: {pairs}"


def _temperature(way: WayOfAsking) -> str:
    drawn = [way.open(seed=seed, **HOT) for seed in (11, LARGE, LARGE + 1)]
    if len(set(drawn)) == 1:
        return f"three seeds at temperature 2 all drew {drawn[0]!r}"
    same = drawn[1] == drawn[2]
    return f"the seeds {LARGE} and {LARGE + 1} both drew {drawn[1]!r}: large numbers are rounded" if same else ""


def _temperature_below_1(way: WayOfAsking) -> str:
    drawn = set()
    for seed in WARM_SEEDS:
        drawn.add(way.open(seed=seed, **WARM))
        if len(drawn) > 1:
            return ""
    return f"{len(WARM_SEEDS)} seeds at temperature {WARM['temperature']} all drew {drawn.pop()!r}"


def _temperature_over_1(way: WayOfAsking) -> str:
    pairs = [(way.open(seed=seed, **HOT | {"temperature": 1.0}), way.open(seed=seed, **HOT)) for seed in (21, 22)]
    same = all(cooler == hotter for cooler, hotter in pairs)
    return f"temperature 2 drew what temperature 1 draws with the same seed: {pairs}" if same else ""


def _filter(only: Mapping[str, float]) -> Callable[[WayOfAsking], str]:
    def find(way: WayOfAsking) -> str:
        drawn = way.certain(temperature=2.0, max_tokens=12, **only).choices[0].text
        return "" if drawn == way.greedy else f"temperature 2 with {only} drew {drawn!r}, expected {way.greedy!r}"

    return find


def _penalty(penalty: Mapping[str, float]) -> Callable[[WayOfAsking], str]:
    def find(way: WayOfAsking) -> str:
        same = way.open(**LONG, **penalty) == way.unpenalised
        return f"{penalty} changed nothing in {way.unpenalised!r}" if same else ""

    return find


def _max_tokens(way: WayOfAsking) -> str:
    made = way.certain(temperature=0, max_tokens=3).usage.get("completion_tokens")
    return "" if made == 3 else f"max_tokens=3 gave {made} tokens"


def _stop_token(way: WayOfAsking) -> str:
    stop = way.ids[2]
    expected = way.ids.index(stop) + 1
    made = way.certain(temperature=0, max_tokens=12, stop_token_ids=[stop]).usage.get("completion_tokens")
    return "" if made == expected else f"stop token {stop} is token {expected} of the answer, which went on to {made}"


def _min_tokens(way: WayOfAsking) -> str:
    parameters = {"temperature": 0, "max_tokens": 10, "stop_token_ids": [way.ids[2]], "ignore_eos": True}
    made = way.certain(**parameters, min_tokens=8).usage.get("completion_tokens")
    return "" if made and made >= 8 else f"min_tokens=8 gave {made} tokens"


def _bias(way: WayOfAsking) -> str:
    token = way.endpoint.tokenize(FORCED, add_special_tokens=False).ids[0]
    text = way.certain(temperature=0, max_tokens=4, ignore_eos=True, logit_bias={str(token): 100}).choices[0].text
    only = len(set(text.split())) == 1 and text != way.greedy[: len(text)]
    return "" if only else f"token {token} was forced by logit_bias 100; the answer is {text!r}"


def _find_word(endpoint: EndpointClient, number: int) -> str:
    """The word of a token that ``bad_words`` forbids by it; empty where there is none.

    vLLM forbids the tokens into which it splits the word alone, and those of the word after a space if they are as
    many.
    """
    word = endpoint.detokenize([number]).strip()
    if not word:
        return ""
    alone, later = (endpoint.tokenize(space + word, add_special_tokens=False).ids for space in ("", " "))
    return word if len(alone) == 1 and number in (alone[0], *(later if len(later) == 1 else ())) else ""


def _bad_words(way: WayOfAsking) -> str:
    word = next(filter(None, (_find_word(way.endpoint, number) for number in way.ids)), "")
    if not word:
        return ""
    text = way.certain(temperature=0, max_tokens=6, ignore_eos=True, bad_words=[word]).choices[0].text
    same = text and way.greedy.startswith(text)
    return f"{word!r} was forbidden by bad_words; the answer is {text!r}" if same else ""


def _allowed_tokens(way: WayOfAsking) -> str:
    token = way.endpoint.tokenize(FORCED, add_special_tokens=False).ids[0]
    text = way.certain(temperature=0, max_tokens=4, ignore_eos=True, allowed_token_ids=[token]).choices[0].text
    only = len(set(text.split())) == 1 and text != way.greedy[: len(text)]
    return "" if only else f"allowed_token_ids allowed token {token} alone; the answer is {text!r}"


def _n(way: WayOfAsking) -> str:
    reading = way.ask(OPEN[way.api], n=2, **HOT)
    counts = [len(reading.choices), reading.usage.get("completion_tokens")]
    return "" if counts == [2, 16] else f"n=2 gave {counts[0]} choices and {counts[1]} tokens, expected 2 and 16"


def _included_stop(way: WayOfAsking) -> str:
    whole = way.greedy
    stop = whole[len(whole) // 2 :][:3]
    expected = whole[: whole.index(stop) + len(stop)]
    parameters = {"temperature": 0, "max_tokens": 12, "stop": [stop]}
    got = way.certain(**parameters, include_stop_str_in_output=True).choices[0]
    if got.text != expected:
        return f"include_stop_str_in_output with stop={stop!r} gave {got.text!r}, expected {expected!r}"
    return "" if got.finish_reason == "stop" else f"ended by its stop text, the answer says {got.finish_reason!r}"


#: Parameter to what finds the problem with it, in words; empty where it has its effect.
#: Those that take longest come first.
EFFECTS: dict[str, Callable[[WayOfAsking], str]] = {
    "frequency_penalty": _penalty({"frequency_penalty": 2.0}),
    "presence_penalty": _penalty({"presence_penalty": 2.0}),
    "repetition_penalty": _penalty({"repetition_penalty": 2.0}),
    "seed": _seed,
    "temperature": _temperature,
    "temperature over 1": _temperature_over_1,
    "temperature below 1": _temperature_below_1,
    "top_k": _filter({"top_k": 1}),
    "top_p": _filter({"top_p": 1e-6}),
    "min_p": _filter({"min_p": 1.0}),
    "max_tokens": _max_tokens,
    "stop_token_ids": _stop_token,
    "min_tokens": _min_tokens,
    "logit_bias": _bias,
    "bad_words": _bad_words,
    "allowed_token_ids": _allowed_tokens,
    "n": _n,
    "include_stop_str_in_output": _included_stop,
}

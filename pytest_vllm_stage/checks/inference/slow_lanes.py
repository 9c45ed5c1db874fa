"""Checks that need time and hardly any CPU: they run in threads during the other checks, and are joined at the end.

Gateways end what lasts: a stream as a whole after 15 to 60 s, an answer that has not begun, a connection without
traffic. Each lane lasts longer than `LEAST_S`, and as long as there are other checks to run up to `MOST_S`.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass

from pytest_vllm_stage.checks.inference.patterns import pattern
from pytest_vllm_stage.checks.inference.wire import HttpVariant, WireConnection, WireFailed
from pytest_vllm_stage.serving.answers import DONE, chunk_of
from pytest_vllm_stage.serving.client import CHAT, COMPLETIONS, EndpointClient
from pytest_vllm_stage.serving.failures import RequestFailed
from pytest_vllm_stage.serving.sse import Parser

#: Seconds that a lane lasts at least, and at most: a little more than the common limits of 30 and 60 s.
LEAST_S, MOST_S = 32.0, 62.0
#: Seconds without a byte of a whole answer; other checks keep the engine busy meanwhile.
ANSWER_TIMEOUT_S = 600.0
#: Tokens of the stream that is read slowly, each an event of one or two KiB, more than all buffers on the way hold.
STREAMED_TOKENS, ALTERNATIVES = 256, 20
#: The share of them that must have scores: engines before https://github.com/vllm-project/vllm/issues/37737 was fixed
#: lose those of withheld text, which `test_relations` reports, and not this lane.
LEAST_SCORED = 0.9
#: Tokens of the first answer, which shows the engine's pace, and how much the estimate may be wrong.
PACE_TOKENS, TOLERANCE_S = 48, 2.0
#: A long answer of these characters alone: the first token of most vocabularies, which is chosen where the scores are
#: not numbers (https://github.com/vllm-project/vllm/issues/14126).
NO_NUMBERS = "!" * 32


@dataclass(frozen=True)
class LaneResult:
    """How a lane ended.

    Attributes:
        lasted_s: How long it lasted.
        problem: What went wrong; empty where nothing did.
        too_short: Why it proves nothing; empty where it proves something.
    """

    lasted_s: float
    problem: str = ""
    too_short: str = ""


class LaneBroken(Exception):
    """What came is not what was asked for."""


class SlowLanes:
    """The lanes of one endpoint; they start at once.

    Args:
        endpoint: The endpoint; each lane has connections of its own.
    """

    def __init__(self, endpoint: EndpointClient) -> None:
        self._endpoint = endpoint
        self._started_s = time.monotonic()
        self._finish = threading.Event()
        self._lanes = {
            lane.__name__: self._start(lane)
            for lane in (self._stream_long, self._read_slowly, self._ask_long, self._stay_idle)
        }

    def join_stream(self) -> LaneResult:
        """The stream that took long."""
        return self._join(self._stream_long)

    def join_reader(self) -> LaneResult:
        """The stream that was read slowly."""
        return self._join(self._read_slowly)

    def join_answer(self) -> LaneResult:
        """The whole answer that took long."""
        return self._join(self._ask_long)

    def join_idle(self) -> LaneResult:
        """The connection without traffic."""
        return self._join(self._stay_idle)

    def join_all(self) -> None:
        """Wait until no lane asks the endpoint any more; each check judges its own."""
        for join in (self.join_stream, self.join_reader, self.join_answer, self.join_idle):
            join()

    def close(self) -> None:
        """End the lanes as soon as they can; none keeps this process alive."""
        self._finish.set()

    def _start(self, lane: Callable[[], str]) -> Future[LaneResult]:
        future: Future[LaneResult] = Future()
        # A pool's threads would keep the process alive at its end.
        run = threading.Thread(target=lambda: future.set_result(self._run(lane)), name=lane.__name__, daemon=True)
        run.start()
        return future

    def _join(self, lane: Callable[[], str]) -> LaneResult:
        running = self._lanes[lane.__name__]
        # From now on nothing else runs: the least time is enough.
        wait([running], max(0.0, LEAST_S - self._lasted_s()))
        self._finish.set()
        return running.result()

    def _run(self, lane: Callable[[], str]) -> LaneResult:
        started_s = time.monotonic()
        problem = too_short = ""
        try:
            too_short = lane()
        except (RequestFailed, WireFailed, LaneBroken, OSError) as error:
            problem = str(error) or type(error).__name__
        return LaneResult(time.monotonic() - started_s, problem, too_short)

    def _stream_long(self) -> str:
        """Read a stream for as long as there is time, or as the model's context lasts."""
        prompt, ended, tokens, last = pattern(30).prompt(), False, 0, ""
        with self._endpoint.with_new_connections(silence_timeout_s=ANSWER_TIMEOUT_S) as client:
            room = _room(client, prompt)
            with client.stream_completion(prompt, temperature=0, ignore_eos=True, max_tokens=room) as stream:
                for event in stream:
                    ended = event.data == DONE
                    choices = () if ended else chunk_of(event).get("choices", ())
                    last = (last + "".join(one.get("text") or "" for one in choices))[-len(NO_NUMBERS) :]
                    tokens += 1
                    _require(last != NO_NUMBERS, f"from about token {tokens} on, the text is {last!r} alone")
                    if self._lasted_s() > MOST_S or (self._finish.is_set() and self._lasted_s() > LEAST_S):
                        return ""
        _require(ended, "the stream ended without [DONE]")
        return self._too_short(room, self._lasted_s())

    def _read_slowly(self) -> str:
        """Read a stream slowly, over a connection that buffers little."""
        exact = {"temperature": 0, "max_tokens": STREAMED_TOKENS, "ignore_eos": True}
        large = {"logprobs": True, "top_logprobs": ALTERNATIVES}
        usage = {"include_usage": True}
        body = self._endpoint.chat_body("Count.", **exact, **large, stream=True, stream_options=usage)
        tokens, counted, ended, parser = 0, 0, False, Parser()
        with WireConnection(self._endpoint.target, buffers_little=True) as connection:
            for line in connection.open_stream(CHAT, body):
                for event in parser.feed(line, 0.0):
                    ended = event.data == DONE
                    chunk = {} if ended else chunk_of(event)
                    choices = chunk.get("choices", ())
                    counted = (chunk.get("usage") or {}).get("completion_tokens", counted)
                    tokens += sum(len((one.get("logprobs") or {}).get("content", ())) for one in choices)
                    self._finish.wait(max(0.0, MOST_S * tokens / STREAMED_TOKENS - self._lasted_s()))
        _require(ended, f"the stream ended without [DONE], after {tokens} of {STREAMED_TOKENS} tokens")
        _require(counted == STREAMED_TOKENS, f"expected usage of {STREAMED_TOKENS} tokens, got {counted}")
        _require(tokens >= LEAST_SCORED * STREAMED_TOKENS, f"expected {STREAMED_TOKENS} scored tokens, got {tokens}")
        return ""

    def _ask_long(self) -> str:
        """Ask for a whole answer that takes the engine long enough."""
        prompt, parameters = pattern(31).prompt(), {"temperature": 0, "ignore_eos": True}
        with self._endpoint.with_new_connections(silence_timeout_s=ANSWER_TIMEOUT_S) as client:
            room = _room(client, prompt)
            tokens, took_s = PACE_TOKENS, 0.0
            while took_s < LEAST_S - TOLERANCE_S:
                started_s = time.monotonic()
                answer = client.completion(prompt, **parameters, max_tokens=tokens)
                took_s = time.monotonic() - started_s
                made = answer.usage.completion_tokens
                # A server may limit all answers (--override-generation-config, max_new_tokens), and says so.
                is_limited = tokens > PACE_TOKENS and made < tokens and answer.finish_reason == "length"
                _require(made == tokens or is_limited, f"expected {tokens} tokens, got {made}")
                if tokens == room or is_limited:
                    room = made
                    break
                tokens = min(room, math.ceil(tokens * LEAST_S / took_s))
        return self._too_short(room, took_s)

    def _lasted_s(self) -> float:
        return time.monotonic() - self._started_s

    @staticmethod
    def _too_short(room: int, took_s: float) -> str:
        return "" if took_s >= LEAST_S - TOLERANCE_S else f"the whole context of {room} tokens takes {took_s:.0f} s"

    def _stay_idle(self) -> str:
        """Use a connection, leave it alone, and use it again, unless it was closed in between, as HTTP allows."""
        body = self._endpoint.completion_body(pattern(32).prompt(), temperature=0, max_tokens=1)
        with WireConnection(self._endpoint.target) as connection:
            before = connection.post(COMPLETIONS, body, HttpVariant())
            _require(before.status == 200, f"answered {before.status}: {before.body[:200]!r}")
            self._finish.wait(max(0.0, MOST_S - self._lasted_s()))
            if connection.is_closed:
                return ""
            after = connection.post(COMPLETIONS, body, HttpVariant())
        _require(after.status == 200, f"answered {after.status}: {after.body[:200]!r}")
        return ""


def _room(client: EndpointClient, prompt: str) -> int:
    """Tokens that the context leaves for an answer."""
    counted = client.tokenize(prompt)
    return (counted.max_model_len or 2048) - counted.count - 8


def _require(condition: bool, otherwise: str) -> None:
    if not condition:
        raise LaneBroken(otherwise)

"""Faults that show only between requests: concurrent, repeated or abandoned ones."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from pytest_vllm_stage.standins.engine.engine import Engine
from pytest_vllm_stage.standins.engine.faults import Fault, fault, zero_metric
from pytest_vllm_stage.standins.engine.generation import Generated
from pytest_vllm_stage.standins.engine.parameters import Parameters

#: Prompts with fewer tokens are not cached.
_LONG = 200


def _copy(generated: Generated) -> Generated:
    return replace(generated, pieces=list(generated.pieces), texts=list(generated.texts))


def _become(generated: Generated, other: Generated) -> None:
    generated.pieces, generated.texts = list(other.pieces), list(other.texts)
    generated.finish_reason, generated.stop_reason = other.finish_reason, other.stop_reason
    generated.calls, generated.call_indexes = list(other.calls), list(other.call_indexes)


@fault("cross_talk")
@dataclass
class CrossTalk(Fault):
    """While another request is running, its answer is returned instead."""

    _engine: Engine | None = field(default=None, init=False, repr=False)
    _last: Generated | None = field(default=None, init=False, repr=False)

    def start(self, engine: Engine) -> None:
        self._engine = engine

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        """Give the answer that was made before this one, if something runs."""
        own = _copy(generated)
        if self._engine is not None and self._engine.running and self._last is not None:
            _become(generated, self._last)
        self._last = own


@fault("cache_ignores_parameters")
@dataclass
class CacheIgnoresParameters(Fault):
    """A gateway's cache uses the prompt alone as its key."""

    _answers: dict[bytes, Generated] = field(default_factory=dict, init=False, repr=False)

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        """Say what was said to the same prompt first."""
        _become(generated, self._answers.setdefault(b"".join(parameters.prompt), _copy(generated)))


@fault("prefix_cache_mixes_prompts")
@dataclass
class PrefixCacheMixesPrompts(Fault):
    """The prefix cache keys a long prompt by its length and end: one with another beginning gets its content."""

    _answers: dict[tuple[int, Sequence[bytes]], Generated] = field(default_factory=dict, init=False, repr=False)

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        """Say what was said to the one that was taken for the same."""
        if len(parameters.prompt) >= _LONG:
            key = len(parameters.prompt), tuple(parameters.prompt[-1:])
            _become(generated, self._answers.setdefault(key, _copy(generated)))


@fault("prefix_cache_garbles")
@dataclass
class PrefixCacheGarbles(Fault):
    """Content from the prefix cache is corrupt: the second answer to a long prompt is garbled."""

    _seen: set[bytes] = field(default_factory=set, init=False, repr=False)

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        key = b"".join(parameters.prompt)
        if len(parameters.prompt) >= _LONG and key in self._seen:
            generated.texts = ["#" * len(text) for text in generated.texts]
        self._seen.add(key)


@fault("prefix_cache_off")
class PrefixCacheOff(Fault):
    """The prefix cache is reported as enabled, and is never hit."""

    def on_metrics(self, text: str) -> str:
        return zero_metric(text, "vllm:prefix_cache_hits")


@fault("one_at_a_time")
@dataclass
class OneAtATime(Fault):
    """Requests are served one after the other."""

    _engine: Engine | None = field(default=None, init=False, repr=False)
    _slots: int = field(default=0, init=False, repr=False)

    def start(self, engine: Engine) -> None:
        self._engine, self._slots = engine, engine.settings.max_num_seqs
        engine.settings = replace(engine.settings, max_num_seqs=1)

    def stop(self) -> None:
        if self._engine is not None:
            self._engine.settings = replace(self._engine.settings, max_num_seqs=self._slots)


@fault("abandoned_answers_go_on")
class AbandonedAnswersGoOn(Fault):
    """The engine is not notified that a client disconnected, and generates to the end."""

    def on_disconnect(self) -> bool:
        return False


@fault("confused_by_aborts")
@dataclass
class ConfusedByAborts(Fault):
    """After many aborted requests, the next answer is built from their leftovers.

    Attributes:
        aborts: Number of aborts that trigger it.
    """

    aborts: int = 24
    _count: int = field(default=0, init=False, repr=False)

    def on_disconnect(self) -> bool:
        self._count += 1
        return True

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        if self._count >= self.aborts:
            self._count = 0
            generated.texts = ["#" * len(text) for text in generated.texts]

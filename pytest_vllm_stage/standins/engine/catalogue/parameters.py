"""Faults of parameters: what a gateway drops, replaces with another value, or reports for another token."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from pytest_vllm_stage.standins.engine.faults import Event, Fault, fault
from pytest_vllm_stage.standins.engine.generation import Generated
from pytest_vllm_stage.standins.engine.parameters import Parameters
from pytest_vllm_stage.standins.engine.refusal import impossible


@fault("ignored_temperature")
class IgnoredTemperature(Fault):
    """Every answer is greedy, whatever the temperature."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.greedy = True


@fault("always_drawn")
class AlwaysDrawn(Fault):
    """The temperature is dropped, and the default samples."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        body.pop("temperature", None)


@fault("ignored_seed")
class IgnoredSeed(Fault):
    """The seed is dropped."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.seed = None


@fault("one_seed_for_all")
class OneSeedForAll(Fault):
    """Requests without a seed all get the same one."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.seed = 0 if parameters.seed is None else parameters.seed


@fault("ignored_filters")
class IgnoredFilters(Fault):
    """``top_k``, ``top_p`` and ``min_p`` are dropped."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.greedy = parameters.temperature == 0


@fault("ignored_n")
class IgnoredN(Fault):
    """One choice is returned, whatever ``n`` is."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.n = 1


@fault("first_choice_counted")
@dataclass
class FirstChoiceCounted(Fault):
    """Only the first choice's tokens are counted in the usage."""

    _tokens: list[int] = field(default_factory=list, init=False, repr=False)

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        self._tokens.append(len(generated.pieces))

    def on_usage(self, usage: dict[str, Any]) -> None:
        first, self._tokens = self._tokens[0], []
        usage["total_tokens"] += first - usage["completion_tokens"]
        usage["completion_tokens"] = first


@fault("merged_choices")
class MergedChoices(Fault):
    """A relay streams all choices under the index of the first one."""

    def on_stream(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event.data, dict):
                for choice in event.data["choices"]:
                    choice["index"] = 0


@fault("ignored_min_tokens")
class IgnoredMinTokens(Fault):
    """``min_tokens`` is dropped."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.min_tokens = 0


@fault("ignored_bias")
class IgnoredBias(Fault):
    """``logit_bias`` is dropped."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.bias = {}


@fault("ignored_penalties")
class IgnoredPenalties(Fault):
    """Penalties on repetition are dropped."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.penalised = False


@fault("ignored_stop_tokens")
class IgnoredStopTokens(Fault):
    """``stop_token_ids`` is dropped."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.stop_pieces = frozenset()


@fault("stop_found_in_one_token_only")
class StopFoundInOneTokenOnly(Fault):
    """Stop texts are compared token by token."""

    def on_parameters(self, parameters: Parameters) -> None:
        """Forget those that are longer than a letter."""
        parameters.stop = tuple(stop for stop in parameters.stop if len(stop) == 1)


@fault("context_one_too_short")
class ContextOneTooShort(Fault):
    """The last token of the context cannot be used."""

    def on_parameters(self, parameters: Parameters) -> None:
        if parameters.limit == 1 and len(parameters.prompt) > 1000:
            raise impossible("This model's maximum context length is exceeded.", "input_tokens", len(parameters.prompt))


@fault("context_overrun")
class ContextOverrun(Fault):
    """An answer continues past the end of the context."""

    def on_parameters(self, parameters: Parameters) -> None:
        """Let it have eight more tokens there."""
        if parameters.limit == 1 and len(parameters.prompt) > 1000:
            parameters.limit = 9


@fault("missing_logprobs")
class MissingLogprobs(Fault):
    """Logprobs are requested, and null is returned."""

    def on_parameters(self, parameters: Parameters) -> None:
        parameters.top_logprobs = None


@fault("logprobs_unasked")
class LogprobsUnasked(Fault):
    """Logprobs are returned without having been requested."""

    def on_parameters(self, parameters: Parameters) -> None:
        if parameters.top_logprobs is None:
            parameters.top_logprobs = 1


class _Scores(Fault):
    """A fault that changes each token's scores, in every response shape."""

    def change(self, scores: dict[str, float]) -> dict[str, float]:
        """The scores at one position after the fault, the chosen token first."""
        return scores

    def on_answer(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            self._change(choice.get("logprobs"))

    def on_stream(self, events: list[Event]) -> None:
        for event in events:
            for choice in event.data["choices"] if isinstance(event.data, dict) else []:
                self._change(choice.get("logprobs"))

    def _change(self, scores: dict[str, Any] | None) -> None:
        for entry in (scores or {}).get("content") or []:
            changed = self.change({one["token"]: one["logprob"] for one in entry["top_logprobs"]})
            entry["top_logprobs"] = [
                {"token": token, "logprob": value, "bytes": []} for token, value in changed.items()
            ]
        if scores and "top_logprobs" in scores:
            scores["top_logprobs"] = [self.change(top) for top in scores["top_logprobs"]]


@fault("probabilities_for_logprobs")
class ProbabilitiesForLogprobs(_Scores):
    """Probabilities are sent instead of their logarithms."""

    def change(self, scores: dict[str, float]) -> dict[str, float]:
        return {token: math.exp(value) for token, value in scores.items()}


@fault("unsorted_logprobs")
class UnsortedLogprobs(_Scores):
    """The likeliest alternatives are last."""

    def change(self, scores: dict[str, float]) -> dict[str, float]:
        return dict(reversed(scores.items()))


@fault("foreign_logprobs")
class ForeignLogprobs(_Scores):
    """The alternatives are those of another position: the generated token is not among them."""

    def change(self, scores: dict[str, float]) -> dict[str, float]:
        return {f"{token}#": value for token, value in scores.items()}


@fault("half_of_the_logprobs")
class HalfOfTheLogprobs(Fault):
    """A relay drops the second half of the logprobs."""

    def on_answer(self, body: dict[str, Any]) -> None:
        for choice in body["choices"]:
            for name, entries in (choice.get("logprobs") or {}).items():
                choice["logprobs"][name] = entries[: len(entries) // 2]

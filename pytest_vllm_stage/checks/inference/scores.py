"""How likely a text is to a model: the log probability of each token, read from ``prompt_logprobs``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.failures import RequestFailed


@dataclass(frozen=True)
class Scores:
    """The scores of one text: one value per token after the first.

    Attributes:
        logprobs: Log probability of each token, given those before it.
        likeliest: Id of the token that the model ranked first at that position.
    """

    logprobs: Sequence[float]
    likeliest: Sequence[int]

    @property
    def perplexity(self) -> float:
        """The exponential of the mean negative log probability."""
        return math.exp(-sum(self.logprobs) / len(self.logprobs))


def score(endpoint: EndpointClient, text: str) -> Scores:
    """Have the server score a text, as the prompt of a one-token completion.

    Raises:
        RequestFailed: the score of a token is missing.
    """
    answer = endpoint.completion(text, max_tokens=1, temperature=0, prompt_logprobs=1, return_token_ids=True)
    entries, ids = answer.choice.get("prompt_logprobs"), answer.choice.get("prompt_token_ids")
    if not isinstance(entries, list) or not isinstance(ids, list) or len(entries) != len(ids):
        raise RequestFailed(f"the answer has no prompt_logprobs for its {answer.usage.prompt_tokens} prompt tokens")
    logprobs, likeliest = [], []
    for token, entry in zip(ids[1:], entries[1:], strict=True):
        if not isinstance(entry, dict) or str(token) not in entry:
            raise RequestFailed(f"prompt_logprobs has no score for the prompt's token {token}: {entry}")
        logprobs.append(float(entry[str(token)]["logprob"]))
        likeliest.append(next((int(number) for number, one in entry.items() if one["rank"] == 1), -1))
    return Scores(logprobs, likeliest)

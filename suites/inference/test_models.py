"""The endpoint serves the model that it should, as large as it should."""

from __future__ import annotations

import pytest

from pytest_vllm_stage import EndpointClient


@pytest.mark.smoke
def test_served_model_is_listed(endpoint: EndpointClient) -> None:
    """``/v1/models`` names the model under the name that clients send.

    A route that leads to another service, or a served name that was changed, shows here first: every client that looks
    up its model finds nothing.
    """
    cards = endpoint.models()
    served = [card["id"] for card in cards]
    assert endpoint.target.model in served, f"{endpoint.target.model} is not served here; served: {served}"
    objects = {card.get("object") for card in cards}
    assert objects == {"model"}, f"/v1/models lists objects called {sorted(map(str, objects))}, expected 'model'"


def test_context_length_is_the_declared_one(endpoint: EndpointClient) -> None:
    """The model list, the tokenizer endpoint and the declaration agree on ``max_model_len``.

    A smaller one refuses prompts that users were promised; a larger one takes memory from the KV cache of all requests.
    """
    cards = {card["id"]: card for card in endpoint.models()}
    model = endpoint.target.model
    assert model in cards, f"{model} is not served here; served: {list(cards)}"
    # vLLM lists a LoRA adapter with its base model, which alone has a context length.
    listed = cards.get(cards[model].get("parent"), cards[model]).get("max_model_len")
    assert isinstance(listed, int), f"/v1/models reports no max_model_len for {model}: {listed!r}"
    assert listed > 0, f"/v1/models reports max_model_len {listed}"
    tokenizers = endpoint.tokenize("x").max_model_len
    assert tokenizers == listed, f"/tokenize reports max_model_len {tokenizers}, /v1/models reports {listed}"
    declared = endpoint.target.max_model_len
    assert declared in (None, listed), f"declared is max_model_len {declared}, served is {listed}"

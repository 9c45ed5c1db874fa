"""The token counts are correct: users are billed by them, and throughput is computed from them."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vllm_stage import EndpointClient

CONVERSATIONS: dict[str, list[dict[str, str]]] = {
    "question": [{"role": "user", "content": "What is the capital of France?"}],
    "dialogue": [
        {"role": "system", "content": "You answer briefly."},
        {"role": "user", "content": "Name a colour."},
        {"role": "assistant", "content": "Blue."},
        {"role": "user", "content": "Name another one."},
    ],
    "unicode": [{"role": "user", "content": "Zwölf Boxkämpfer, 你好, 🙂‍↕️ und\tein Tab\n\n  am Rand "}],
}


@pytest.mark.parametrize("messages", CONVERSATIONS.values(), ids=CONVERSATIONS)
def test_prompt_tokens_of_a_chat_equal_the_tokenizers_count(
    endpoint: EndpointClient, messages: list[dict[str, str]]
) -> None:
    """``usage.prompt_tokens`` is what ``/tokenize`` counts for the same messages.

    They differ when a gateway rewrites messages, drops a turn or the system prompt, or when the two use different chat
    templates.
    """
    usage = endpoint.chat(messages, max_tokens=1, temperature=0).usage
    counted = endpoint.tokenize(messages=messages)
    assert counted.count == len(counted.ids), f"/tokenize counts {counted.count} tokens and lists {len(counted.ids)}"
    assert usage.prompt_tokens == counted.count, f"usage reports {usage.prompt_tokens}, /tokenize {counted.count}"


def test_prompt_tokens_of_a_completion_equal_the_tokenizers_count(endpoint: EndpointClient) -> None:
    """``usage.prompt_tokens`` of a plain completion is what ``/tokenize`` counts for the same text.

    Load tests make prompts of exact lengths through ``/tokenize``; where it disagrees, they measure another load.
    """
    prompt = "The quick brown fox jumps over the lazy dog. Größe: 3 µm, 你好."
    usage = endpoint.completion(prompt, max_tokens=1, temperature=0).usage
    counted = endpoint.tokenize(prompt).count
    assert usage.prompt_tokens == counted, f"usage reports {usage.prompt_tokens} prompt tokens, /tokenize {counted}"


@pytest.mark.parametrize(
    "parameters", [{"max_tokens": 12, "ignore_eos": True}, {"max_tokens": 48}], ids=["to-the-limit", "to-its-end"]
)
def test_completion_tokens_equal_the_tokens_generated(endpoint: EndpointClient, parameters: dict[str, Any]) -> None:
    """``usage.completion_tokens`` counts the tokens made, the end token included, and the total is the sum.

    The count is compared with the token ids, where the server returns them, and with the limit, if the answer reached
    it. (Counting the text's tokens again would prove nothing: text can be split in more than one way.)
    """
    answer = endpoint.chat("What is the capital of France?", temperature=0, return_token_ids=True, **parameters)
    usage, ids, limit = answer.usage, answer.choice.get("token_ids"), parameters["max_tokens"]
    counted = usage.completion_tokens
    if ids is not None:
        assert counted == len(ids), f"usage reports {counted} completion tokens, expected {len(ids)}"
    if "ignore_eos" in parameters:
        assert counted == limit, (
            f"usage reports {counted} completion tokens of an answer that its limit of {limit} ended"
        )
    assert 0 < counted <= limit, f"usage reports {counted} completion tokens, with a limit of {limit}"
    total = usage.prompt_tokens + counted
    assert usage.total_tokens == total, f"usage reports {usage.total_tokens} tokens in all, its parts sum to {total}"

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


#: Turns of a long conversation, and words of a long turn at most: more than gateways' limits on history or text.
MANY_TURNS, MANY_WORDS = 41, 6000


def _turns_of(shape: str, room: int) -> list[str]:
    if shape == "many-turns":
        return [f"Question {turn}." if turn % 2 == 0 else f"Answer {turn}." for turn in range(MANY_TURNS)]
    return ["word " * min(MANY_WORDS, room * 2 // 3) + "last."] if shape == "one-long-turn" else ["ok", "ok", "ok"]


@pytest.mark.parametrize("shape", ["many-turns", "one-long-turn", "repeated-turns"])
def test_long_conversation_is_counted_whole(endpoint: EndpointClient, shape: str) -> None:
    """A conversation of many turns, of one long turn, or of equal turns is counted as ``/tokenize`` counts it.

    Gateways keep the last turns alone, cut long texts, and take equal turns, or two of one role, for one.
    """
    # A chat template may add a long system prompt of its own.
    template = endpoint.tokenize(messages="x")
    texts = _turns_of(shape, (template.max_model_len or 2048) - template.count)
    messages = [{"role": ("user", "assistant")[turn % 2], "content": text} for turn, text in enumerate(texts)]
    if shape == "repeated-turns":
        again = [*messages, messages[-1]]
        body = {"model": endpoint.target.model, "messages": again}
        # Some chat templates refuse two turns of one role.
        messages = again if endpoint.raw("POST", "/tokenize", json=body).status_code == 200 else messages
    counted = endpoint.tokenize(messages=messages).count
    usage = endpoint.chat(messages, max_tokens=1, temperature=0).usage
    said = f"a conversation of {len(messages)} turns, {sum(map(len, texts))} characters"
    assert usage.prompt_tokens == counted, (
        f"{said}: usage reports {usage.prompt_tokens} prompt tokens, /tokenize {counted}"
    )


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

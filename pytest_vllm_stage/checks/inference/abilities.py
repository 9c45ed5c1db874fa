"""What a model shows that it cannot do, where one answer makes it certain; all else is for its profile to say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from pytest_vllm_stage.checks.inference.liveness import FirstAnswer
from pytest_vllm_stage.core.skips import does_not_apply
from pytest_vllm_stage.serving.answers import Answer, read_reasoning, read_text
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.failures import RequestFailed, shown
from pytest_vllm_stage.settings.profile import ModelProfile

#: How a reasoning begins that no parser takes out of the text.
_MARKS = ("<think>", "[THINK]", "<|channel|>analysis")
#: What vLLM applies to the answer alone, after the reasoning.
_AFTER_REASONING = ("auto_tools", "structured_outputs", "tools")
#: vLLM's own words for parameters that a configuration of the engine rules out, ``min_p`` and ``logit_bias`` so far;
#: and those of chat templates without a place for a system prompt: Gemma 2's, Mistral 7B's.
_RULED_OUT = re.compile(
    r"The [\w ]+ sampling parameters are not yet supported with speculative decoding|"
    r"System role not supported|Only user and assistant roles are supported"
)
#: Names of models that are trained on conversations: their tokenizer has a template, unless it was lost on the way.
_CONVERSES = re.compile(r"(?<![a-z])(instruct|instruction|chat|it|assistant)(?![a-z])", re.IGNORECASE)
#: Tokens that show a reasoning, where one token is only the mark of its beginning.
_FEW_TOKENS = 32
#: Tokens within which a model comes to its answer to a simple question.
REASONING_TOKENS = 2048


def find_lacks(endpoint: EndpointClient, first: FirstAnswer, profile: ModelProfile | None) -> dict[str, str]:
    """Capability to why the model does not have it.

    Args:
        endpoint: The model.
        first: What came of its first request.
        profile: What is declared of it: a model whose chats were recorded, or that calls tools, has a template to lose,
            as has one whose name says that it converses.
    """
    if first.lacks_template:
        chats = profile is not None and (profile.reference or profile.tool_format)
        return (
            {}
            if chats or _converses(endpoint)
            else {"chat": f"its tokenizer has no chat template, says the server: {first.lacks_template}"}
        )
    why = _describe_reasoning(first.message or {})
    if not why and first.message is not None and read_text(first.message) is None:
        why = _look_longer(endpoint)
    return dict.fromkeys(("content", *_AFTER_REASONING), why) if why else {}


def _converses(endpoint: EndpointClient) -> bool:
    """Whether a name of the model, or the source that the server names, is that of a model for conversations."""
    names = [endpoint.target.model]
    with suppress(RequestFailed):  # the checks report it
        names += [str(model.get("root") or "") for model in endpoint.models() if model.get("id") == names[0]]
    return any(map(_CONVERSES.search, names))


def _look_longer(endpoint: EndpointClient) -> str:
    with endpoint.with_new_connections() as client:
        client.reasons = True
        try:
            return _describe_reasoning(client.chat("Say hello.", max_tokens=_FEW_TOKENS).choice.get("message") or {})
        except RequestFailed:
            return ""  # the checks report it


def _describe_reasoning(message: Mapping[str, Any]) -> str:
    content = message.get("content")
    if reasoning := read_reasoning(message):
        return "" if content else f"it reasons before it answers: its first tokens are the reasoning {reasoning!r}"
    text = content.lstrip() if isinstance(content, str) else ""
    return f"it reasons before it answers: its text begins with {text!r}" if text.startswith(_MARKS) else ""


def find_ruled_out(text: str) -> str:
    """The server's sentence that its configuration or its chat template rules a request out.

    It is empty where a failure does not quote it.
    """
    found = _RULED_OUT.search(text)
    return found[0] if found else ""


def wait_for_content(endpoint: EndpointClient, question: str) -> Answer:
    """The answer of a model that reasons first, its content included.

    Raises:
        RequestFailed: it ended without content, as where a parser takes every answer for reasoning.
    """
    limit = min(REASONING_TOKENS, (endpoint.tokenize("x").max_model_len or REASONING_TOKENS) // 2)
    answer = endpoint.chat(question, temperature=0, max_tokens=limit)
    message = answer.choice["message"]
    if message.get("content"):
        return answer
    if answer.finish_reason == "length":
        does_not_apply(f"{endpoint.target.model} reasons for longer than {limit} tokens before it answers")
    raise RequestFailed(
        f"the answer ended by itself ({answer.finish_reason!r}) with empty content, and all its text is reasoning: "
        f"{shown(read_reasoning(message))}",
        hint="compare --reasoning-parser with the model: one that does not fit takes every answer for reasoning",
    )

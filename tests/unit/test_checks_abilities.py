"""A model shows by one answer that it has no chat template, or that it reasons before it answers."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from pytest_vllm_stage.checks.inference.abilities import find_lacks
from pytest_vllm_stage.checks.inference.liveness import ask_first, select_grammar_backend
from pytest_vllm_stage.serving.answers import Answer
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.failures import RequestFailed
from pytest_vllm_stage.serving.target import Target

REFUSALS = (
    "As of transformers v4.44, default chat template is no longer allowed, so you must provide a chat template if the "
    "tokenizer does not define one.",
    "Cannot use chat template functions because tokenizer.chat_template is not set and no template argument was "
    "passed!",
    "This model does not have a chat template.",
)


class Server:
    """Answers chats with the messages that it is given, one after the other."""

    def __init__(self, *messages: dict[str, Any], refusal: str = "", root: str = "") -> None:
        self.messages = list(messages)
        self.refusal = refusal
        self.root = root
        self.paths: list[str] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
        if request.url.path == "/metrics":
            return httpx.Response(404)
        if request.url.path == "/v1/models":
            return httpx.Response(200, json={"data": [{"id": "m", "root": self.root}]})
        if request.url.path == "/v1/completions":
            return httpx.Response(200, json={"choices": [{"text": "a"}]})
        if self.refusal:
            return httpx.Response(400, json={"error": {"message": self.refusal, "code": 400}})
        message = self.messages.pop(0) if len(self.messages) > 1 else self.messages[0]
        return httpx.Response(200, json={"choices": [{"message": message, "finish_reason": "length"}]})


class Endpoint(EndpointClient):
    """Sends to a server of this process over every connection."""

    def __init__(self, server: Server) -> None:
        self.server = server
        super().__init__(Target("full", "m", "http://server"), transport=httpx.MockTransport(server))

    def with_new_connections(self, *, silence_timeout_s: float | None = None) -> EndpointClient:
        return Endpoint(self.server)


def find(server: Server) -> dict[str, str]:
    with Endpoint(server) as endpoint:
        return find_lacks(endpoint, ask_first(endpoint), None)


@pytest.mark.parametrize("refusal", REFUSALS)
def test_refusal_for_lack_of_a_template_is_recognised(refusal: str) -> None:
    server = Server(refusal=refusal)
    lacks = find(server)
    assert set(lacks) == {"chat"}
    assert json.dumps(refusal) in lacks["chat"]
    assert server.paths.count("/v1/completions") == 1


@pytest.mark.parametrize(
    ("root", "has_lost_it"),
    [
        ("RedHatAI/Mistral-Small-24B-Instruct-2501-quantized.w4a16", True),
        ("google/gemma-3-4b-it", True),
        ("meta-llama/Llama-2-7b-chat-hf", True),
        ("/mnt/models/Qwen2.5-0.5B-Instruct", True),
        ("/mnt/models", False),
        ("ibm-granite/granite-3.3-2b-base", False),
        ("bigscience/bloom-560m", False),
        ("models/bitnet-capital", False),
    ],
)
def test_model_for_conversations_lacks_no_template_but_has_lost_it(root: str, has_lost_it: bool) -> None:
    assert (find(Server(refusal=REFUSALS[0], root=root)) == {}) is has_lost_it


@pytest.mark.parametrize(
    "refusal",
    ["The model `m` does not exist.", "max_tokens must be at least 1", "chat template kwargs are not valid JSON"],
)
def test_other_refusal_lacks_nothing(refusal: str) -> None:
    server = Server(refusal=refusal)
    assert find(server) == {}
    assert "/v1/completions" not in server.paths


@pytest.mark.parametrize(
    "messages",
    [
        [{"content": None, "reasoning": "Okay"}],
        [{"content": None, "reasoning_content": "Okay"}],
        [{"content": "", "reasoning_content": "Okay"}],
        [{"content": None, "reasoning": None, "reasoning_content": "Okay"}],
        # One token is the mark of its beginning, which parsers take out of the text.
        [{"content": None, "reasoning": ""}, {"content": None, "reasoning": "The user"}],
        [{"content": None}, {"content": None, "reasoning": "The user"}],
        # Without a parser.
        [{"content": "<think>"}],
        [{"content": "\n[THINK]Well"}],
    ],
)
def test_reasoning_before_the_answer_is_recognised(messages: list[dict[str, Any]]) -> None:
    lacks = find(Server(*messages))
    assert set(lacks) == {"content", "structured_outputs", "tools", "auto_tools"}
    assert lacks["content"].startswith("it reasons before it answers: ")


@pytest.mark.parametrize(
    "message",
    [
        {"content": "Hello", "reasoning": None},
        {"content": "", "reasoning": None},
        {"content": "Hello", "reasoning_content": ""},
        {"content": "Hello"},
        {"content": "", "tool_calls": []},
    ],
)
def test_answer_with_content_lacks_nothing_and_is_asked_for_once(message: dict[str, Any]) -> None:
    server = Server(message)
    assert find(server) == {}
    assert server.paths.count("/v1/chat/completions") == 1


def test_answer_without_any_text_is_a_failure_unless_the_model_reasons() -> None:
    body = {"choices": [{"message": {"content": None, "reasoning": None}}]}
    with pytest.raises(RequestFailed, match="no text in its first choice"):
        Answer.of(body)
    assert Answer.of(body, reasons=True).text == ""
    assert Answer.of({"choices": [{"message": {"content": "b", "reasoning": "a"}}]}).text == "ab"
    with pytest.raises(RequestFailed, match="no text in its first choice"):
        Answer.of({"choices": [{"message": {"content": ["b"]}}]}, reasons=True)


def test_the_first_request_with_a_grammar_is_a_simple_choice_whatever_comes_of_it() -> None:
    bodies: list[dict[str, Any]] = []

    def refuse(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(500, text="Internal Server Error")

    with EndpointClient(Target("full", "m", "http://server"), transport=httpx.MockTransport(refuse)) as endpoint:
        select_grammar_backend(endpoint)
    assert [body["structured_outputs"] for body in bodies] == [{"choice": ["Hello"]}]

"""Does each model answer its own clients, and a protected one no others?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_vllm_stage import EndpointClient, does_not_apply
from pytest_vllm_stage.serving.client import CHAT
from pytest_vllm_stage.stage.protection import ENABLE_AUTH

if TYPE_CHECKING:
    import httpx

WRONG = {"authorization": "Bearer wrong-token-of-a-client"}


def ask(client: EndpointClient, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
    """The responses of a path that lists and of one that generates."""
    yield client.raw("GET", "/v1/models", headers=headers)
    yield client.raw("POST", CHAT, json=client.chat_body("Say hello.", max_tokens=1), headers=headers)


def describe(response: httpx.Response) -> str:
    """The request and its status, for a message."""
    return f"{response.request.method} {response.request.url.path} answered {response.status_code}"


def test_model_answers_its_own_clients(endpoint: EndpointClient) -> None:
    """The model's paths answer 200: with the token of its ServiceAccount, or VLLM_STAGE_API_KEY, where it is protected.

    The proxy asks whether the token's user may ``get`` the InferenceService: a missing RoleBinding is 403.
    """
    account, model = endpoint.target.token_account, endpoint.target.model
    can_i = f"kubectl auth can-i get inferenceservices/{model} --as=system:serviceaccount:NAMESPACE:{account}"
    with_token, hint = (f" with the token of {account}", f"\n  next: {can_i}") if account else ("", "")
    for response in ask(endpoint):
        assert response.status_code == 200, (
            f"{describe(response)}{with_token}, expected 200: {response.text[:300]!r}{hint}"
        )


def test_protected_model_alone_requires_a_token(endpoint: EndpointClient) -> None:
    """A protected model answers 401 or 403 without a token and with a wrong one; any other answers every client.

    The annotation only asks for a proxy: a Route or a Service that bypasses it serves everyone. A proxy in front of a
    model that is not declared as protected refuses clients that the declaration promised an answer.
    """
    target = endpoint.target
    if not target.token_account:
        if target.api_key:
            does_not_apply("VLLM_STAGE_API_KEY is configured for a model that its InferenceService does not protect")
        for response in ask(endpoint):
            assert response.status_code == 200, (
                f"{describe(response)} without a token, expected 200: {target.model} has no annotation {ENABLE_AUTH}"
            )
        return
    with EndpointClient(dataclasses.replace(target, api_key=None)) as anonymous:
        for what, headers in (("without a token", None), ("with a wrong token", WRONG)):
            for response in ask(anonymous, headers):
                assert response.status_code in (401, 403), (
                    f"{describe(response)} {what}, expected 401 or 403: {target.model} is protected, and "
                    f"{target.base_url} bypasses the proxy, or the proxy accepts everyone"
                )

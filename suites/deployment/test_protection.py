"""Does each protected model answer its own clients, and no others?"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING

import pytest

from pytest_vllm_stage import EndpointClient, does_not_apply
from pytest_vllm_stage.serving.client import CHAT
from pytest_vllm_stage.stage.protection import ENABLE_AUTH

if TYPE_CHECKING:
    import httpx

WRONG = {"authorization": "Bearer wrong-token-of-a-client"}


@pytest.fixture
def protected(endpoint: EndpointClient) -> EndpointClient:
    """The client of a model whose proxy reviews tokens."""
    if not endpoint.target.token_account:
        does_not_apply(f'the model is not protected: annotation {ENABLE_AUTH}: "true", or token_account in its profile')
    assert endpoint.target.api_key is not None
    return endpoint


def ask(client: EndpointClient, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
    """The responses of a path that lists and of one that generates."""
    yield client.raw("GET", "/v1/models", headers=headers)
    yield client.raw("POST", CHAT, json=client.chat_body("Say hello.", max_tokens=1), headers=headers)


def describe(response: httpx.Response) -> str:
    """The request and its status, for a message."""
    return f"{response.request.method} {response.request.url.path} answered {response.status_code}"


def test_protected_model_answers_with_the_token(protected: EndpointClient) -> None:
    """With the ServiceAccount's token, or that of VLLM_STAGE_API_KEY, the model's paths answer 200.

    The proxy asks whether the token's user may ``get`` the InferenceService: a missing RoleBinding is 403.
    """
    account, model = protected.target.token_account, protected.target.model
    for response in ask(protected):
        assert response.status_code == 200, (
            f"{describe(response)} with the token of {account}, expected 200: {response.text[:300]!r}\n"
            f"  next: kubectl auth can-i get inferenceservices/{model} --as=system:serviceaccount:NAMESPACE:{account}"
        )


def test_protected_model_refuses_requests_without_the_token(protected: EndpointClient) -> None:
    """Without a token, and with a wrong one, the model's paths answer 401 or 403.

    The annotation only asks for a proxy: a Route or a Service that bypasses it serves everyone.
    """
    with EndpointClient(dataclasses.replace(protected.target, api_key=None)) as anonymous:
        for what, headers in (("without a token", None), ("with a wrong token", WRONG)):
            for response in ask(anonymous, headers):
                assert response.status_code in (401, 403), (
                    f"{describe(response)} {what}, expected 401 or 403: {protected.target.model} is protected, and "
                    f"{protected.target.base_url} bypasses the proxy, or the proxy accepts everyone"
                )

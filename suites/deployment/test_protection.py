"""Does each model answer its own clients, and a protected one no others?"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING

from pytest_vllm_stage import EndpointClient, does_not_apply
from pytest_vllm_stage.core.secret import redact
from pytest_vllm_stage.serving.client import COMPLETIONS
from pytest_vllm_stage.serving.failures import shown
from pytest_vllm_stage.serving.gateway_errors import explain_gateway_error, refuses_client
from pytest_vllm_stage.stage.observe import health
from pytest_vllm_stage.stage.protection import ENABLE_AUTH, find_plain_routes

if TYPE_CHECKING:
    import httpx

    from pytest_vllm_stage import StageReader

#: What kube-rbac-proxy asked the API server for, in its 403.
REVIEWED_VERB = re.compile(r"\bverb=([a-z]+)")
WRONG = {"authorization": "Bearer wrong-token-of-a-client"}


def ask(client: EndpointClient, headers: dict[str, str] | None = None) -> Iterator[httpx.Response]:
    """The responses of a path that lists and of one that generates, which a model without a chat template has too."""
    yield client.raw("GET", "/v1/models", headers=headers)
    yield client.raw("POST", COMPLETIONS, json=client.completion_body("Hello", max_tokens=1), headers=headers)


def describe_sender(response: httpx.Response) -> str:
    """Who answered in the place of the model, for a message; empty where the model may have."""
    gateway = explain_gateway_error(response, response.text)
    return f", sent by {gateway.sender}" if gateway else ""


def describe(response: httpx.Response) -> str:
    """The request and its status, for a message."""
    return f"{response.request.method} {response.request.url.path} answered {response.status_code}"


def test_model_answers_its_own_clients(endpoint: EndpointClient) -> None:
    """The model's paths answer 200: with the token of its ServiceAccount, or VLLM_STAGE_API_KEY, where it is protected.

    The proxy asks whether the token's user may ``get`` the InferenceService: a missing RoleBinding is 403. Some proxies
    ask for the verb of the request's method: with ``get`` alone the models are listed, and no question is answered.
    """
    account, model = endpoint.target.token_account, endpoint.target.model
    with_token = f" with the token of {account}" if account else ""
    for response in ask(endpoint):
        verb = REVIEWED_VERB.search(response.text)
        can_i = f"kubectl auth can-i {verb[1] if verb else 'get'} inferenceservices/{model}"
        hint = f"\n  next: {can_i} --as=system:serviceaccount:NAMESPACE:{account}" if account else ""
        assert response.status_code == 200, (
            f"{describe(response)}{with_token}{describe_sender(response)}, expected 200: "
            f"{redact(shown(response.text))}{hint}"
        )


def test_protected_model_alone_requires_a_token(endpoint: EndpointClient) -> None:
    """A protected model refuses clients without a token or with a wrong one; any other answers every client.

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
                assert refuses_client(response), (
                    f"{describe(response)} {what}, expected 401 or 403: {target.model} is protected, and "
                    f"{target.base_url} bypasses the proxy, or the proxy accepts everyone"
                )


def test_no_route_takes_tokens_unencrypted(reader: StageReader, kubectl: str) -> None:
    """No Route leads to a protected model without TLS, or by HTTP too: a client's token could be read on the way."""
    services = reader.listed("InferenceService")
    assert services, f"the namespace has no InferenceService\n  next: {kubectl} get inferenceservices"
    routes = reader.listed_where_allowed("Route.route.openshift.io")
    lines = [line for service in services for line in find_plain_routes(service, routes)]
    assert not lines, health.message("tokens travel unencrypted", lines, f"{kubectl} get routes -o yaml")

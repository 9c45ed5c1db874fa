"""What an answer that is not the expected one means: who sent it, whose fault it is, and what to do next."""

from __future__ import annotations

import json

import httpx

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError, StageFailure
from pytest_vllm_stage.core.gateways import Gateway, GatewayRefusal, HttpAnswer, identify_gateway, leads_to_https

#: The registry's token. It is an environment variable alone: a command line is visible to every user.
TOKEN_VARIABLE = "VLLM_STAGE_REGISTRY_TOKEN"  # noqa: S105 - a name, not a token


class RegistryUnavailable(StageFailure):
    """The registry cannot answer now; it may in a moment.

    Args:
        message: What was asked, and what came.
        by_gateway: Something in front of the registry says so: nothing is known about the registry itself.
    """

    def __init__(self, message: str, *, hint: str = "", by_gateway: bool = False) -> None:
        super().__init__(message, hint=hint)
        self.by_gateway = by_gateway


class RegistryRefused(StageFailure):
    """The registry understood a request and refused it.

    Args:
        message: What was asked, and the server's answer.
        code: The HTTP status.
        hint: What to do next.
    """

    def __init__(self, message: str, *, code: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


def read_answer(answer: httpx.Response, secret: str = "") -> HttpAnswer:
    """The answer as plain data; ``secret`` is masked, in case the sender repeats it."""
    body = answer.text.replace(secret, "***") if secret else answer.text
    return HttpAnswer(answer.status_code, {name.lower(): value for name, value in answer.headers.items()}, body)


def judge_answer(answer: HttpAnswer, request: str, url: str, *, has_token: bool) -> StageError | None:
    """The error that an answer amounts to; None where the registry itself answers, and not that it is unavailable.

    Args:
        answer: The answer.
        request: Method and path.
        url: Root of the registry.
        has_token: The request carried a token.
    """
    gateway = identify_gateway(answer)
    if gateway is not None:
        return _judge_gateway(gateway, answer, request, url, has_token=has_token)
    said = f"the registry at {url} answers {answer.status} to {request}: {reason_of(answer)}"
    if answer.status == 401:
        return EnvironmentUnusable(said, hint=_token_hint(has_token=has_token))
    if answer.status == 403:
        return EnvironmentUnusable(said, hint=f"who may read it? curl -i {url}/api/model_registry/v1/registered_models")
    if answer.status >= 500 or answer.status == 429:
        return RegistryUnavailable(said)
    return None


def _judge_gateway(gateway: Gateway, answer: HttpAnswer, request: str, url: str, *, has_token: bool) -> StageError:
    what = f"{gateway.name} answers {answer.status} in place of the registry at {url} to {request}"
    message = f"{what}: {reason_of(answer)}"
    if gateway.refusal is GatewayRefusal.UNAVAILABLE:
        return RegistryUnavailable(message, hint=gateway.advice, by_gateway=True)
    if leads_to_https(answer, url):
        return EnvironmentUnusable(message, hint=f"the registry is at https: --stage-registry-url=https{url[4:]}")
    hints = {
        GatewayRefusal.LOGIN: _token_hint(has_token=has_token),
        GatewayRefusal.NO_ROUTE: f"no route leads from there to a Model Registry: check host and path of {url}",
    }
    return EnvironmentUnusable(message, hint=gateway.advice or hints.get(gateway.refusal, f"curl -i {url}"))


def _token_hint(*, has_token: bool) -> str:
    if has_token:
        return f"the token of {TOKEN_VARIABLE} is not accepted: set one that is valid now, for example: oc whoami -t"
    return f"set {TOKEN_VARIABLE}, for example to the output of: oc whoami -t"


def reason_of(answer: HttpAnswer) -> str:
    """The sender's own words."""
    try:
        return str(json.loads(answer.body)["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return answer.excerpt or "no body"

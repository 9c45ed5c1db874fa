"""What sent a response in the place of the model's server, and what to do next."""

from __future__ import annotations

from typing import NamedTuple

import httpx

from pytest_vllm_stage.core.gateways import Gateway, GatewayRefusal, HttpAnswer, identify_gateway, leads_to_https
from pytest_vllm_stage.serving.failures import shown

#: OpenShift's router ends an exchange after 30 s without a byte from the server, unless the Route has this annotation.
ROUTE_TIMEOUT = "haproxy.router.openshift.io/timeout"


class GatewayError(NamedTuple):
    """Who sent a response, its text without markup, and the next command."""

    sender: str
    text: str
    hint: str


def explain_gateway_error(response: httpx.Response, body: str) -> GatewayError | None:
    """Explain a response that a gateway sent itself; None where the server itself may have sent it.

    Args:
        response: The response, which was read.
        body: Its text, without secrets.
    """
    headers = {name.lower(): value for name, value in response.headers.items()}
    answer = HttpAnswer(response.status_code, headers, body)
    gateway = identify_gateway(answer)
    if gateway is None:
        return None
    url = str(response.request.url)
    if leads_to_https(answer, url):
        return GatewayError(gateway.name, answer.excerpt, f"the server is at https: https{url[4:]}")
    return GatewayError(gateway.name, answer.excerpt, _advise(response.status_code, gateway, url))


def refuses_client(response: httpx.Response) -> bool:
    """Whether a response refuses a client for its credentials: 401 or 403, or, of a proxy for browsers, to the login.

    OpenShift's oauth-proxy redirects every client that it does not know (--skip-provider-button).
    """
    if response.status_code in (httpx.codes.UNAUTHORIZED, httpx.codes.FORBIDDEN):
        return True
    gateway = identify_gateway(HttpAnswer(response.status_code, {**response.headers}, ""))
    return response.is_redirect and gateway is not None and gateway.refusal is GatewayRefusal.LOGIN


def describe_refusal(response: httpx.Response) -> str:
    """The status of a response that no error was made of, who sent it, and what helps, for a check's message."""
    explained = explain_gateway_error(response, response.text)
    if explained is None:
        return f"answered {response.status_code}: {shown(response.text)}"
    hint = f"\n  next: {explained.hint}" if explained.hint else ""
    return f"answered {response.status_code}, sent by {explained.sender}: {shown(explained.text)}{hint}"


def _advise(status: int, gateway: Gateway, url: str) -> str:
    if gateway.refusal is GatewayRefusal.FORBIDDEN and "mesh" not in gateway.name:
        return f"{gateway.advice}; docs/access.md, Protected models"
    if gateway.advice:
        return gateway.advice
    if status == httpx.codes.GATEWAY_TIMEOUT:
        return f"raise the gateway's time limit; of a Route: kubectl annotate route NAME {ROUTE_TIMEOUT}=300s"
    if status == httpx.codes.SERVICE_UNAVAILABLE and url.startswith("http:") and "OpenShift" in gateway.name:
        return (
            "its Route may allow https alone (spec.tls.insecureEdgeTerminationPolicy): try https"
            f"{url[4:]}; else no server is behind it: kubectl get endpointslices"
        )
    if status == httpx.codes.SERVICE_UNAVAILABLE:
        return "no server is behind the gateway: kubectl get endpointslices, and the model's pods"
    if gateway.refusal is GatewayRefusal.LOGIN:
        return "docs/access.md, Protected models: whose token is sent, and what it must allow"
    if gateway.refusal is GatewayRefusal.NO_ROUTE:
        return "no route leads from there to the model: check host and path, and the Route or HTTPRoute"
    if httpx.codes.is_redirect(status):
        return "name the address that it leads to: most clients follow it with GET, without the request's body"
    return ""

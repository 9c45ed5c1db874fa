"""Who answered in place of a Model Registry, a model and an object store: named alike, with advice that fits."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import pytest
from botocore.exceptions import ConnectTimeoutError

from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.core.gateways import HttpAnswer, explain_silence, identify_gateway
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.publication.registry.client import RegistryClient
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.gateway_errors import refuses_client
from pytest_vllm_stage.serving.target import Target
from pytest_vllm_stage.stage.s3 import ObjectStore
from tests.unit.web_server import Reply, web_server

TOKEN = "sha256~not-for-logs"
TEXT, HTML, JSON = ({"content-type": kind} for kind in ("text/plain", "text/html", "application/json"))
ENVOY = {**TEXT, "server": "istio-envoy"}
NGINX = {**HTML, "server": "nginx/1.25"}
MESH = "the service mesh's proxy (istio-envoy)"
#: Words of the hints that ask for other credentials.
TOKEN_ADVICE = ("VLLM_STAGE_REGISTRY_TOKEN", "whose token is sent", "asks for a login")
OAUTH2_PROXY = "<html><h1>403</h1><p>{}</p><a href='/oauth2/sign_in'>Sign in</a>Secured with OAuth2 Proxy v7.6.0</html>"
API_STATUS = '{{"kind":"Status","apiVersion":"v1","status":"Failure","message":"{}","code":{}}}'
HAPROXY_403 = "<html><body><h1>403 Forbidden</h1>\nRequest forbidden by administrative rules.\n</body></html>"


@dataclass(frozen=True)
class Sent:
    """An answer of something in front of a server, and what an error reports of it.

    Attributes:
        reply: The answer.
        sender: Who sent it.
        says: Its own words.
        token: The hint asks for other credentials.
        hint: Words of the hint.
    """

    reply: Reply
    sender: str
    says: str
    token: bool = False
    hint: str = ""


REQUEST_AUTHENTICATION = "the mesh's RequestAuthentication accepts"
ANSWERS = {
    "mesh denies": Sent(Reply(403, "RBAC: access denied", ENVOY), MESH, "RBAC: access denied", hint="AuthorizationPol"),
    "token missing": Sent(Reply(401, "Jwt is missing", ENVOY), MESH, "Jwt is missing", token=True),
    "token expired": Sent(Reply(401, "Jwt is expired", ENVOY), MESH, "Jwt is expired", token=True),
    "opaque token": Sent(
        Reply(401, "Jwt is not in the form of Header.Payload.Signature with two dots and 3 sections", ENVOY),
        MESH,
        "Jwt is not in the form of",
        token=True,
    ),
    "another audience": Sent(
        Reply(403, "Audiences in Jwt are not allowed", ENVOY), MESH, "Audiences in Jwt", hint=REQUEST_AUTHENTICATION
    ),
    "another issuer": Sent(
        Reply(401, "Jwt issuer is not configured", ENVOY), MESH, "Jwt issuer", hint=REQUEST_AUTHENTICATION
    ),
    "another key": Sent(
        Reply(401, "Jwks doesn't have key to match kid or alg from Jwt", ENVOY),
        MESH,
        "doesn't have key",
        hint=REQUEST_AUTHENTICATION,
    ),
    "fast clock": Sent(Reply(401, "Jwt is not yet valid", ENVOY), MESH, "not yet valid", hint="compare the clocks"),
    "keys not fetched": Sent(
        Reply(401, "Jwks remote fetch is failed", ENVOY), MESH, "Jwks remote fetch", hint="istiod reach the jwksUri"
    ),
    "without its name": Sent(
        Reply(403, "Audiences in Jwt are not allowed", TEXT),
        "the service mesh's proxy (envoy)",
        "Audiences",
        hint=REQUEST_AUTHENTICATION,
    ),
    "mesh limits the rate": Sent(Reply(429, "local_rate_limited", ENVOY), MESH, "local_rate_limited"),
    "no upstream": Sent(Reply(503, "no healthy upstream", ENVOY), MESH, "no healthy upstream"),
    "oauth2-proxy, unknown": Sent(
        Reply(403, OAUTH2_PROXY.format("Sign in with Keycloak"), HTML), "oauth2-proxy", "Sign in with", token=True
    ),
    "oauth2-proxy, denied": Sent(
        Reply(403, OAUTH2_PROXY.format("You do not have permission to access this resource."), HTML),
        "oauth2-proxy",
        "do not have permission",
        hint="no access",
    ),
    "Authorino, no credentials": Sent(
        Reply(401, "", {"x-ext-auth-reason": "credential not found"}), "(Authorino)", "credential not found", token=True
    ),
    "Authorino, not authorized": Sent(
        Reply(403, "", {"x-ext-auth-reason": "not authorized: unknown reason"}),
        "(Authorino)",
        "not authorized",
        hint="the AuthPolicy (AuthConfig)",
    ),
    "Authorino, unknown host": Sent(
        Reply(404, "", {"x-ext-auth-reason": "Service not found"}), "(Authorino)", "not found", hint="authconfigs"
    ),
    "kube-rbac-proxy, unknown": Sent(Reply(401, "Unauthorized\n", TEXT), "kube-rbac-proxy", "Unauthorized", token=True),
    "kube-rbac-proxy, denied": Sent(
        Reply(403, "Forbidden (user=system:serviceaccount:ci:run, verb=get, resource=services)", TEXT),
        "kube-rbac-proxy",
        "user=system:serviceaccount:ci:run",
        hint="RoleBinding",
    ),
    "kube-rbac-proxy cannot ask": Sent(
        Reply(500, "Authorization error (user=u, verb=get)", TEXT), "kube-rbac-proxy", "Authorization error"
    ),
    "API server": Sent(
        Reply(403, API_STATUS.format("services is forbidden: User ci cannot get", 403), JSON),
        "the Kubernetes API server",
        "services is forbidden",
        hint="RoleBinding",
    ),
    "Linkerd denies": Sent(
        Reply(403, "", {"l5d-proxy-error": "unauthorized request on route"}),
        "the service mesh's proxy (Linkerd)",
        "unauthorized request on route",
        hint="AuthorizationPolicy of Linkerd",
    ),
    "Linkerd has no server": Sent(Reply(502, "", {"l5d-proxy-error": "connect error"}), "(Linkerd)", "connect error"),
    "Cilium denies": Sent(Reply(403, "Access denied\r\n", TEXT), "Cilium", "Access denied", hint="CiliumNetworkPolicy"),
    "mesh denies in JSON": Sent(
        Reply(403, '{"code": 403, "message": "RBAC: access denied"}', JSON),
        "(envoy)",
        "RBAC: access denied",
        hint="mesh",
    ),
    "mesh denies in a page": Sent(
        Reply(403, "<html><body>RBAC: access denied</body></html>", HTML), "(envoy)", "RBAC: access denied", hint="mesh"
    ),
    "3scale denies": Sent(
        Reply(403, "Authentication parameters missing", TEXT), "(3scale)", "missing", hint="of its own"
    ),
    "3scale has no route": Sent(Reply(404, "No Mapping Rule matched", TEXT), "(3scale)", "No Mapping Rule"),
    "3scale's limit": Sent(Reply(429, "Limits exceeded", TEXT), "(3scale)", "Limits exceeded"),
    "AWS denies": Sent(
        Reply(403, '{"message":"Missing Authentication Token"}', {**JSON, "x-amzn-errortype": "MissingAuthentication"}),
        "(AWS)",
        "Missing Authentication Token",
        hint="a key or a plan of its own",
    ),
    "Apigee denies": Sent(
        Reply(401, '{"fault":{"faultstring":"Invalid ApiKey"}}', JSON), "(Apigee)", "Invalid ApiKey", hint="of its own"
    ),
    "Azure denies": Sent(
        Reply(401, '{ "statusCode": 401, "message": "Access denied due to missing subscription key." }', JSON),
        "(Azure API Management)",
        "missing subscription key",
        hint="of its own",
    ),
    "Tyk denies": Sent(
        Reply(403, '{"error": "Access to this API has been disallowed"}', JSON),
        "(Tyk)",
        "disallowed",
        hint="of its own",
    ),
    "Cloudflare denies": Sent(Reply(403, "error code: 1020", TEXT), "(Cloudflare)", "1020", hint="no access"),
    "proxy denies": Sent(
        Reply(403, "<html><title>ERROR</title></html>", {**HTML, "x-squid-error": "ERR_ACCESS_DENIED 0"}),
        "a forward proxy (Squid)",
        "ERROR",
        hint="NO_PROXY",
    ),
    "proxy asks for a password": Sent(Reply(407, "denied", TEXT), "a forward proxy", "denied", hint="HTTPS_PROXY"),
    "Kong asks for a key": Sent(
        Reply(401, '{"message":"No API key found in request"}', {**JSON, "server": "kong/3.4.0"}),
        "the API gateway (kong/3.4.0)",
        "No API key found",
        token=True,
    ),
    "APISIX denies": Sent(
        Reply(403, '{"message":"The consumer is forbidden."}', {**JSON, "server": "APISIX/3.8.0"}),
        "the API gateway (APISIX/3.8.0)",
        "The consumer is forbidden",
        hint="no access",
    ),
    "Identity-Aware Proxy": Sent(
        Reply(401, "Invalid IAP credentials: empty token", {**TEXT, "x-goog-iap-generated-response": "true"}),
        "Identity-Aware Proxy",
        "empty token",
        token=True,
    ),
    "Knative's queue is full": Sent(Reply(503, "pending request queue full\n", TEXT), "Knative", "queue full"),
    "load balancer without a server": Sent(
        Reply(
            503, "<html><head><title>503 Service Unavailable</title></head></html>", {**HTML, "server": "awselb/2.0"}
        ),
        "(awselb)",
        "503 Service Unavailable",
    ),
    "port that speaks TLS": Sent(
        Reply(400, "Client sent an HTTP request to an HTTPS server.\n"), "speaks TLS", "HTTPS server", hint="https"
    ),
    "Route's list of addresses": Sent(
        Reply(403, HAPROXY_403, HTML), "HAProxy", "administrative rules", hint="ip_whitelist"
    ),
    "nginx, long headers": Sent(
        Reply(400, "<html><h1>400 Bad Request</h1>Request Header Or Cookie Too Large</html>", NGINX),
        "(nginx)",
        "Cookie Too Large",
        hint="by a long token for example",
    ),
    "HAProxy, long headers": Sent(
        Reply(400, "<html><body><h1>400 Bad request</h1>\nYour browser sent an invalid request.\n</body></html>", HTML),
        "HAProxy",
        "invalid request",
        hint="tuningOptions.headerBufferBytes",
    ),
    "kube-rbac-proxy, long headers": Sent(
        Reply(431, "431 Request Header Fields Too Large", TEXT), "a proxy written in Go", "431", hint="by a long token"
    ),
    "nginx, large body": Sent(
        Reply(413, "<html><h1>413 Request Entity Too Large</h1></html>", NGINX),
        "(nginx)",
        "413 Request Entity",
        hint="client_max_body_size",
    ),
    "mesh, large body": Sent(Reply(413, "Payload Too Large", ENVOY), MESH, "Payload", hint="as long prompts are"),
    "nginx denies": Sent(
        Reply(403, "<html><h1>403 Forbidden</h1></html>", NGINX),
        "(nginx)",
        "403 Forbidden",
        hint="no access",
    ),
}


Ask = Callable[[], object]


@dataclass
class Gateway:
    """A server on loopback whose answer to everything is set, and how each client asks it."""

    url: str
    asks: dict[str, Ask]
    reply: Reply


@pytest.fixture(scope="module")
def gateway() -> Iterator[Gateway]:
    with web_server(lambda _: found.reply) as server:
        registry = RegistryClient(server.url, Journal(), token=Secret(TOKEN), patience_s=0.0)
        model = EndpointClient(Target("full", "m", server.url, api_key=Secret(TOKEN)))
        store = ObjectStore(server.url, Secret("accesskey"), Secret("secretkey"))
        s3 = store.client()

        def list_models() -> None:
            with store.readable_errors("list models"):
                s3.list_objects_v2(Bucket="models")

        found = Gateway(
            server.url,
            {"registry": lambda: registry.api, "model": lambda: model.chat("hello"), "store": list_models},
            Reply(200),
        )
        yield found
        for one in (registry, model, s3):
            one.close()


@pytest.mark.parametrize("asked", ["registry", "model", "store"])
@pytest.mark.parametrize("name", ANSWERS)
def test_sender_of_an_answer_is_named_with_advice_that_fits(gateway: Gateway, name: str, asked: str) -> None:
    sent = ANSWERS[name]
    gateway.reply = sent.reply
    with pytest.raises(StageError) as caught:
        gateway.asks[asked]()
    text = str(caught.value)
    assert sent.sender in text
    assert sent.says in text
    assert sent.hint in caught.value.hint
    assert any(words in text for words in TOKEN_ADVICE) == sent.token, text
    assert TOKEN not in text


def test_redirect_to_https_is_answered_with_the_address(gateway: Gateway) -> None:
    address = f"https{gateway.url[4:]}"
    gateway.reply = Reply(301, "", {"location": f"{address}/"})
    for ask in gateway.asks.values():
        with pytest.raises(StageError) as caught:
            ask()
        assert address in caught.value.hint


def test_route_for_https_alone_is_a_cause_of_the_routers_page(gateway: Gateway) -> None:
    """With ``insecureEdgeTerminationPolicy: None`` the router knows no Route for plain HTTP."""
    gateway.reply = Reply(503, "<html><h1>Application is not available</h1></html>", HTML)
    with pytest.raises(StageError) as caught:
        gateway.asks["model"]()
    assert "its Route may allow https alone" in caught.value.hint
    assert f"try https{gateway.url[4:]}" in caught.value.hint


def test_servers_own_answers_name_no_gateway() -> None:
    behind = {**ENVOY, "x-envoy-upstream-service-time": "3"}
    for status, headers, body in (
        (401, JSON, '{"error": "Unauthorized"}'),
        (403, behind, '{"message": "not yours"}'),
        (404, TEXT, "404 page not found\n"),
        (403, JSON, '{"message": "Authentication failed"}'),
        (429, JSON, '{"message": "Limits exceeded"}'),
        (400, JSON, '{"message": "a prompt about RBAC: access denied"}'),
        (400, JSON, '{"object": "error", "message": "Jwt is an odd prompt"}'),
    ):
        assert identify_gateway(HttpAnswer(status, headers, body)) is None, body


def test_dropped_packets_are_a_network_policys_and_nothing_else_is() -> None:
    for error in (httpx.ConnectTimeout("timed out"), ConnectTimeoutError(endpoint_url="http://minio:9000")):
        assert "NetworkPolicy" in explain_silence(error, "http://user@minio:9000/")
        assert "minio:9000 are dropped" in explain_silence(error, "http://user@minio:9000/")
    for other in (httpx.ConnectError("refused"), httpx.ReadTimeout("slow")):
        assert explain_silence(other, "http://minio:9000") == ""


@pytest.mark.parametrize(
    ("status", "location", "expected"),
    [
        (401, "", True),
        (403, "", True),
        (302, "https://oauth-openshift.apps.example.com/oauth/authorize?client_id=ns", True),
        (302, "https://models.example.com/v1/models/", False),
        (200, "", False),
        (404, "", False),
    ],
)
def test_refusal_of_a_client_is_a_status_or_a_redirect_to_a_login(status: int, location: str, expected: bool) -> None:
    response = httpx.Response(status, headers={"location": location} if location else {})
    assert refuses_client(response) is expected

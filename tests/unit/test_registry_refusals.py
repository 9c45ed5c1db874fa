"""Something in front of the Model Registry answers in its place: who it is, whose fault it is, what helps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError, StageFailure
from pytest_vllm_stage.core.gateways import MAX_EXCERPT, HttpAnswer
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.publication.registry.client import RegistryClient
from tests.unit.web_server import Reply, self_signed, web_server

TOKEN = "sha256~not-for-logs"
HTML = {"content-type": "text/html; charset=utf-8"}
JSON = {"content-type": "application/json"}
SET_TOKEN, RENEW_TOKEN = "set VLLM_STAGE_REGISTRY_TOKEN", "the token of VLLM_STAGE_REGISTRY_TOKEN is not accepted"


@dataclass
class Case:
    """An answer, and what must be reported: words of the message, words of the hint, with and without a token."""

    reply: Reply
    says: tuple[str, ...]
    hint: str
    hint_with_token: str | None = None
    error: type[StageError] = EnvironmentUnusable


ENVOY = {"server": "istio-envoy", "content-type": "text/plain"}
LOGIN_PAGE = "<!DOCTYPE html><html><head><title>Log In</title></head><body><a>Log in with OpenShift</a></body></html>"
ROUTER_PAGE = "<html><style>body {}</style><body><h1>Application is not available</h1></body></html>"
NGINX_PAGE = "<html><center><h1>{}</h1></center><hr><center>nginx/1.25.3</center></html>"
CASES = {
    "mesh denies": Case(
        Reply(403, "RBAC: access denied", ENVOY),
        ("the service mesh's proxy (istio-envoy) answers 403 in place of the registry", "RBAC: access denied"),
        "an AuthorizationPolicy of the mesh must allow this client",
    ),
    "mesh without a server header": Case(
        Reply(403, "RBAC: access denied"), ("the service mesh's proxy (envoy) answers 403",), "AuthorizationPolicy"
    ),
    "mesh has no upstream": Case(
        Reply(503, "no healthy upstream", ENVOY), ("the service mesh's proxy", "no healthy upstream"), "is the registry"
    ),
    "mesh has no route": Case(
        Reply(404, "", ENVOY), ("the service mesh's proxy (istio-envoy) answers 404",), "check host and path"
    ),
    "oauth-proxy's page": Case(
        Reply(403, LOGIN_PAGE, HTML), ("a login page", "answers 403", "Log in with OpenShift"), SET_TOKEN, RENEW_TOKEN
    ),
    "login page with 200": Case(Reply(200, LOGIN_PAGE, HTML), ("a login page", "answers 200"), SET_TOKEN, RENEW_TOKEN),
    "redirect to a login": Case(
        Reply(
            302, "", {"location": "https://oauth-openshift.apps.example.org/oauth/authorize?client_id=x&state=secret"}
        ),
        ("a redirect to oauth-openshift.apps.example.org/oauth/authorize answers 302",),
        SET_TOKEN,
        RENEW_TOKEN,
    ),
    "kube-rbac-proxy without a token": Case(
        Reply(401, "Unauthorized\n", {"content-type": "text/plain"}), ("kube-rbac-proxy",), SET_TOKEN, RENEW_TOKEN
    ),
    "kube-rbac-proxy knows the user": Case(
        Reply(403, "Forbidden (user=system:serviceaccount:ci:runner, verb=get, resource=services)"),
        ("kube-rbac-proxy", "user=system:serviceaccount:ci:runner"),
        "a RoleBinding must allow this user",
    ),
    "kube-rbac-proxy knows no user": Case(
        Reply(403, "Forbidden (user=system:anonymous, verb=get)"), ("system:anonymous",), SET_TOKEN, RENEW_TOKEN
    ),
    "Authorino": Case(
        Reply(401, "", {"x-ext-auth-reason": "credential not found"}), ("(Authorino)",), SET_TOKEN, RENEW_TOKEN
    ),
    "nginx": Case(
        Reply(502, NGINX_PAGE.format("502 Bad Gateway"), {**HTML, "server": "nginx/1.25.3"}),
        ("a web server (nginx) answers 502 in place of the registry", "502 Bad Gateway"),
        "is the registry ready?",
    ),
    "nginx has no route": Case(
        Reply(404, NGINX_PAGE.format("404 Not Found"), {**HTML, "server": "nginx/1.25.3"}),
        ("a web server (nginx) answers 404",),
        "check host and path",
    ),
    "OpenShift router": Case(
        Reply(503, ROUTER_PAGE, HTML),
        ("the OpenShift router answers 503", "is not available"),
        "is the registry ready?",
    ),
    "the registry asks for a token": Case(
        Reply(401, '{"code": "Unauthorized", "message": "no token"}', JSON),
        ("the registry at", "answers 401", ": no token"),
        SET_TOKEN,
        RENEW_TOKEN,
    ),
    "the registry refuses": Case(
        Reply(403, '{"code": "Forbidden", "message": "not yours"}', JSON),
        ("answers 403", "not yours"),
        "who may read it",
    ),
    "the registry behind a mesh is unavailable": Case(
        Reply(503, "", {**ENVOY, "x-envoy-upstream-service-time": "3"}),
        ("the registry at", "answers 503"),
        "is the registry ready?",
        error=StageFailure,
    ),
    "the registry has neither version": Case(
        Reply(404, "404 page not found\n", {"content-type": "text/plain"}),
        ("there is no Model Registry at", "v1 answers 404 (404 page not found)"),
        "curl -i",
        error=StageFailure,
    ),
    "another API": Case(
        Reply(200, "pong", {"content-type": "text/plain"}),
        ("there is no Model Registry at", "expected JSON, got text/plain", "pong"),
        "curl -i",
        error=StageFailure,
    ),
}


@contextmanager
def client_of(reply: Reply, token: str | None) -> Iterator[RegistryClient]:
    with web_server(lambda _: reply) as server:
        client = RegistryClient(server.url, Journal(), token=Secret(token) if token else None, patience_s=0.0)
        yield client
        client.close()


@pytest.mark.parametrize("token", [None, TOKEN], ids=["no token", "token"])
@pytest.mark.parametrize("name", CASES)
def test_who_answered_is_named_with_the_right_advice(name: str, token: str | None) -> None:
    case = CASES[name]
    with client_of(case.reply, token) as client, pytest.raises(StageError) as caught:
        _ = client.api
    error, hint = caught.value, (token and case.hint_with_token) or case.hint
    assert type(error) is case.error, str(error)
    assert hint in error.hint, str(error)
    assert client.url in error.message
    for words in case.says:
        assert words in error.message
    if SET_TOKEN not in case.hint:
        assert "VLLM_STAGE_REGISTRY_TOKEN" not in str(error), "no advice about a token that is not at fault"
    assert TOKEN not in str(error)
    assert "state=secret" not in str(error)
    assert not set("<>\x1b") & set(error.message)


def test_the_senders_words_are_bounded_and_masked() -> None:
    long = Reply(403, f"RBAC: access denied \x1b[31m {TOKEN} " + "x" * 5000, ENVOY)
    with client_of(long, TOKEN) as client, pytest.raises(EnvironmentUnusable) as caught:
        _ = client.api
    assert "RBAC: access denied [31m *** xxx" in caught.value.message
    assert len(caught.value.message) < MAX_EXCERPT + 300


def test_refused_certificate_is_named_at_once(tmp_path: Path) -> None:
    with web_server(lambda _: Reply(200, "{}"), self_signed(tmp_path)) as server:
        client = RegistryClient(server.url, Journal(), patience_s=60.0)
        with pytest.raises(StageFailure) as caught:
            client.patiently("read", lambda: client.api)
        client.close()
    assert server.requests == []
    assert (
        f"was not sent to the registry at {server.url}: the server's certificate is signed by" in caught.value.message
    )
    assert "--stage-ca-file=cluster" in caught.value.hint


def test_markup_is_not_repeated() -> None:
    page = "<html><head><title>t</title></head><body>one &amp;\n <b>two</b><script>alert(1)</script></body></html>"
    assert HttpAnswer(200, {}, page).excerpt == "one & two"


def test_the_official_clients_error_names_the_sender_too() -> None:
    from pytest_vllm_stage.publication.registry.official import connect_official_client  # 0.4 s

    with web_server(lambda _: CASES["mesh denies"].reply) as server, pytest.raises(EnvironmentUnusable) as caught:
        connect_official_client(server.url)
    assert "the service mesh's proxy (istio-envoy) answers 403 in place of the registry" in caught.value.message
    assert "RBAC: access denied" in caught.value.message

"""Tokens of protected models: requested for the right ServiceAccount, renewed in time, sent, and never shown."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.cluster.service_account_tokens import (
    LIFETIME_S,
    IssuedToken,
    ServiceAccountToken,
    TokenGrant,
    open_token,
)
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.secret import Secret, redact
from pytest_vllm_stage.report import record
from pytest_vllm_stage.run.context import Run, RunIdentity
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.target import Target
from pytest_vllm_stage.session import targets
from pytest_vllm_stage.settings.resolver import resolve_settings
from pytest_vllm_stage.stage.facts import StageFacts, TargetFacts
from pytest_vllm_stage.stage.protection import ENABLE_AUTH, find_plain_routes, is_protected
from tests.unit.made_api import ApiServer, served, status
from tests.unit.made_objects import admitted_route
from tests.unit.web_server import Reply, Request, web_server

PROFILE = 'name = "p"\noverlay = "overlay"\nnamespace = "stage"\n[models.full]\ninference_service = "f"\n'
PATH = "/api/v1/namespaces/stage/serviceaccounts/{}/token"


class TokenIssuer(ApiServer):
    """An API server that issues a new token for each request."""

    def answer(self, method: str, target: str, accept: str, body: Any) -> tuple[int, Any]:
        if target.endswith("/token") and f"{method} {target}" not in self.answers:
            issued = sum(line.endswith("/token") for line in self.requests)
            end = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=body["spec"]["expirationSeconds"])
            ends_at = end.strftime("%Y-%m-%dT%H:%M:%SZ")
            return 201, {"status": {"token": f"issued-token-{issued}", "expirationTimestamp": ends_at}}
        return super().answer(method, target, accept, body)


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with served(TokenIssuer()) as server:
        yield server


def make_run(tmp_path: Path, model: str = "", env: dict[str, str] | None = None) -> Run:
    (tmp_path / "overlay").mkdir()
    (tmp_path / "overlay" / "kustomization.yaml").write_text("")
    profile = tmp_path / "p.toml"
    profile.write_text(PROFILE + model)
    config = resolve_settings({"profile": str(profile)}.get, env or {}, lambda _: None, tmp_path)
    return Run(RunIdentity("20260101-000000-0000", str(tmp_path / "run"), 1), lambda: config, lambda _: None)


def stage_with(*, protected: bool, url: str = "http://127.0.0.1:9") -> StageFacts:
    return StageFacts("stage", "", False, (TargetFacts("full", "f", url, protected=protected),))


def find_target(run: Run, api: ApiServer, folder: Path, *, protected: bool = True) -> Target:
    return targets.find_stage_targets(run, stage_with(protected=protected), lambda: api.facts(folder))["full"]


def reveal(target: Target) -> str | None:
    return target.api_key.reveal() if target.api_key else None


@pytest.mark.parametrize("place", ["annotations", "labels"])
def test_service_is_protected_by_annotation_or_label(place: str) -> None:
    assert is_protected({"metadata": {place: {ENABLE_AUTH: "true"}}})
    assert not is_protected({"metadata": {place: {ENABLE_AUTH: "false"}}})
    assert not is_protected({"metadata": {}})


@pytest.mark.parametrize(
    ("tls", "problem"),
    [
        ({"termination": "reencrypt", "insecureEdgeTerminationPolicy": "Redirect"}, ""),
        ({"termination": "edge"}, ""),
        ({"termination": "edge", "insecureEdgeTerminationPolicy": "Allow"}, "serves HTTP too"),
        (None, "has no TLS"),
    ],
)
def test_a_route_by_which_tokens_travel_unencrypted_is_named(tls: dict[str, str] | None, problem: str) -> None:
    model: Any = {"metadata": {"name": "m", "annotations": {ENABLE_AUTH: "true"}}}
    routes = [admitted_route(name, "m.example.com", tls=tls) for name in ("m-predictor", "minio")]
    lines = find_plain_routes(model, routes)
    assert [line.startswith(f"route m-predictor to protected model m {problem}") for line in lines] == (
        [True] if problem else []
    )
    assert find_plain_routes({"metadata": {"name": "m"}}, routes) == [], "every client is answered anyway"


@pytest.mark.parametrize(
    ("model", "account", "audiences"),
    [
        ("", "f-sa", None),
        ('token_account = "tester"\n', "tester", None),
        ('token_account = "tester"\ntoken_audience = "https://gateway"\n', "tester", ["https://gateway"]),
    ],
)
def test_token_of_the_named_account_is_requested(
    api: ApiServer, tmp_path: Path, model: str, account: str, audiences: list[str] | None
) -> None:
    run = make_run(tmp_path, model)
    target = find_target(run, api, tmp_path)
    assert (reveal(target), target.token_account) == ("issued-token-1", account)
    assert api.asked("POST") == [f"POST {PATH.format(account)}"]
    spec = api.bodies[-1]["spec"]
    assert (spec["expirationSeconds"], spec.get("audiences")) == (LIFETIME_S, audiences)
    (written,) = record.build(run.journal_path, run.config)["tokens"]
    assert (written["name"], written["account"]) == ("full", account)
    assert "issued-token" not in run.journal_path.read_text() + json.dumps(written) + repr(target)
    assert all("issued-token" not in path.read_text() for path in (run.directory / "facts").iterdir())
    assert redact("sent issued-token-1") == "sent ***"


def test_model_without_protection_gets_no_token(api: ApiServer, tmp_path: Path) -> None:
    target = find_target(make_run(tmp_path), api, tmp_path, protected=False)
    assert (target.api_key, target.token_account, api.requests) == (None, "", [])


def test_named_account_is_used_without_the_annotation_too(api: ApiServer, tmp_path: Path) -> None:
    run = make_run(tmp_path, 'token_account = "tester"\n')
    assert reveal(find_target(run, api, tmp_path, protected=False)) == "issued-token-1"


def test_api_key_takes_precedence_over_a_token(api: ApiServer, tmp_path: Path) -> None:
    run = make_run(tmp_path, env={"VLLM_STAGE_API_KEY": "given-key"})
    target = find_target(run, api, tmp_path)
    assert (reveal(target), target.token_account, api.requests) == ("given-key", "f-sa", [])


def test_each_process_requests_its_own_token(api: ApiServer, tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert [reveal(find_target(run, api, tmp_path)) for _ in range(2)] == ["issued-token-1", "issued-token-2"]


def test_missing_account_is_named_with_the_key_of_the_profile(api: ApiServer, tmp_path: Path) -> None:
    api.answers[f"POST {PATH.format('f-sa')}"] = (404, status(404, 'serviceaccounts "f-sa" not found'))
    with pytest.raises(ConfigError) as failed:
        find_target(make_run(tmp_path), api, tmp_path)
    assert "serviceaccount/f-sa in namespace stage does not exist" in failed.value.message
    assert "models.ROLE.token_account" in failed.value.hint


def test_missing_right_is_named_with_its_role(api: ApiServer, tmp_path: Path) -> None:
    text = 'serviceaccounts "f-sa" is forbidden: User "al" cannot create resource "serviceaccounts/token"'
    api.answers[f"POST {PATH.format('f-sa')}"] = (403, status(403, text))
    with pytest.raises(EnvironmentUnusable) as failed:
        find_target(make_run(tmp_path), api, tmp_path)
    assert "missing right: create serviceaccounts/token" in failed.value.message
    path = fixtures_dir() / "access" / "trust" / "tokens.yaml"
    assert str(path) in failed.value.hint
    assert path.is_file()


def test_api_server_that_is_down_is_not_a_missing_right(api: ApiServer, tmp_path: Path) -> None:
    api.answers[f"POST {PATH.format('f-sa')}"] = (503, status(503, "starting"))
    with pytest.raises(EnvironmentUnusable, match="503") as failed:
        open_token(api.facts(tmp_path), TokenGrant("stage", "f-sa"))
    assert "right" not in failed.value.message


class Clock:
    """A clock and an issuer whose tokens are valid for 100 s."""

    def __init__(self) -> None:
        self.now, self.issued, self.down = 1000.0, 0, False

    def issue(self) -> IssuedToken:
        if self.down:
            raise EnvironmentUnusable("the cluster does not answer")
        self.issued += 1
        return IssuedToken(f"renewed-token-{self.issued}", self.now + 100)


def test_token_is_renewed_when_half_of_its_life_is_over() -> None:
    clock = Clock()
    token = ServiceAccountToken(clock.issue, lambda: clock.now)
    seen = []
    for at in (1000.0, 1049.0, 1050.0, 1099.0, 1100.0):
        clock.now = at
        seen.append(token.reveal())
    assert [value[-1] for value in seen] == ["1", "1", "2", "2", "3"]
    assert str(token) == "***"
    assert isinstance(token, Secret)
    assert redact("renewed-token-1 renewed-token-3") == "*** ***"


def test_token_is_used_until_its_end_while_the_cluster_does_not_answer() -> None:
    clock = Clock()
    token = ServiceAccountToken(clock.issue, lambda: clock.now)
    clock.now, clock.down = 1099.0, True
    assert token.reveal() == "renewed-token-1"
    clock.now = 1100.0
    with pytest.raises(EnvironmentUnusable, match="does not answer"):
        token.reveal()


def test_client_sends_the_current_token_with_each_request() -> None:
    clock = Clock()

    def answer(request: Request) -> Reply:
        sent = {name.lower(): value for name, value in request.headers.items()}
        return Reply(401, f"bad {sent['authorization']}")

    with (
        web_server(answer) as server,
        EndpointClient(
            Target("full", "m", server.url, api_key=ServiceAccountToken(clock.issue, lambda: clock.now))
        ) as endpoint,
    ):
        first = endpoint.raw("GET", "/health")
        clock.now += 60
        second = endpoint.raw("GET", "/health")
        explicit = endpoint.raw("GET", "/health", headers={"authorization": "Bearer other"})
    assert (first.text, second.text) == ("bad Bearer renewed-token-1", "bad Bearer renewed-token-2")
    assert explicit.text == "bad Bearer other"

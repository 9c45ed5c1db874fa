"""Short-lived tokens of ServiceAccounts, by TokenRequest: kept in memory, renewed in time, never stored or shown."""

from __future__ import annotations

import datetime
import json
import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.cluster.api_errors import ApiServerUnreachable, RequestRejected, translate_api_errors
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.secret import Secret

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

#: Seconds of validity that are asked for: a load step is handed one token, and lasts less than half of it.
LIFETIME_S = 3600


@dataclass(frozen=True)
class TokenGrant:
    """Whose token is requested, and for whom.

    Attributes:
        namespace: The ServiceAccount's namespace.
        account: The ServiceAccount.
        audience: Who accepts the token; empty for the API server, which proxies ask to review it.
    """

    namespace: str
    account: str
    audience: str = ""


@dataclass(frozen=True, repr=False)
class IssuedToken:
    """A token as the API server issued it.

    Attributes:
        value: The token.
        expires_at: Seconds since the epoch.
    """

    value: str
    expires_at: float


class ServiceAccountToken(Secret):
    """The bearer token of a ServiceAccount; `reveal` renews it when half of its life is over.

    Args:
        issue: Requests a token.
        now: The clock, in seconds since the epoch.

    Raises:
        StageError: what ``issue`` raises.
    """

    __slots__ = ("_expires_at", "_issue", "_lock", "_now", "_renew_at")

    def __init__(self, issue: Callable[[], IssuedToken], now: Callable[[], float] = time.time) -> None:
        self._issue, self._now, self._lock = issue, now, threading.Lock()
        self._request()

    @property
    def expires_at(self) -> float:
        """When the current token expires, in seconds since the epoch."""
        return self._expires_at

    def reveal(self) -> str:
        """The current token.

        Raises:
            StageError: it has expired, and the cluster issues no other.
        """
        with self._lock:
            if self._now() >= self._renew_at:
                self._renew()
            return super().reveal()

    def _renew(self) -> None:
        try:
            self._request()
        except EnvironmentUnusable:
            if self._now() >= self._expires_at:
                raise  # until then, the old one is accepted

    def _request(self) -> None:
        began_at, issued = self._now(), self._issue()
        super().__init__(issued.value)
        self._expires_at = issued.expires_at
        self._renew_at = began_at + (issued.expires_at - began_at) / 2


def open_token(cluster: ClusterFacts, grant: TokenGrant) -> ServiceAccountToken:
    """A ServiceAccount's token, each time from a new connection to its cluster.

    Raises:
        ConfigError: there is no such ServiceAccount.
        EnvironmentUnusable: the cluster does not answer, or this user may not request the token; names the right.
    """

    def issue() -> IssuedToken:
        kube = client.connect_to(cluster)
        try:
            return request_token(kube, grant)
        finally:
            kube.client.close()

    return ServiceAccountToken(issue)


def request_token(kube: DynamicClient, grant: TokenGrant) -> IssuedToken:
    """One token; see `open_token`."""
    path = f"/api/v1/namespaces/{grant.namespace}/serviceaccounts/{grant.account}/token"
    spec: dict[str, Any] = {"expirationSeconds": LIFETIME_S}
    if grant.audience:
        spec["audiences"] = [grant.audience]
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
    what = f"serviceaccount/{grant.account} in namespace {grant.namespace}"
    try:
        with translate_api_errors(f"request a token of {what}"):
            status = json.loads(kube.request("post", path, body=body, serialize=False).data)["status"]
    except ApiServerUnreachable:
        raise
    except RequestRejected as error:
        if error.code != 404:
            raise
        raise ConfigError(
            f"{what} does not exist, and its token is sent to a protected model",
            hint="name another in the profile (models.ROLE.token_account), or pass a token: VLLM_STAGE_API_KEY",
        ) from None
    except EnvironmentUnusable as error:
        role = shlex.quote(str(fixtures_dir() / "access" / "trust" / "tokens.yaml"))
        raise EnvironmentUnusable(
            f"a protected model needs a token of {what}: missing right: create serviceaccounts/token ({error.message})",
            hint=f"an administrator adapts and applies {role}; or pass a token: VLLM_STAGE_API_KEY",
        ) from None
    expires = datetime.datetime.fromisoformat(status["expirationTimestamp"].replace("Z", "+00:00"))
    return IssuedToken(status["token"], expires.timestamp())

"""A client of the Model Registry's REST API, of whichever version the server speaks."""

from __future__ import annotations

import json
import ssl
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx

from pytest_vllm_stage.core.certificate_errors import explain_refusal
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.core.gateways import HttpAnswer, explain_silence
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.publication.registry.refusals import (
    RegistryRefused,
    RegistryUnavailable,
    judge_answer,
    read_answer,
    reason_of,
)

Entity = dict[str, Any]
T = TypeVar("T")

#: In the order of preference: a server that has both calls the older one deprecated.
API_VERSIONS = ("v1", "v1alpha3")
TIMEOUT_S = 15.0
#: How long a registry that cannot answer now (503, database lost) is asked again.
PATIENCE_S = 20.0
_PAGE_SIZE = 100
_MOST_PAGES = 10_000


class _PatienceEnded(StageFailure):
    """Never seen outside."""


class RegistryClient:
    """A connection; its creator closes it.

    Args:
        url: Root of the server, without ``/api``.
        journal: Records waits, and every write before it is sent.
        token: Sent as a bearer token.
        ca_file: PEM file of the authorities that sign the server's certificate.
        use_proxies: The proxies of the environment apply.
        patience_s: How long to ask a server that cannot answer now; `PATIENCE_S` by default.
    """

    def __init__(
        self,
        url: str,
        journal: Journal,
        *,
        token: Secret | None = None,
        ca_file: str | None = None,
        use_proxies: bool = False,
        patience_s: float | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.journal = journal
        self.patience_s = PATIENCE_S if patience_s is None else patience_s
        self._token = token
        self._api = ""
        self._ca_file = ca_file
        verify = ssl.create_default_context(cafile=ca_file)
        self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, verify=verify, trust_env=use_proxies)

    def close(self) -> None:
        self._http.close()

    @property
    def models_url(self) -> str:
        """The list of registered models."""
        return f"{self.url}/api/model_registry/{self.api}/registered_models"

    @property
    def api(self) -> str:
        """The API version that is spoken with this server: ``v1`` or ``v1alpha3``; the first use asks the server.

        Raises:
            StageFailure: no Model Registry answers at the URL.
            EnvironmentUnusable: something in front of it answers, or it lets this client not in.
        """
        if not self._api:
            self._api = self.patiently(f"model registry at {self.url}", self._find_api)
            self.journal.event("versions", "registry", **{"model registry API": self._api})
        return self._api

    def _find_api(self) -> str:
        seen = []
        for version in API_VERSIONS:
            path = f"/api/model_registry/{version}/registered_models"
            answer = self._exchange("GET", path, params={"pageSize": "1"})
            try:
                if answer.status == 200 and isinstance(_parse(answer, path).get("items"), list):
                    return version
                seen.append(f"{version} answers {answer.status} ({reason_of(answer)})")
            except RegistryRefused as error:
                seen.append(f"{version} answers 200, {error.message}")
        raise StageFailure(
            f"there is no Model Registry at {self.url}: {', '.join(seen)}",
            hint=f"curl -i {self.url}/api/model_registry/{API_VERSIONS[0]}/registered_models",
        )

    def patiently(self, what: str, act: Callable[[], T]) -> T:
        """Repeat an action, from its first read, while the registry cannot answer.

        Raises:
            StageFailure: what ``act`` raised, or the registry stayed unavailable; it names the last answer.
            EnvironmentUnusable: a gateway says that it is unavailable.
        """
        done: list[T] = []
        last = RegistryUnavailable("")

        def look() -> Observation:
            nonlocal last
            try:
                done.append(act())
            except RegistryUnavailable as error:
                last = error
                return Observation(False, last.message)
            return Observation(True, "answered")

        try:
            wait_until(
                what, look, timeout_s=self.patience_s, journal=self.journal, interval_s=0.5, error=_PatienceEnded
            )
        except _PatienceEnded:
            kind = EnvironmentUnusable if last.by_gateway else StageFailure
            raise kind(
                f"{last.message}\n  {what}: repeated for {self.patience_s:g} s",
                hint=last.hint or f"is the registry ready? curl -i {self.url}/readyz/health",
            ) from None
        return done[-1]

    def get(self, path: str, **query: str) -> Entity:
        """One entity or list; a 404 is an error like any other, since a lost database causes it too.

        Raises:
            RegistryUnavailable: no answer, or one that may change.
            RegistryRefused: the registry refuses.
            EnvironmentUnusable: something in front of the registry refuses.
        """
        return self._send("GET", path, params=query)

    def find(self, path: str, **query: str) -> Entity | None:
        """What a find endpoint gives; None for its 404, which may also mean "several" or "no database"."""
        try:
            return self.get(path, **query)
        except RegistryRefused as error:
            if error.code == 404:
                return None
            raise

    def pages(self, path: str) -> Iterator[Entity]:
        """Every item of a list, page by page; lists ignore names, so the caller compares them."""
        token, seen = "", {""}
        for _ in range(_MOST_PAGES):
            query = {"pageSize": str(_PAGE_SIZE), "orderBy": "ID", "sortOrder": "ASC"}
            answer = self.get(path, **query, **({"nextPageToken": token} if token else {}))
            yield from answer.get("items") or []
            token = str(answer.get("nextPageToken") or "")
            if not token:
                return
            if token in seen:
                break
            seen.add(token)
        raise StageFailure(f"list {self.url}/{path} does not end: page token {token!r} came twice")

    def post(self, path: str, body: Entity) -> Entity:
        """Create an entity."""
        self.journal.event("publish", f"POST {path}", body=body)
        return self._send("POST", path, json=body)

    def patch(self, path: str, body: Entity) -> Entity:
        """Change an entity; never repeated here, since what it replaces may have changed in between."""
        self.journal.event("publish", f"PATCH {path}", properties=sorted(body.get("customProperties", {})))
        return self._send("PATCH", path, json=body)

    def _send(self, method: str, path: str, **more: Any) -> Entity:
        where = f"/api/model_registry/{self.api}/{path}"
        answer = self._exchange(method, where, **more)
        if answer.status not in (200, 201):
            message = f"the registry at {self.url} answers {answer.status} to {method} {where}: {reason_of(answer)}"
            raise RegistryRefused(message, code=answer.status)
        return _parse(answer, f"{self.url}{where}")

    def _exchange(self, method: str, path: str, **more: Any) -> HttpAnswer:
        """The registry's own answer.

        Raises:
            StageError: none came, it is unavailable, or something else answered; see `judge_answer`.
        """
        token = self._token.reveal() if self._token else ""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        try:
            answer = read_answer(self._http.request(method, path, headers=headers, **more), token)
        except httpx.HTTPError as error:
            refused = explain_refusal(error, self.url, self._ca_file)
            if refused:
                message = f"{method} {path} was not sent to the registry at {self.url}: {refused.reason}"
                raise StageFailure(message, hint=refused.hint) from None
            text = f"{type(error).__name__}: {error}"
            message = f"the registry at {self.url} does not answer {method} {path}: {text}"
            raise RegistryUnavailable(message, hint=explain_silence(error, self.url)) from None
        judged = judge_answer(answer, f"{method} {path}", self.url, has_token=bool(token))
        if judged is not None:
            raise judged
        return answer


def _parse(answer: HttpAnswer, where: str) -> Entity:
    try:
        body = json.loads(answer.body)
    except ValueError:
        message = f"{where}: expected JSON, got {answer.headers.get('content-type', 'no content type')}"
        raise RegistryRefused(f"{message}: {answer.excerpt!r}", code=answer.status) from None
    if not isinstance(body, dict):
        raise RegistryRefused(f"{where}: expected a JSON object, got {type(body).__name__}", code=answer.status)
    return body

"""The Model Registry's REST API, of whichever version the server speaks."""

from __future__ import annotations

import ssl
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import httpx

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.core.waiting import Observation, wait_until

Entity = dict[str, Any]
T = TypeVar("T")

#: In the order of preference: a server that has both calls the older one deprecated.
API_VERSIONS = ("v1", "v1alpha3")
#: The registry's token. It is an environment variable alone: a command line is there for all to read.
TOKEN_VARIABLE = "VLLM_STAGE_REGISTRY_TOKEN"  # noqa: S105 - a name, not a token
TIMEOUT_S = 15.0
#: How long a registry that cannot answer now (503, database lost) is asked again.
PATIENCE_S = 20.0
_PAGE_SIZE = 100
_MOST_PAGES = 10_000


class Unavailable(StageFailure):
    """The registry cannot answer now; it may in a moment."""


class _GaveUp(StageFailure):
    """The patience ended; never seen outside."""


class Refused(StageFailure):
    """The registry understood a request and said no.

    Args:
        message: What was asked, and the server's answer.
        code: The HTTP status.
        hint: What to do next.
    """

    def __init__(self, message: str, *, code: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class Registry:
    """A connection; whoever makes it closes it.

    Args:
        url: Root of the server, without ``/api``.
        journal: Takes waits, and learns of every write before it is sent.
        token: Sent as a bearer token.
        ca_file: PEM file of the authorities that sign the server's certificate.
        trust_env: Proxies of the environment apply.
        patience_s: How long to ask a server that cannot answer now; `PATIENCE_S` by default.
    """

    def __init__(
        self,
        url: str,
        journal: Journal,
        *,
        token: Secret | None = None,
        ca_file: str | None = None,
        trust_env: bool = True,
        patience_s: float | None = None,
    ) -> None:
        self.url = url.rstrip("/")
        self.journal = journal
        self.patience_s = PATIENCE_S if patience_s is None else patience_s
        self._token = token
        self._api = ""
        verify = ssl.create_default_context(cafile=ca_file) if ca_file else True
        self._http = httpx.Client(base_url=self.url, timeout=TIMEOUT_S, verify=verify, trust_env=trust_env)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    @property
    def api(self) -> str:
        """The version that is spoken with this server: ``v1`` or ``v1alpha3``; found out by asking.

        Raises:
            StageFailure: there is no Model Registry at the URL.
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
            if answer.status_code == 200 and isinstance(_body(answer).get("items"), list):
                return version
            self._raise_if_unavailable(answer, f"GET {path}")
            seen.append(f"{version} answers {answer.status_code}")
        raise StageFailure(
            f"there is no Model Registry at {self.url}: {', '.join(seen)}",
            hint=f"curl -i {self.url}/api/model_registry/{API_VERSIONS[0]}/registered_models",
        )

    def patiently(self, what: str, act: Callable[[], T]) -> T:
        """Do something again, from its first read, while the registry cannot answer.

        Raises:
            StageFailure: what ``act`` raised, or the registry stayed away; it names the last answer.
        """
        done: list[T] = []
        last = ""

        def look() -> Observation:
            nonlocal last
            try:
                done.append(act())
            except Unavailable as error:
                last = error.message
                return Observation(False, last)
            return Observation(True, "answered")

        try:
            wait_until(what, look, timeout_s=self.patience_s, journal=self.journal, interval_s=0.5, error=_GaveUp)
        except _GaveUp:
            raise StageFailure(
                f"{last}\n  {what}: asked again for {self.patience_s:g} s",
                hint=f"is the registry well? curl -i {self.url}/readyz/health",
            ) from None
        return done[-1]

    def get(self, path: str, **query: str) -> Entity:
        """One answer; a 404 is refused as any other error, since a lost database gives it too.

        Raises:
            Unavailable: no answer, or one that may change.
            Refused: the server says no.
        """
        return self._send("GET", path, params=query)

    def find(self, path: str, **query: str) -> Entity | None:
        """What a find endpoint gives; None for its 404, which may also mean "several" or "no database"."""
        try:
            return self.get(path, **query)
        except Refused as error:
            if error.code == 404:
                return None
            raise

    def pages(self, path: str) -> Iterator[Entity]:
        """Every item of a list, page by page; lists ignore names, so whoever asks compares them."""
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
        """Create something."""
        self.journal.event("publish", f"POST {path}", body=body)
        return self._send("POST", path, json=body)

    def patch(self, path: str, body: Entity) -> Entity:
        """Change something; never sent twice by itself, since what it replaces may have changed meanwhile."""
        self.journal.event("publish", f"PATCH {path}", properties=sorted(body.get("customProperties", {})))
        return self._send("PATCH", path, json=body)

    def _send(self, method: str, path: str, **more: Any) -> Entity:
        where = f"/api/model_registry/{self.api}/{path}"
        answer = self._exchange(method, where, **more)
        what = f"{method} {where}"
        self._raise_if_unavailable(answer, what)
        if answer.status_code not in (200, 201):
            message = f"the registry at {self.url} answers {answer.status_code} to {what}: {_reason(answer)}"
            raise Refused(message, code=answer.status_code)
        return _body(answer)

    def _exchange(self, method: str, path: str, **more: Any) -> httpx.Response:
        headers = {"Authorization": f"Bearer {self._token.reveal()}"} if self._token else {}
        try:
            answer = self._http.request(method, path, headers=headers, **more)
        except httpx.HTTPError as error:
            text = f"{type(error).__name__}: {error}"
            raise Unavailable(f"the registry at {self.url} does not answer {method} {path}: {text}") from None
        if answer.status_code in (401, 403):
            have = "refuses the token of" if self._token else "asks for a token, and there is none in"
            raise EnvironmentUnusable(
                f"the registry at {self.url} {have} {TOKEN_VARIABLE} (HTTP {answer.status_code}, {method} {path})",
                hint=f"set {TOKEN_VARIABLE} to a token that is still valid, for example from: oc whoami -t",
            )
        return answer

    def _raise_if_unavailable(self, answer: httpx.Response, what: str) -> None:
        if answer.status_code >= 500 or answer.status_code == 429:
            text = f"the registry at {self.url} answers {answer.status_code} to {what}: {_reason(answer)}"
            raise Unavailable(text)


def _body(answer: httpx.Response) -> Entity:
    try:
        body = answer.json()
    except ValueError:
        raise Refused(f"{answer.request.url} answers no JSON: {answer.text[:100]!r}", code=answer.status_code) from None
    if not isinstance(body, dict):
        raise Refused(f"{answer.request.url} answers no JSON object", code=answer.status_code)
    return body


def _reason(answer: httpx.Response) -> str:
    try:
        return str(answer.json()["message"])[:300]
    except (ValueError, KeyError, TypeError):
        return answer.text.strip()[:300] or "no body"

"""Translates errors of the API server and of the client library into this project's errors.

ApiServerUnreachable (EnvironmentUnusable)    no answer, or not from the API server itself
└── ApiServerBusy                          it asks for a retry later
RequestRejected (StageFailure)             it understood the request and answered with an error
└── KindNotServed                          the cluster has no such kind
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until

if TYPE_CHECKING:
    from kubernetes.client.exceptions import ApiException

T = TypeVar("T")
#: How long a request is retried while the API server asks for that.
BUSY_S = 20.0
#: Server-side apply answers with status 500 and these words where a manifest does not match the schema.
_SCHEMA_MISMATCH = "failed to create typed patch object"
_LONGEST_ANSWER = 300


class ApiServerUnreachable(EnvironmentUnusable):
    """The API server did not answer; the next request may succeed."""


class ApiServerBusy(ApiServerUnreachable):
    """The API server asks for a retry: too many requests, or the storage of a new kind is not ready yet."""


class RequestRejected(StageFailure):
    """The API server understood a request and answered with an error.

    Args:
        message: The request, and the server's answer.
        code: The HTTP status.
        hint: What to do next.
    """

    def __init__(self, message: str, *, code: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


class KindNotServed(RequestRejected):
    """The cluster serves no such kind: its CustomResourceDefinition is missing."""

    def __init__(self, message: str, *, code: int = 404, hint: str = "") -> None:
        super().__init__(message, code=code, hint=hint)


@contextmanager
def translate_api_errors(request: str) -> Iterator[None]:
    """Turn the client library's errors into ours; ``request`` describes the request in a few words.

    Raises:
        ApiServerUnreachable: no answer; `ApiServerBusy` where the server asks for a retry.
        EnvironmentUnusable: the credentials were refused, or do not allow the request.
        RequestRejected: any other error.
    """
    # Runs without a cluster import this module too, and `kubernetes` takes longer than all of the rest of it.
    import urllib3.exceptions
    from kubernetes.client.exceptions import ApiException

    try:
        yield
    except ApiException as error:
        raise _error_for(request, error.status or 0, _status_of(error)) from None
    except urllib3.exceptions.HTTPError as error:
        cause = getattr(error, "reason", None) or error
        reason = f"{type(cause).__name__}: {_without_object_ids(str(cause))}"
        raise ApiServerUnreachable(f"{request}: the cluster does not answer ({reason})") from None
    except json.JSONDecodeError as error:  # 200 with a body that is not JSON: a login page, a proxy
        raise ApiServerUnreachable(f"{request}: the answer is not JSON ({error})") from None


def _status_of(error: ApiException) -> dict[str, Any]:
    """The ``Status`` in the answer's body; a text from another server becomes its message."""
    body = error.body.decode("utf-8", "replace") if isinstance(error.body, bytes) else str(error.body or "")
    try:
        status = json.loads(body)
    except ValueError:
        status = None
    if isinstance(status, dict) and status.get("kind") == "Status":
        return status
    text = " ".join(body.split())[:_LONGEST_ANSWER] or str(error.reason or "no reason given")
    return {"message": text, "foreign": True}


def _error_for(request: str, code: int, status: dict[str, Any]) -> Exception:
    text = str(status.get("message") or "no reason given")
    if code == 401:
        return EnvironmentUnusable(f"the cluster rejects the credentials (401) for: {request}", hint="log in again")
    if code == 403 and "is forbidden: User" in text:
        return EnvironmentUnusable(f"not allowed to {request}: {text}", hint="kubectl auth can-i --list")
    if text.startswith(_SCHEMA_MISMATCH):
        return RequestRejected(f"{request}: {text}", code=422)
    if code == 429:
        return ApiServerBusy(f"{request}: the cluster is busy (429): {text}")
    if code >= 500 or code < 400:
        return ApiServerUnreachable(f"{request}: the cluster cannot answer now ({code}): {text}")
    if status.get("foreign") and code not in (404, 405):
        return ApiServerUnreachable(f"{request}: HTTP {code} from another server than the API server: {text}")
    return RequestRejected(f"{request}: {text}", code=code)


def _without_object_ids(text: str) -> str:
    """urllib3 begins some messages with the connection's ``repr``."""
    head, separator, rest = text.partition(": ")
    return rest if separator and re.match(r"<.* object at 0x|HTTPS?Connection", head) else text


def retry_while_busy(request: str, send: Callable[[], T], timeout_s: float = BUSY_S) -> T:
    """Retry a request while the API server asks for that; any other error is raised at once.

    Raises:
        EnvironmentUnusable: the server stayed busy.
    """
    answers: list[T] = []

    def observe() -> Observation:
        try:
            answers.append(send())
        except ApiServerBusy as error:
            return Observation(False, error.message)
        return Observation(True, "answered")

    wait_until(request, observe, timeout_s=timeout_s, journal=Journal(), interval_s=0.5, error=EnvironmentUnusable)
    return answers[0]

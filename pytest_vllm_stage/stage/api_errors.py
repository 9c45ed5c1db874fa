"""What the API server answers, in this project's terms."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import httpx2
from lightkube import ApiError

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageFailure
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until

T = TypeVar("T")
#: How long a server may ask to come back before that is its answer.
BUSY_S = 20.0


#: What server-side apply says of a manifest that fits no schema, with status 500.
_BAD_MANIFEST = "failed to create typed patch object"


class Unreachable(EnvironmentUnusable):
    """The API server did not answer; it may in a moment."""


class Busy(Unreachable):
    """The API server asks to come back later: it has too many requests, or a new kind's storage is not ready yet."""


class Refused(StageFailure):
    """The API server understood a request and said no.

    Args:
        message: What was asked, and the server's answer.
        code: The HTTP status.
        hint: What to do next.
    """

    def __init__(self, message: str, *, code: int = 0, hint: str = "") -> None:
        super().__init__(message, hint=hint)
        self.code = code


@contextmanager
def told(what: str) -> Iterator[None]:
    """Turn the client library's errors into ours; ``what`` is the request in a few words.

    Raises:
        Unreachable: no answer; `Busy` where the server asks to come back.
        EnvironmentUnusable: the credentials were refused, or do not allow the request.
        Refused: any other answer that is an error.
    """
    try:
        yield
    except ApiError as error:
        code, text = error.status.code or 0, error.status.message or str(error)
        if code == 401:
            message = f"the cluster refuses the credentials (401) for: {what}"
            raise EnvironmentUnusable(message, hint="log in again") from None
        if code == 403 and "is forbidden: User" in text:
            raise EnvironmentUnusable(f"not allowed to {what}: {text}", hint="kubectl auth can-i --list") from None
        if text.startswith(_BAD_MANIFEST):
            raise Refused(f"{what}: {text}", code=422) from None
        if code == 429:
            raise Busy(f"{what}: the cluster is busy (429): {text}") from None
        if code >= 500:
            raise Unreachable(f"{what}: the cluster cannot answer now ({code}): {text}") from None
        raise Refused(f"{what}: {text}", code=code) from None
    except httpx2.HTTPStatusError as error:  # an answer that is no Status: an API group that is not served, a proxy
        code = error.response.status_code
        if code == 404:
            raise Refused(f"{what}: not served", code=code) from None
        raise Unreachable(f"{what}: the cluster answers HTTP {code}") from None
    except httpx2.HTTPError as error:
        raise Unreachable(f"{what}: the cluster does not answer ({type(error).__name__}: {error})") from None


def patiently(what: str, act: Callable[[], T], timeout_s: float = BUSY_S) -> T:
    """Do a request again while the API server asks for it; any other answer is the answer.

    Raises:
        EnvironmentUnusable: the server stayed busy.
    """
    answered: list[T] = []

    def look() -> Observation:
        try:
            answered.append(act())
        except Busy as error:
            return Observation(False, error.message)
        return Observation(True, "answered")

    wait_until(what, look, timeout_s=timeout_s, journal=Journal(), interval_s=0.5, error=EnvironmentUnusable)
    return answered[0]

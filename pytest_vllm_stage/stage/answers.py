"""What the API server answers, in this project's terms."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import httpx2
from lightkube import ApiError

from pytest_vllm_stage.errors import EnvironmentUnfit, StageFailure


class Unreachable(EnvironmentUnfit):
    """The API server did not answer; it may in a moment."""


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
        Unreachable: no answer.
        EnvironmentUnfit: the credentials were refused, or do not allow the request.
        Refused: any other answer that is an error.
    """
    try:
        yield
    except ApiError as error:
        code, text = error.status.code or 0, error.status.message or str(error)
        if code == 401:
            message = f"the cluster refuses the credentials (401) for: {what}"
            raise EnvironmentUnfit(message, hint="log in again") from None
        if code == 403 and "is forbidden: User" in text:
            raise EnvironmentUnfit(f"not allowed to {what}: {text}", hint="kubectl auth can-i --list") from None
        if code == 429 or code >= 500:
            raise Unreachable(f"{what}: the cluster cannot answer now ({code}): {text}") from None
        raise Refused(f"{what}: {text}", code=code) from None
    except httpx2.HTTPStatusError as error:  # an answer that is no Status: an API group that is not served, a proxy
        code = error.response.status_code
        if code == 404:
            raise Refused(f"{what}: not served", code=code) from None
        raise Unreachable(f"{what}: the cluster answers HTTP {code}") from None
    except httpx2.HTTPError as error:
        raise Unreachable(f"{what}: the cluster does not answer ({type(error).__name__}: {error})") from None

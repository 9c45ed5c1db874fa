"""How a request to a served model fails: `RequestFailed`, and two special cases of it; all failures of the stage."""

from __future__ import annotations

from pytest_vllm_stage.core.errors import StageFailure

#: Characters of a body that an error shows.
SHOWN_BODY_CHARS = 400


class RequestFailed(StageFailure):
    """A request got no usable answer.

    Attributes:
        status: The HTTP status; None when there was no response.
        body: The response's whole body as text.
    """

    status: int | None
    body: str

    def __init__(self, message: str, *, hint: str = "", status: int | None = None, body: str = "") -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.body = body


class CertificateRefused(RequestFailed):
    """The server's certificate is not accepted; nothing was sent."""


class StreamBroken(RequestFailed):
    """A stream broke after its 200: a client that only looks at the status would count it as a success."""


def shown(body: str) -> str:
    """The first part of a body on one line, for an error."""
    text = " ".join(body.split())
    if not text:
        return "an empty body"
    return text if len(text) <= SHOWN_BODY_CHARS else f"{text[:SHOWN_BODY_CHARS]}... ({len(body)} characters)"

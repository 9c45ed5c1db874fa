"""How a request is refused, in vLLM's words and shapes."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any


class Refusal(Exception):
    """A request that is not served.

    Attributes:
        status: The HTTP status.
        message: What the caller should change.
        kind: The error's ``type``.
        param: The field at fault.
    """

    def __init__(self, status: int, message: str, kind: str, param: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param = status, message, kind, param

    def body(self) -> dict[str, Any]:
        """The error object as vLLM sends it."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.status}
        return {"error": error}


def impossible(message: str, param: str, value: Any = None) -> Refusal:
    """A field has a value that cannot be."""
    return Refusal(400, f"{message} (parameter={param}, value={value})", "BadRequestError", param)


def malformed(kind: str, where: str, message: str) -> Refusal:
    """The body does not have the shape of a request."""
    text = f"1 validation error:\n  {{'type': '{kind}', 'loc': '{where}', 'msg': '{message}'}}"
    return Refusal(400, text, HTTPStatus.BAD_REQUEST.phrase, where)

"""The errors of the real server, in its own words."""

from __future__ import annotations

from http import HTTPStatus


class RegistryRefusal(Exception):
    """A request is answered with an error.

    Args:
        status: The HTTP status.
        message: What is wrong; the status's own words are put behind it, as the real server does.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.message = message

    def body(self) -> dict[str, str]:
        """The error as the real server shapes it: 422 calls itself a bad request too."""
        shown = 400 if self.status == 422 else self.status
        phrase = HTTPStatus(shown).phrase
        return {"code": phrase, "message": f"{self.message}: {phrase.lower()}"}


def bad_request(message: str) -> RegistryRefusal:
    """The request is malformed."""
    return RegistryRefusal(400, message)


def missing(field: str) -> RegistryRefusal:
    """A required field is absent, null or empty."""
    return RegistryRefusal(422, f"required field '{field}' is missing or empty")


def not_found(message: str) -> RegistryRefusal:
    """What was asked for is not there, or is there more than once."""
    return RegistryRefusal(404, message)


def database_error(message: str) -> RegistryRefusal:
    """What the real server's database would refuse."""
    return RegistryRefusal(500, message)


def not_implemented(message: str) -> RegistryRefusal:
    """The real server does it, and the stand-in does not."""
    return RegistryRefusal(501, message)

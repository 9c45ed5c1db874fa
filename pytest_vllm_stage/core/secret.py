"""A value that is never shown, and its redaction from texts that other software writes."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

MASK = "***"
#: Shorter values would redact ordinary words.
SHORTEST_REDACTED = 6
#: Environment variables whose values are secrets, whichever program reads them.
_SECRET_VARIABLE = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)(_ID)?$")
_URL_PASSWORD = re.compile(r"(?<=://)[^/@\s:]*:[^/@\s]+(?=@)")
_BEARER = re.compile(r"(?<=Bearer )[A-Za-z0-9._~+/-]{8,}=*|hf_[A-Za-z0-9]{8,}|AKIA[A-Z0-9]{12,}")

#: The values of this process's secrets.
_known: set[str] = set()


class Secret:
    """Holds a secret text; only `reveal` gives it, so that no repr, log line or traceback does by accident."""

    __slots__ = ("_value",)

    def __init__(self, value: str) -> None:
        self._value = value
        _known.add(value)

    def reveal(self) -> str:
        """The text itself, for the one place that sends it."""
        return self._value

    def __repr__(self) -> str:
        return f"Secret({MASK})"

    def __str__(self) -> str:
        return MASK

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._value == self._value

    def __hash__(self) -> int:
        return hash((Secret, self._value))

    def __reduce__(self) -> str:
        raise TypeError("a secret is not pickled: pass its source instead")


def find_secret_values() -> list[str]:
    """This process's secrets and those of its environment's variables, longest first."""
    variables = {value for name, value in os.environ.items() if _SECRET_VARIABLE.search(name)}
    return sorted((one for one in _known | variables if len(one) >= SHORTEST_REDACTED), key=len, reverse=True)


def redact(text: str, values: Sequence[str] | None = None) -> str:
    """The text without secrets, URL passwords and known token forms.

    Args:
        text: The text.
        values: What `find_secret_values` has found, for a caller with many texts; found again by default.
    """
    for value in find_secret_values() if values is None else values:
        text = text.replace(value, MASK)
    return _BEARER.sub(MASK, _URL_PASSWORD.sub(MASK, text))

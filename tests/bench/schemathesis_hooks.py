"""Checks that schemathesis makes on the registry stand-in, where its own do not know the contract.

Loaded by schemathesis in its own environment (SCHEMATHESIS_HOOKS), by `schemathesis_standin`.
"""

from __future__ import annotations

from typing import Any

import schemathesis

#: What the real server's database refuses, with 500; everything else above 499 is a defect.
INTENDED_500 = ("value too long for type character varying(255)", "failed to decode a struct property")
#: What is well-formed and refused all the same: it depends on what is stored.
INTENDED_400 = ("artifactType is immutable", "artifact with id")


def _message(response: Any) -> str:
    return str(response.json().get("message", "")) if "json" in response.headers["content-type"][0] else ""


@schemathesis.check  # type: ignore[untyped-decorator]
def no_unintended_server_error(_context: Any, response: Any, _case: Any) -> None:
    """A 5xx is one of the two that the real server has."""
    if response.status_code >= 500 and not any(text in _message(response) for text in INTENDED_500):
        raise AssertionError(f"server error {response.status_code}: {response.text[:200]}")


@schemathesis.check  # type: ignore[untyped-decorator]
def valid_body_is_accepted(_context: Any, response: Any, case: Any) -> None:
    """A body that follows the description is not called malformed."""
    valid = case.meta is not None and case.meta.generation.mode.is_positive
    if valid and case.method in ("POST", "PATCH") and response.status_code in (400, 422):
        message = _message(response)
        if not any(text in message for text in INTENDED_400):
            raise AssertionError(f"a valid body is refused: {message}")


@schemathesis.check  # type: ignore[untyped-decorator]
def every_answer_names_the_stand_in(_context: Any, response: Any, _case: Any) -> None:
    """No answer can be taken for the real server's."""
    if response.headers.get("server") != ["vllm-stage-registry-standin"]:
        raise AssertionError(f"the server header is {response.headers.get('server')}")

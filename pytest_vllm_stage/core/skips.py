"""The one skip that is no gap: by declaration the check has no subject here, and ``--stage-strict`` lets it be."""

from __future__ import annotations

from typing import NoReturn

import pytest

#: How the reason of such a skip begins.
DOES_NOT_APPLY = "does not apply: "


def does_not_apply(reason: str) -> NoReturn:
    """Skip a check whose subject is not part of what is validated.

    It is for what was declared: a profile that says what a model cannot do, an endpoint without a key. What should be
    there and is missing fails, and what could not be found out is skipped or inconclusive in the ordinary way.

    Args:
        reason: What is declared, and where.
    """
    pytest.skip(DOES_NOT_APPLY + reason)

"""The skip that ``--stage-strict`` accepts: a declaration says that the check does not apply."""

from __future__ import annotations

from typing import NoReturn

#: How the reason of such a skip begins.
DOES_NOT_APPLY = "does not apply: "


def does_not_apply(reason: str) -> NoReturn:
    """Skip a check whose subject is not part of what is validated.

    Use it only for declarations: a profile that lists what a model cannot do, an endpoint without a key. Something that
    should exist but is missing fails, and what could not be determined is skipped or inconclusive.

    Args:
        reason: What is declared, and where.
    """
    import pytest  # here, as the reports need the text alone

    pytest.skip(DOES_NOT_APPLY + reason)

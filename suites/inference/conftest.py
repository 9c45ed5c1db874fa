"""What the checks of this folder say to a model."""

from __future__ import annotations

import pytest


@pytest.fixture
def counting() -> str:
    """A request whose greedy answer is long and certain.

    Counting leaves a model no near ties between next tokens, so that the answer at temperature 0 does not hang on the
    rounding of a batch, even where the server promises nothing for close calls.
    """
    return "Write the numbers from 1 to 100, separated by commas."

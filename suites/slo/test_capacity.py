"""The highest rate that the model sustains, against the promised one; only with --stage-find-capacity."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pytest_vllm_stage import FoundCapacity


@pytest.mark.load
def test_the_promised_rate_is_within_capacity(
    model_role: str, find_capacity: Callable[[str], FoundCapacity], record_property: Callable[[str, object], None]
) -> None:
    """A promised rate above the capacity would be missed at the first peak of traffic."""
    found = find_capacity(model_role)
    record_property("capacity", found.text())
    record_property("capacity.holds_requests_per_s", found.capacity.holds)
    assert not found.broken, found.text()

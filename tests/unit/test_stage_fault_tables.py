"""Each fault of the tables in docs/checks.md is named in the first line."""

from __future__ import annotations

import pytest

from tests.unit.deployment_faults import FAULTS
from tests.unit.deployment_faults.fault import Fault


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.planted.replace(" ", "-"))
def test_a_deployment_fault_is_named_in_the_first_line(fault: Fault) -> None:
    assert fault.first_line() == fault.line


def test_the_table_holds_at_least_25_faults() -> None:
    assert len({fault.planted for fault in FAULTS}) == len(FAULTS) >= 25

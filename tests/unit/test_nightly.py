"""Tests that are marked nightly run only where they are asked for."""

from __future__ import annotations

from pathlib import Path

import pytest

CONFTEST = Path(__file__).parents[1] / "conftest.py"
MODULE = """
import pytest

def test_ordinary():
    pass

@pytest.mark.nightly
def test_slow_variant():
    pass
"""


@pytest.mark.parametrize(
    ("arguments", "passed", "left_out"),
    [
        ([], 1, 1),
        (["-m", "not real"], 1, 1),
        (["-m", "nightly"], 1, 1),
        (["-m", "nightly or not real"], 2, 0),
        (["test_module.py::test_slow_variant"], 1, 0),
    ],
)
def test_nightly_tests_run_only_on_request(
    pytester: pytest.Pytester, arguments: list[str], passed: int, left_out: int
) -> None:
    pytester.makeconftest(CONFTEST.read_text())
    pytester.makepyfile(test_module=MODULE)
    result = pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments)
    result.assert_outcomes(passed=passed, deselected=left_out)

"""A failure of a test whose port-forward broke meanwhile is the environment's, whatever failed in the test."""

from __future__ import annotations

import pytest

from tests.plugin.forked_runs import run_pytest

CONFTEST = """
import pytest
from pytest_vllm_stage.stage.reach import forwards

class Forward:
    address = "127.0.0.1:1"
    broken = "the port-forward to service/m broke: pod/a was deleted"
    def find_break(self, since_s):
        return self.broken

forwards._OPEN["port-forward://m.ns:80"] = Forward()

@pytest.fixture
def mended(monkeypatch):
    monkeypatch.setattr(Forward, "broken", "")
"""
TESTS = """
import pytest

def test_assertion(): assert 1 == 2
def test_failure(): pytest.fail("the answer was cut\\nafter 3 tokens")
def test_passes(): pass
def test_is_skipped(): pytest.skip("not now")
"""


def test_a_failure_while_a_port_forward_broke_is_the_environments(bare_place: pytest.Pytester) -> None:
    bare_place.makeconftest(CONFTEST)
    bare_place.makepyfile(TESTS)
    result = run_pytest(bare_place)
    result.assert_outcomes(failed=2, passed=1, skipped=1)
    broken = "environment unusable: the port-forward to service/m broke: pod/a was deleted"
    result.stdout.fnmatch_lines([broken, "  a test that used it failed: *assert 1 == 2"])
    result.stdout.fnmatch_lines([broken, "  a test that used it failed: the answer was cut"])
    assert result.ret == 69


def test_a_failure_without_a_break_stays_as_it_is(bare_place: pytest.Pytester) -> None:
    bare_place.makeconftest(CONFTEST)
    bare_place.makepyfile("def test_assertion(mended): assert 1 == 2")
    result = run_pytest(bare_place)
    assert result.ret == 1
    assert "environment unusable" not in result.stdout.str()

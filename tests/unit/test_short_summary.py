"""The causes in pytest's short summary, from what reports contain."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from pytest_vllm_stage.session import short_summary


def report(name: str, text: str) -> Any:
    return SimpleNamespace(nodeid=f"suites/test_a.py::{name}", longreprtext=text, longrepr=text)


def show(*reports: Any, verbose: int = 0) -> Any:
    config: Any = SimpleNamespace(option=SimpleNamespace(verbose=verbose))
    short_summary.show_causes(config, reports)
    return config.option.verbose


def test_a_shared_cause_is_shown_once() -> None:
    reports = [
        report("test_a", "endpoint = Client()\n>   assert ok\nE   AssertionError: HTTP 500\nE   assert False"),
        report("test_b", "HTTP 503\n  next: kubectl logs"),
        report("test_c", "PVC m is Pending"),
    ]
    show(*reports)
    assert [each.longrepr for each in reports] == ["HTTP 500", "the same cause as test_a", "PVC m is Pending"]


@pytest.mark.parametrize(("before", "after"), [(-1, -1), (0, 2), (1, 2), (3, 3)])
def test_causes_are_not_cut_unless_the_run_is_quiet(before: int, after: int) -> None:
    assert show(verbose=before) == after


def test_which_engine_died_is_repeated_below_a_list_of_failures_longer_than_the_screen() -> None:
    died = ["RESTARTED engine of full died at 22:46:13: a cause that is", "          longer than a line"]
    summary = ["full-rate-1  8  pass", *died, "FAILED    2 tests: refused", "          suites/a.py and 1 more"]
    assert short_summary.find_lost_lines(summary, 21) == died
    assert short_summary.find_lost_lines(summary, 20) == []

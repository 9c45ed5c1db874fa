"""How errors of this package read in pytest's reports, and which of them are the environment's."""

from __future__ import annotations

import re
import sys
from collections.abc import Generator
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError
from pytest_vllm_stage.run.context import Run

#: What kind of `StageError` a report is about (``StageError.kind``): an attribute, so that it travels from a worker.
KIND = "stage_error_kind"
#: ``[gw1] linux -- Python 3.11.7 /usr/bin/python3``
_WORKER_LINE = re.compile(r"^\[gw\d+\] .*\n*")


class ReadableFailures:
    """Reports a `StageError` of a fixture or the environment as it was written, and each cause once.

    Registered in controller and workers alike. pytest raises a session fixture's error again for every test that needs
    the fixture: the first such test is the error, the others are skipped with the cause's first line as the reason.
    """

    def __init__(self, run: Run) -> None:
        self._run = run
        self._reported: set[str] = set()

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Rewrite the report before other plugins read it."""
        del item
        error = call.excinfo.value if call.excinfo else None
        if isinstance(error, (Exception, pytest.fail.Exception)) and not isinstance(error, EnvironmentUnusable):
            broken = _find_broken_way(call)
            if broken:
                error = _blame_way(error, broken)
                call.excinfo = pytest.ExceptionInfo.from_exception(error)
        if not isinstance(error, StageError):
            return (yield)
        if error.already_reported or (call.when == "setup" and error.headline in self._reported):
            return (yield from self._skip_for(error, call))
        error.hint = self._lasting(error.hint)
        # In a test's own body pytest's traceback says which request failed.
        as_written = call.when != "call" or isinstance(error, EnvironmentUnusable)
        if as_written and not isinstance(error, EnvironmentUnusable):
            # Readers of exception types (allure) count pytest's own failure as failed, and any other as broken.
            failure = pytest.fail.Exception(f"{error.kind}: {error}", pytrace=False)
            call.excinfo = pytest.ExceptionInfo.from_exception(failure.with_traceback(error.__traceback__))
        report = yield
        vars(report)[KIND] = error.kind
        if as_written:
            report.longrepr = f"{error.kind}: {error}"
        self._reported.add(error.headline)
        return report

    def _skip_for(
        self, error: StageError, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Report a test that a known cause prevents; a traceback, which takes most of its time, is not made for it."""
        self._reported.add(error.headline)
        skip = pytest.skip.Exception(error.headline, _use_item_location=True)
        call.excinfo = pytest.ExceptionInfo.from_exception(skip.with_traceback(error.__traceback__))
        report = yield
        vars(report)[KIND] = error.kind
        report.outcome = "skipped"
        report.longrepr = ("pytest_vllm_stage/fixtures.py", 0, f"Skipped: {error.headline}")
        return report

    def _lasting(self, hint: str) -> str:
        if "kubectl" not in hint:
            return hint
        from pytest_vllm_stage.session.lifecycle import lasting_hint

        return lasting_hint(self._run, hint)


def read_text(report: pytest.TestReport) -> str:
    """The report's text without the line about the worker, which pytest adds under xdist."""
    text: str = report.longreprtext
    return _WORKER_LINE.sub("", text) if hasattr(report, "node") else text


def _find_broken_way(call: pytest.CallInfo[None]) -> str:
    """Why a port-forward of this process broke during a test; empty where none did."""
    forwards = sys.modules.get("pytest_vllm_stage.stage.reach.forwards")  # loaded by the first address that needs one
    return next(iter(forwards.find_breaks(call.start)), "") if forwards else ""


def _blame_way(error: BaseException, broken: str) -> EnvironmentUnusable:
    """The failure of a test whose requests were lost on the way: it says nothing about the server."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    unusable = EnvironmentUnusable(f"{broken}\n  a test that used it failed: {first}")
    return unusable.with_traceback(error.__traceback__)


def is_environment_unusable(report: Any) -> bool:
    """Whether the report is about an unusable environment."""
    return getattr(report, KIND, None) == EnvironmentUnusable.kind

"""For the project's own tests: under CI a skip is a failure, since a skip there hides a test that could have run."""

from __future__ import annotations

import os

import pytest


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    reporter = session.config.pluginmanager.getplugin("terminalreporter")
    skipped = reporter.stats.get("skipped", []) if reporter else []
    if os.environ.get("CI") == "true" and skipped and not hasattr(session.config, "workerinput"):
        reporter.write_line(f"CI: {len(skipped)} skipped tests fail the run", red=True)
        session.exitstatus = session.exitstatus or pytest.ExitCode.TESTS_FAILED

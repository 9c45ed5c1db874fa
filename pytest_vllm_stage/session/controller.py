"""The controller's hooks: tell workers who they belong to, note outcomes, end the stage, write the record, sum up."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vllm_stage.core.errors import ENVIRONMENT_EXIT_CODE, EnvironmentUnusable, StageError, StageFailure
from pytest_vllm_stage.run.context import Run


class Controller:
    """Registered in the process that a person started; workers have no counterpart because they end nothing."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config = config
        self._run = run
        self._pending: list[dict[str, Any]] = []
        self._summary: list[str] = []

    def pytest_report_header(self) -> str | None:
        """Show the chosen settings and their sources, when this run was told any."""
        return self._run.config.header() if "config" in vars(self._run) else None

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give an xdist worker the run's identity."""
        identity = self._run.identity
        node.workerinput["vllm_stage_run_id"] = identity.run_id
        node.workerinput["vllm_stage_run_dir"] = identity.run_dir
        node.workerinput["vllm_stage_controller_pid"] = str(identity.controller_pid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep what is worth keeping of a report: each call, and set-up or teardown that did not pass."""
        if report.when != "call" and report.passed:
            return
        self._pending.append(_outcome(report))
        self._flush()

    def _flush(self) -> None:
        if self._run.active:
            for outcome in self._pending:
                self._run.journal.event("test", **outcome)
            self._pending.clear()

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """End what the run made, then write the record; a leftover fails the run."""
        if not self._run.active:
            return
        from pytest_vllm_stage.session import finish

        self._flush()
        # First, since a step that only the run as a whole shows to be broken is a failure that a stage is kept for.
        broken = finish.judge_load(self._run)
        leftovers = finish.release(self._run, failed=exitstatus != 0 or bool(broken))
        status = _exit_status(int(exitstatus), self._run.shared.failures(), [*leftovers, *broken])
        session.exitstatus = status or (1 if self._run.config.strict and finish.skipped(self._run) else 0)
        self._summary = finish.write_record(self._run, int(session.exitstatus), leftovers)

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """The run in a few lines that a person can act on."""
        if self._summary:
            terminalreporter.section(f"vllm-stage run {self._run.run_id}")
            for line in self._summary:
                terminalreporter.line(line)


def _exit_status(exitstatus: int, failures: list[StageError], leftovers: list[str]) -> int:
    """Pytest's status, or the environment's own when nothing but the environment failed, or 1 for leftovers."""
    unusable = any(isinstance(failure, EnvironmentUnusable) for failure in failures)
    product = any(isinstance(failure, StageFailure) for failure in failures)
    if exitstatus == 1 and unusable and not product:
        return ENVIRONMENT_EXIT_CODE
    return exitstatus or (1 if leftovers else 0)


def _outcome(report: pytest.TestReport) -> dict[str, Any]:
    """The report as plain data; a set-up or teardown that failed is an ``error``, as pytest's summary calls it."""
    outcome: str = report.outcome
    if report.when != "call" and report.failed:
        outcome = "error"
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
    return {
        "name": report.nodeid,
        "when": report.when,
        "outcome": outcome,
        "start": report.start,
        "duration_s": round(report.duration, 3),
        "reason": reason,
        "properties": dict(report.user_properties),
    }

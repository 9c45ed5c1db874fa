"""The controller's hooks: give workers the run's identity, record outcomes, end the stage, write record and summary."""

from __future__ import annotations

import textwrap
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import ENVIRONMENT_EXIT_CODE
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.run.progress import Progress
from pytest_vllm_stage.run.relay import RelayedProgress
from pytest_vllm_stage.session.failures import KIND, is_environment_unusable, read_text

_WHOLE_WORDS: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
_ABORTED = (pytest.ExitCode.INTERNAL_ERROR, pytest.ExitCode.USAGE_ERROR)


class Controller:
    """Registered in the main process only; xdist workers have no counterpart, since they end nothing."""

    def __init__(self, config: pytest.Config, run: Run, progress: Progress) -> None:
        self._config = config
        self._run = run
        self._progress = progress
        self._relayed: RelayedProgress | None = None
        self._pending: list[dict[str, Any]] = []
        self._summary: list[str] = []
        self._lost: list[str] = []
        self._environment_unusable = False
        self._interrupted_by_hand = False
        self._collected = False

    def pytest_report_header(self) -> list[str]:
        """Show the settings and their sources, if any was given; a terminal would break them within a word."""
        lines = self._run.config.header().splitlines() if "config" in vars(self._run) else []
        reporter = self._config.pluginmanager.get_plugin("terminalreporter")
        if reporter is None or not reporter.isatty:
            return lines
        width = self._config.get_terminal_writer().fullwidth
        return [part for line in lines for part in textwrap.wrap(line, width, subsequent_indent="    ", **_WHOLE_WORDS)]

    def pytest_report_collectionfinish(self, items: list[pytest.Item]) -> list[str]:
        """Name the load steps that are planned too short for a verdict, before they run."""
        return self._undecidable([item.nodeid for item in items])

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, node: Any, ids: list[str]) -> None:
        """The same under xdist, whose controller does not collect; once, since all workers collect the same tests."""
        reporter = node.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None and not self._collected:
            self._collected = True
            for line in self._undecidable(ids):
                reporter.line(line)

    def _undecidable(self, ids: list[str]) -> list[str]:
        if not (any("::test_objectives[" in each for each in ids) or "config" in vars(self._run)):
            return []  # no test of this plugin: the settings are not resolved
        if self._run.config.get("results"):
            return []
        from pytest_vllm_stage.benchmark import plans
        from pytest_vllm_stage.benchmark.undecidable import find_undecidable

        collected = "\n".join(ids)
        planned = plans.steps_of(self._run.config, self._run.run_id)
        return list(find_undecidable(one for one in planned if f"[{one.step.id}]" in collected))

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Give an xdist worker the run's identity, and print its progress from now on."""
        identity = self._run.identity
        node.workerinput["vllm_stage_run_id"] = identity.run_id
        node.workerinput["vllm_stage_run_dir"] = identity.run_dir
        node.workerinput["vllm_stage_controller_pid"] = str(identity.controller_pid)
        if self._relayed is None:
            self._relayed = RelayedProgress(self._progress.relay, self._progress.print_relayed)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Record each call, and set-up or teardown that did not pass."""
        self._environment_unusable |= is_environment_unusable(report)
        if report.when != "call" and report.passed:
            return
        self._pending.append(_outcome(report))
        self._flush()

    def _flush(self) -> None:
        if self._run.active:
            for outcome in self._pending:
                self._run.journal.event("test", **outcome)
            self._pending.clear()

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Distinguish Ctrl-C from xdist's own interrupt, which ends a run with ``-x``."""
        self._interrupted_by_hand = excinfo.type is KeyboardInterrupt

    @pytest.hookimpl(trylast=True)
    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """End what the run created, then write the record; a leftover fails the run."""
        if self._relayed is not None:
            self._relayed.close()
        if not self._run.active:
            if self._environment_unusable and exitstatus == pytest.ExitCode.TESTS_FAILED:
                session.exitstatus = ENVIRONMENT_EXIT_CODE
            return
        from pytest_vllm_stage.report import allure
        from pytest_vllm_stage.session import finish

        self._flush()
        # First, since a stage is also kept for a step that fails only by the rule over the whole run.
        broken = [*finish.judge_load(self._run), *finish.judge_restarts(self._run)]
        leftovers = finish.release(self._run, failed=exitstatus != 0 or bool(broken))
        session.exitstatus = self._exit_status(int(exitstatus), failed=bool(leftovers or broken))
        allure_dir = allure.results_dir(self._config, self._run.directory)
        self._summary = finish.write_record(self._run, int(session.exitstatus), leftovers, allure_dir)

    def _exit_status(self, status: int, *, failed: bool) -> int:
        """The exit code of an unusable environment if any part reported one, else that of a setting that is wrong."""
        from pytest_vllm_stage.session import finish

        aborted = status in _ABORTED or (status == pytest.ExitCode.INTERRUPTED and self._interrupted_by_hand)
        if not aborted and (self._environment_unusable or finish.environment_failed(self._run)):
            return ENVIRONMENT_EXIT_CODE
        if status == pytest.ExitCode.TESTS_FAILED and finish.is_refused(self._run):
            return pytest.ExitCode.USAGE_ERROR
        if status == pytest.ExitCode.OK and (failed or (self._run.config.strict and finish.skipped(self._run))):
            return pytest.ExitCode.TESTS_FAILED
        return status

    @pytest.hookimpl(trylast=True)
    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        """Print the run's summary lines."""
        if self._summary:
            terminalreporter.section(f"vllm-stage run {self._run.run_id}")
            for line in self._summary:
                terminalreporter.line(line)
            from pytest_vllm_stage.session import short_summary

            failures = [*terminalreporter.getreports("failed"), *terminalreporter.getreports("error")]
            short_summary.show_causes(self._config, failures)
            self._lost = short_summary.find_lost_lines(self._summary, len(failures))

    def pytest_unconfigure(self, config: pytest.Config) -> None:
        """Repeat below pytest's list of failures what it pushed off the screen."""
        reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
        for line in self._lost if reporter else ():
            reporter.write_line(line)


def _outcome(report: pytest.TestReport) -> dict[str, Any]:
    """The report as plain data; a set-up or teardown that failed is an ``error``, as pytest's summary calls it."""
    outcome: str = report.outcome
    if report.when != "call" and report.failed:
        outcome = "error"
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else read_text(report)
    return {
        "name": report.nodeid,
        "when": report.when,
        "outcome": outcome,
        "error_kind": getattr(report, KIND, ""),
        "start": report.start,
        "duration_s": round(report.duration, 3),
        "reason": reason,
        "proves": getattr(report, "proves", ""),
        "properties": dict(report.user_properties),
    }

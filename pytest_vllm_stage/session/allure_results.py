"""When allure results are written, and what the plugin attaches to them."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

import pytest

from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.session.exclusive import uses_stage


class AllureResults:
    """Registered in controller and workers alike; writes nothing until a test that uses the stage was collected."""

    def __init__(self, config: pytest.Config, run: Run) -> None:
        self._config = config
        self._run = run
        self._active = False
        self._diagnosed = False

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Start where a test uses the stage."""
        if self._config.getoption("collectonly") or not any(uses_stage(item) for item in session.items):
            return
        from pytest_vllm_stage.report import allure

        self._active = allure.start(self._config, self._run.directory, self._tags)
        if self._active:
            self._run.step = allure.step

    def _tags(self) -> list[str]:
        """The profile, and ``simulated`` where a simulated engine answers."""
        if not self._run.active:
            return []
        config = self._run.config
        simulated = config.simulated or '"kind": "simulated"' in self._run.journal_path.read_text(encoding="utf-8")
        return [config.profile.name, *(["simulated"] if simulated else [])]

    @pytest.hookimpl(wrapper=True, trylast=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Attach what a reader of this test needs next."""
        del call
        report = yield
        if self._active and report.when == "call":
            self._attach_step(item)
        if self._active and report.failed:
            self._attach_evidence(item, report)
        return report

    def _attach_step(self, item: pytest.Item) -> None:
        """Verdict, chart and metrics of a load step."""
        planned = getattr(item, "funcargs", {}).get("load_step")
        if planned:
            from pytest_vllm_stage.report import step_attachments

            for name, text, kind in step_attachments.list_attachments(self._run.directory, planned.step.id):
                _allure().attach(name, text, kind)

    def _attach_evidence(self, item: pytest.Item, report: pytest.TestReport) -> None:
        """The last exchange of a failed test; the diagnostics of a failed deployment."""
        folder = self._run.directory / "diagnostics"
        if report.when == "setup" and folder.is_dir() and not self._diagnosed:
            self._diagnosed = True
            for path in sorted([*folder.glob("*.txt"), *folder.glob("logs/*.log")]):
                text = path.read_text(encoding="utf-8", errors="replace")
                _allure().attach(f"diagnostics/{path.relative_to(folder)}", text)
        if report.when == "call":
            for client in getattr(item, "funcargs", {}).values():
                if hasattr(client, "last_request"):
                    _attach_exchange(client)


def _allure() -> Any:
    from pytest_vllm_stage.report import allure

    return allure


def _attach_exchange(client: Any) -> None:
    allure = _allure()
    request, response = client.last_request, client.last_response
    if request is None:
        return
    # A body that was sent in chunks is not kept.
    body = request.content.decode("utf-8", "replace") if hasattr(request, "_content") else "(sent in chunks)"
    allure.attach("last request", f"{request.method} {request.url}\n\n{body}")
    if response is not None:
        kept = response.text if response.is_closed and hasattr(response, "_content") else "(streamed)"
        allure.attach("last answer", f"HTTP {response.status_code} {response.reason_phrase}\n\n{kept}")

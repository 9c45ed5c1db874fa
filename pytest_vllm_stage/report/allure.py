"""Allure results of a run: the same record for those who read Allure's pages."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from allure_commons.logger import AllureFileLogger
from allure_commons.model2 import Label, Parameter, Status, StatusDetails, TestResult

_STATUS = {"passed": Status.PASSED, "failed": Status.FAILED, "error": Status.BROKEN, "skipped": Status.SKIPPED}


def write(data: dict[str, Any], folder: Path) -> None:
    """Write a result file for each outcome in the record, and the environment that Allure shows beside them."""
    logger: Any = AllureFileLogger(str(folder))  # type: ignore[no-untyped-call]
    for number, test in enumerate(data["tests"]):
        logger.report_result(_result(test, f"{data['run_id']}-{number}", _tags(data)))
    (folder / "environment.properties").write_text(_environment(data), encoding="utf-8")


def _tags(data: dict[str, Any]) -> list[str]:
    return [data["profile"]["name"], *(["simulated"] if data["simulated"] else [])]


def _environment(data: dict[str, Any]) -> str:
    """A Java properties file; versions are the only text from outside, and hold no character with a meaning there."""
    rows = {
        "run_id": data["run_id"],
        "profile": data["profile"]["name"],
        "simulated": str(data["simulated"]).lower(),
        **data["versions"],
    }
    return "".join(f"{key}={value}\n" for key, value in rows.items())


def _result(test: dict[str, Any], uuid: str, tags: list[str]) -> TestResult:
    file, _, name = test["name"].partition("::")
    start_ms = int(test["start"] * 1000)
    result = TestResult(
        uuid=uuid,
        name=name,
        fullName=test["name"],
        # The history of a test in Allure follows this id from run to run.
        historyId=hashlib.sha256(test["name"].encode()).hexdigest()[:32],
        status=_STATUS[test["outcome"]],
        start=start_ms,
        stop=start_ms + int(test["duration_s"] * 1000),
    )
    if test["reason"]:
        result.statusDetails = StatusDetails(message=test["reason"].splitlines()[0], trace=test["reason"])
    result.labels = [Label("suite", file), Label("framework", "pytest"), *(Label("tag", tag) for tag in tags)]
    result.parameters = [Parameter(key, str(value)) for key, value in test["properties"].items()]
    return result

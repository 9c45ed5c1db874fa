"""Reports at the end of a run: made by a separate process with a timeout; they never fail the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pytest_vllm_stage.report.files import MARKDOWN, PAGE
from pytest_vllm_stage.settings.config import StageConfig

#: The page of a run with 16 load steps takes 4 s of one core; a CI machine may be busy with other jobs.
TIMEOUT_S = 300.0
#: GitHub shows what is appended to this file on the job's page.
STEP_SUMMARY = "GITHUB_STEP_SUMMARY"


def report_run(directory: Path, *options: str, timeout_s: float = TIMEOUT_S) -> list[str]:
    """Make the reports of a run that has ended; return a line for the terminal's summary."""
    again = f"python -m pytest_vllm_stage.report {directory}"
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest_vllm_stage.report", str(directory), *options],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return [f"report    not made within {timeout_s:g} s; again: {again}"]
    except OSError as error:
        return [f"report    not made: {error}; again: {again}"]
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        return [f"report    not made: {reason}; again: {again}"]
    removed = [
        line.replace("removed ", "removed   ", 1) for line in done.stdout.splitlines() if line.startswith("removed ")
    ]
    return [f"report    {directory / PAGE}", *removed, *_append_step_summary(directory)]


def end_options(config: StageConfig, run_id: str, directory: Path) -> list[str]:
    """The options of the report at the end: the index lists only runs in the default place under their own names."""
    if config.get("run_dir") or directory.name != run_id:
        return []
    keep = config.keep_reports
    return ["--index", *([f"--keep-reports={keep}"] if keep else [])]


def _append_step_summary(directory: Path) -> list[str]:
    path = os.environ.get(STEP_SUMMARY)
    if not path:
        return []
    try:
        with Path(path).open("a", encoding="utf-8") as summary:
            summary.write((directory / MARKDOWN).read_text(encoding="utf-8"))
    except OSError as error:
        return [f"report    not appended to ${STEP_SUMMARY}: {error}"]
    return []

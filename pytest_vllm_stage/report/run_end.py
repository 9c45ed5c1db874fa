"""Reports at the end of a run: made by a process of their own, bounded in time, and never a reason to fail the run."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from pytest_vllm_stage.report.files import MARKDOWN, PAGE

#: The page of a run with 16 load steps takes about a tenth of it.
TIMEOUT_S = 180.0
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
    return [f"report    {directory / PAGE}", *_append_step_summary(directory)]


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

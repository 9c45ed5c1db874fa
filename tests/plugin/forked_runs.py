"""Runs pytest for a test as `pytest.Pytester.runpytest_subprocess` does, forked from a process that has imported it."""

from __future__ import annotations

import os
import shlex
import sys
import time
from pathlib import Path

import pytest

from tests.defects.forks import forks


def run_pytest(place: pytest.Pytester, *arguments: str | os.PathLike[str], timeout: float = 600.0) -> pytest.RunResult:
    """Run pytest in a process of its own.

    It saves a second of CPU time per run. What a run imports and what Python does at its start and end is tested with
    ``runpytest_subprocess``.
    """
    # Numbered: a test may run pytest several times, and at the same time.
    folder = place.mkdir(f"runpytest-{time.monotonic_ns()}")
    output, errors = folder / "stdout", folder / "stderr"
    path = os.pathsep.join(filter(None, [os.getcwd(), os.environ.get("PYTHONPATH")]))
    command = [f"--basetemp={folder / 'basetemp'}", *(os.fspath(argument) for argument in arguments)]
    started_s = time.monotonic()
    status = forks().run(command, Path.cwd(), os.environ | {"PYTHONPATH": path}, output, timeout, errors=errors)
    out, err = (file.read_text(encoding="utf-8").splitlines() for file in (output, errors))
    sys.stdout.write("\n".join([f"running: pytest {shlex.join(command)}", *out, *err, ""]))
    code = pytest.ExitCode(status) if status in [*pytest.ExitCode] else status
    return pytest.RunResult(code, out, err, time.monotonic() - started_s)

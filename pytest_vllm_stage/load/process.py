"""Runs a step with the driver in a separate process, and forwards its progress."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import IO, Any, BinaryIO, cast

from pytest_vllm_stage.core.activity import Activity
from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.load.driver import PROGRESS_INTERVAL_S, LoadJob, Report, Watcher
from pytest_vllm_stage.load.progress import LoadProgress
from pytest_vllm_stage.load.worker import frame, read_frame
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.step import LoadStep

_SHOWN_CHARACTERS = 2000
_END_TIMEOUT_S = 10.0


def measure(job: LoadJob, journal: Journal, *, watcher: Watcher | None = None) -> Measurement:
    """Carry out one step; the journal gets a phase and a progress line about every five seconds.

    Args:
        job: What to do.
        journal: Receives progress.
        watcher: Receives each completed sample, in any order; a returned text ends the sending.

    Raises:
        EnvironmentUnusable: the driver's process ended without a result; carries its last output.
        StageError: the driver itself refused the job.
    """
    with journal.phase(f"load {job.step.id}", step=job.step.to_json()) as facts, tempfile.TemporaryFile() as errors:
        step = job.step
        with (
            _driver(job, watcher is not None, errors) as process,
            journal.activity(step.id, total_s=step.duration_s, interval_s=PROGRESS_INTERVAL_S) as activity,
        ):
            measurement = _follow(process, lambda seen: _report(seen, step, activity, journal), watcher)
        if measurement is None:
            raise _ended(job, process, errors)
        facts["requests"] = len(measurement.samples)
        facts["failed"] = sum(sample.failed for sample in measurement.samples)
        facts["priority"] = measurement.client.priority
        return measurement


@contextmanager
def _driver(job: LoadJob, watched: bool, errors: IO[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    """Start the driver's process; it ends with the block, or when its stdin closes."""
    process = subprocess.Popen(
        [sys.executable, "-m", "pytest_vllm_stage.load.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
    )
    try:
        stdin = cast(BinaryIO, process.stdin)
        plain = [secret.reveal() if secret else None for secret in (job.api_key, job.gpu_metrics_token)]
        try:
            stdin.write(frame(cast(Any, (replace(job, api_key=None, gpu_metrics_token=None), plain, watched))))
            stdin.flush()
        except BrokenPipeError:
            pass  # it ended at once: `_follow` reports why
        yield process
        process.wait(_END_TIMEOUT_S)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def _report(progress: LoadProgress, step: LoadStep, activity: Activity, journal: Journal) -> None:
    if progress.certain:
        at_s = f"{progress.elapsed_s:.0f} of {step.duration_s:g} s"
        journal.say(f"{step.id}: {progress.certain} is certain after {at_s}")
    else:
        activity.update(progress.text(step), elapsed_s=progress.elapsed_s)


def _follow(process: subprocess.Popen[bytes], report: Report, watcher: Watcher | None) -> Measurement | None:
    """Read until the result; None when the process ended without one."""
    told: str | None = None
    while (message := read_frame(cast(BinaryIO, process.stdout))) is not None:
        kind, content = message
        if kind == "progress":
            report(content)
        elif kind == "error":
            raise cast(StageError, content)
        elif kind == "done":
            return cast(Measurement, content)
        elif watcher is not None:
            reason = watcher(content)
            if reason and reason != told:
                told = reason
                _send_line(process, f"stop {reason}\n")
    return None


def _send_line(process: subprocess.Popen[bytes], line: str) -> None:
    try:
        stdin = cast(BinaryIO, process.stdin)
        stdin.write(line.encode())
        stdin.flush()
    except BrokenPipeError:
        pass  # it has just ended by itself


def _ended(job: LoadJob, process: subprocess.Popen[bytes], errors: IO[bytes]) -> EnvironmentUnusable:
    errors.seek(0)
    wrote = errors.read().decode(errors="replace").strip()[-_SHOWN_CHARACTERS:]
    return EnvironmentUnusable(
        f"the load driver of step {job.step.id} ended without a result (exit status {process.returncode})\n"
        f"  it wrote: {wrote or 'nothing'}"
    )

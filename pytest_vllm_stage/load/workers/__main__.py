"""A load worker: carries out its share of a step, in a pod of an Indexed Job or as a process of this machine.

It reads the step from a folder, warms up, measures its clock, reports that it is ready, and waits until the start file
holds the common start. The file is rehearsed before, while the worker warms up. What it has to say goes to its output;
see `messages`.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.driver import LoadJob, run_step
from pytest_vllm_stage.load.priority import raise_priority
from pytest_vllm_stage.load.progress import LoadProgress
from pytest_vllm_stage.load.worker import run_loop
from pytest_vllm_stage.load.workers import messages
from pytest_vllm_stage.load.workers.assignment import parse_assignment
from pytest_vllm_stage.load.workers.clock import ClockOffset, measure_clock
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.samples_file import write_measurement

#: Files of the two folders that a worker reads.
ASSIGNMENT, CA_FILE = "assignment.json", "ca.crt"
API_KEY, GPU_METRICS_TOKEN = "api-key", "gpu-metrics-token"
#: The Job controller sets it in each pod of an Indexed Job.
INDEX_VARIABLE = "JOB_COMPLETION_INDEX"
_POLL_S = 0.05
#: A worker that learns of the start with less time left than this begins late.
_LEAST_LEAD_S = 0.1
#: A line up to this size goes into a pipe whole or not at all.
_ATOMIC_BYTES = 4096


@dataclass(frozen=True)
class WorkerInput:
    """What a worker is started with.

    Attributes:
        index: Its number.
        folder: Holds the assignment, and the authorities that sign the server's certificate.
        secrets: Folder with the tokens, each in a file; those that are not needed are not there.
        start: File that holds the common start once it is agreed, in seconds of the reference clock.
        start_timeout_s: How long to wait for it.
        clock_url: A URL of the reference clock; None where it is this machine's.
        clock_ca: PEM file of the authorities for it.
    """

    index: int
    folder: Path
    secrets: Path
    start: Path
    start_timeout_s: float
    clock_url: str | None
    clock_ca: str | None

    def job(self) -> LoadJob:
        """The worker's job."""
        assignment = parse_assignment((self.folder / ASSIGNMENT).read_text(encoding="utf-8"))
        ca_file = self.folder / CA_FILE
        api_key, gpu_token = (self._secret(name) for name in (API_KEY, GPU_METRICS_TOKEN))
        return assignment.job(self.index, str(ca_file) if ca_file.is_file() else None, api_key, gpu_token)

    def _secret(self, name: str) -> Secret | None:
        path = self.secrets / name
        return Secret(path.read_text(encoding="utf-8").strip()) if path.is_file() else None


def parse_arguments(arguments: Sequence[str]) -> WorkerInput:
    """Read the command line; a pod knows its number from the Job controller."""
    parser = argparse.ArgumentParser(prog="python -m pytest_vllm_stage.load.workers", description=__doc__)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--secrets", type=Path, required=True)
    parser.add_argument("--start", type=Path, required=True)
    parser.add_argument("--start-timeout-s", type=float, default=300.0)
    parser.add_argument("--clock-url")
    parser.add_argument("--clock-ca")
    given = parser.parse_args(arguments)
    return WorkerInput(index=int(os.environ[INDEX_VARIABLE]), **vars(given))


class WorkerOutput:
    """Standard output as a channel for messages; one that is sent during the step never makes the driver wait."""

    def send(self, kind: str, **content: Any) -> None:
        """Write a message."""
        self.write(messages.encode_message(kind, **content))

    def write(self, line: str) -> None:
        sys.stdout.write(line + "\n")
        sys.stdout.flush()

    def report(self, progress: LoadProgress) -> None:
        """Hand on the progress, or leave it out where the reader is behind."""
        line = messages.encode_message(messages.PROGRESS, **asdict(progress)).encode() + b"\n"
        if len(line) > _ATOMIC_BYTES:
            return
        os.set_blocking(sys.stdout.fileno(), False)
        try:
            os.write(sys.stdout.fileno(), line)
        except BlockingIOError:
            pass
        finally:
            os.set_blocking(sys.stdout.fileno(), True)


async def _watch_start(path: Path, output: WorkerOutput) -> float:
    """Wait for the common start, in seconds of the reference clock; acknowledge the rehearsal before it."""
    rehearsed = False
    while True:
        text = _read_start(path)
        if text == messages.REHEARSAL and not rehearsed:
            rehearsed = True
            output.send(messages.REHEARSED)
        elif text and text != messages.REHEARSAL:
            return float(text)
        await asyncio.sleep(_POLL_S)


async def _agree_start(given: WorkerInput, output: WorkerOutput, announced: Awaitable[float]) -> float:
    """Report that the worker is ready, and wait for the common start; its ``perf_counter``.

    Raises:
        EnvironmentUnusable: there is none in time, or it has passed when the worker learns of it.
    """
    clock = ClockOffset()
    if given.clock_url:
        try:
            clock = await measure_clock(given.clock_url, given.clock_ca)
        except (OSError, ValueError) as error:
            raise EnvironmentUnusable(f"its clock cannot be compared with {given.clock_url}: {error}") from None
    output.send(messages.READY, **asdict(clock))
    try:
        start_at = await asyncio.wait_for(announced, given.start_timeout_s)
    except TimeoutError:
        raise EnvironmentUnusable(f"no common start was agreed within {given.start_timeout_s:g} s") from None
    left_s = start_at - clock.offset_s - time.time()
    if left_s < _LEAST_LEAD_S:
        raise EnvironmentUnusable(f"it learned of the common start {-left_s:.1f} s after it")
    return time.perf_counter() + left_s


def _read_start(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return ""


def _file_bytes(measurement: Measurement) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "samples"
        write_measurement(measurement, path)
        return path.read_bytes()


async def _work(given: WorkerInput, output: WorkerOutput) -> None:
    priority = raise_priority()
    output.send(messages.STARTED)
    announced = asyncio.create_task(_watch_start(given.start, output))
    try:
        job = await asyncio.to_thread(given.job)
        measurement = await run_step(
            job, report=output.report, agree_start=lambda: _agree_start(given, output, announced)
        )
        measurement = replace(measurement, client=replace(measurement.client, priority=priority))
        for line in messages.encode_result(_file_bytes(measurement)):
            output.write(line)
    except StageError as error:
        output.send(messages.ERROR, text=error.message)
    finally:
        announced.cancel()


def main(arguments: Sequence[str]) -> int:
    """Carry out the share; what fails on purpose is a message, so that the exit status is 0."""
    run_loop(_work(parse_arguments(arguments), WorkerOutput()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

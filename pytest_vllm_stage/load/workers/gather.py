"""Follows the workers of one step: waits until all are ready, announces the common start, and takes their results."""

from __future__ import annotations

import queue
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.load.driver import Report
from pytest_vllm_stage.load.progress import LoadProgress
from pytest_vllm_stage.load.workers import messages
from pytest_vllm_stage.load.workers.clock import ClockOffset
from pytest_vllm_stage.load.workers.merge import Gathered, LostWorker
from pytest_vllm_stage.load.workers.share import Share
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.samples_file import read_measurement
from pytest_vllm_stage.measurement.step import LoadStep

#: From the announcement to the start at least: every worker must learn of it before.
LEAD_S = 3.0
#: The lead is this many times what the slowest worker needed to learn of the rehearsal.
_LEAD_FACTOR = 3.0
#: Until every worker has started, warmed up and measured its clock.
READY_TIMEOUT_S = 180.0
#: For the transfer of the samples.
_TRANSFER_S = 120.0
_POLL_S = 0.2


class WorkerSet(Protocol):
    """The workers of a step, wherever they run."""

    @property
    def count(self) -> int:
        """How many there are."""

    def lines(self, worker: int) -> Iterator[str]:
        """A worker's output as it comes; it ends with the worker. Called once per worker, in a thread of its own."""

    def rehearse(self, worker: int) -> None:
        """Give a worker that has started something to learn the way it will learn of the start."""

    def announce(self, lead_s: float) -> float:
        """Let all workers start after this time; returns when that is, by this machine's clock."""

    def name(self, worker: int) -> str:
        """What a worker is called in its cluster, or on this machine."""

    def describe_end(self, worker: int) -> str:
        """Why a worker has no result, as far as can be seen."""


@dataclass
class _Worker:
    number: int
    clock: ClockOffset | None = None
    rehearsal_s: float = 0.0
    learned_after_s: float | None = None
    parts: messages.ResultParts = field(default_factory=messages.ResultParts)
    progress: LoadProgress | None = None
    measurement: Measurement | None = None
    lost: str = ""

    @property
    def is_ready(self) -> bool:
        """It waits for the start, and has learned of the rehearsal."""
        return self.clock is not None and self.learned_after_s is not None


@dataclass
class Gathering:
    """Gathers one step's results.

    Args:
        workers: Who carries it out.
        step: The whole step.
        report: Receives the progress of all.
        lead_s: See `LEAD_S`; the rehearsal adds to it.
        ready_timeout_s: See `READY_TIMEOUT_S`.
    """

    workers: WorkerSet
    step: LoadStep
    report: Report = lambda _progress: None
    lead_s: float = LEAD_S
    ready_timeout_s: float = READY_TIMEOUT_S

    def __post_init__(self) -> None:
        self._states = [_Worker(number) for number in range(self.workers.count)]
        self._inbox: queue.SimpleQueue[tuple[int, tuple[str, dict[str, Any]] | None]] = queue.SimpleQueue()
        self._lost: list[LostWorker] = []

    def gather(self) -> Gathered:
        """Follow the workers until all have given their result, or one is lost."""
        for worker in self._states:
            threading.Thread(target=self._follow, args=(worker.number,), daemon=True).start()
        start_at = 0.0
        if self._wait(lambda worker: worker.is_ready, self.ready_timeout_s, "was not ready"):
            slowest_s = max(worker.learned_after_s or 0.0 for worker in self._states)
            lead_s = self.lead_s + _LEAD_FACTOR * slowest_s
            start_at = self.workers.announce(lead_s)
            limit_s = lead_s + self.step.duration_s + self.step.request_timeout_s + _TRANSFER_S
            self._wait(lambda worker: worker.measurement is not None, limit_s, "gave no result")
        return Gathered(
            parts={one.number: one.measurement for one in self._states if one.measurement is not None},
            lost=tuple(self._lost),
            clocks={one.number: one.clock for one in self._states if one.clock is not None},
            start_at=start_at or time.time(),
        )

    def _follow(self, number: int) -> None:
        try:
            for line in self.workers.lines(number):
                message = messages.decode_message(line)
                if message is not None:
                    self._inbox.put((number, message))
        except StageError as error:
            self._inbox.put((number, (messages.ERROR, {"text": error.message})))
        self._inbox.put((number, None))

    def _wait(self, reached: Callable[[_Worker], bool], timeout_s: float, missed: str) -> bool:
        """Take messages until every worker has reached something; false as soon as one cannot."""
        deadline_s = time.monotonic() + timeout_s
        while not all(map(reached, self._states)):
            if self._lost:
                return False
            left_s = deadline_s - time.monotonic()
            if left_s <= 0:
                for worker in self._states:
                    if not reached(worker):
                        self._lose(worker, f"{missed} within {timeout_s:g} s")
                return False
            try:
                number, message = self._inbox.get(timeout=min(left_s, _POLL_S))
            except queue.Empty:
                continue
            self._take(self._states[number], message)
        return not self._lost

    def _take(self, worker: _Worker, message: tuple[str, dict[str, Any]] | None) -> None:
        if worker.measurement is not None or worker.lost:
            return
        if message is None:
            self._lose(worker, "it ended without a result")
            return
        kind, content = message
        if kind == messages.STARTED and not worker.rehearsal_s:
            worker.rehearsal_s = time.monotonic()
            self.workers.rehearse(worker.number)
        elif kind == messages.REHEARSED and worker.learned_after_s is None:
            worker.learned_after_s = time.monotonic() - worker.rehearsal_s
        elif kind == messages.READY:
            worker.clock = ClockOffset(**content)
        elif kind == messages.PROGRESS:
            worker.progress = LoadProgress(**content)
            self.report(self._total())
        elif kind == messages.PART:
            worker.parts.add(content)
        elif kind == messages.DONE:
            self._finish(worker, content)
        elif kind == messages.ERROR:
            self._lose(worker, str(content.get("text")))

    def _finish(self, worker: _Worker, end: dict[str, Any]) -> None:
        try:
            measurement = parse_result(worker.parts.join(end))
        except (ValueError, StageError) as error:
            self._lose(worker, str(error))
            return
        planned = self.step.planned_requests
        expected = None if planned is None else len(Share(worker.number, self.workers.count).places(self.step, planned))
        if expected not in (None, len(measurement.samples)):
            self._lose(worker, f"expected {expected} samples, got {len(measurement.samples)}")
        else:
            worker.measurement = measurement

    def _lose(self, worker: _Worker, reason: str) -> None:
        worker.lost = reason
        seen = self.workers.describe_end(worker.number)
        text = f"{reason} ({seen})" if seen else reason
        self._lost.append(LostWorker(worker.number, self.workers.name(worker.number), text))

    def _total(self) -> LoadProgress:
        """The progress of all workers as one."""
        seen = [worker.progress for worker in self._states if worker.progress is not None]
        warmups = [one.warmup for one in seen if one.warmup is not None]
        if warmups:
            return LoadProgress(warmup=(sum(done for done, _ in warmups), self.step.warmup_requests))
        engine = self._states[0].progress or LoadProgress()
        return LoadProgress(
            sent=sum(one.sent for one in seen),
            done=sum(one.done for one in seen),
            failed=sum(one.failed for one in seen),
            elapsed_s=max(one.elapsed_s for one in seen),
            running=engine.running,
            waiting=engine.waiting,
        )


def parse_result(data: bytes) -> Measurement:
    """Read a worker's samples file from its bytes.

    Raises:
        ConfigError: it is not one; names line and field.
    """
    with tempfile.TemporaryDirectory(prefix="vllm-stage-load-") as folder:
        path = Path(folder) / "samples"
        path.write_bytes(data)
        return read_measurement(path)

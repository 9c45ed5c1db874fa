"""Open-loop traffic in the background of a disruption; the driver is that of the load steps."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.load import process
from pytest_vllm_stage.load.driver import LoadJob
from pytest_vllm_stage.measurement.samples import Measurement, Sample
from pytest_vllm_stage.measurement.samples_file import as_saved
from pytest_vllm_stage.resilience.window import Marks, Promise, find_recovery

#: Why the traffic ended, in the samples' file.
OVER = "the window is over"
#: Beyond a request's own time limit, for the driver to start and to end.
_GRACE_S = 60.0


@dataclass
class Traffic:
    """The traffic of one disruption, sent by the driver's process and followed by a thread.

    Attributes:
        job: What is sent.
        journal: Records the load and the waits.
    """

    job: LoadJob
    journal: Journal
    _samples: list[Sample] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)
    _measurement: Measurement | None = None
    _error: Exception | None = None
    _started_at: float = float("inf")

    def __post_init__(self) -> None:
        self._thread = threading.Thread(target=self._follow, name="traffic", daemon=True)

    def _follow(self) -> None:
        try:
            self._measurement = as_saved(process.measure(self.job, self.journal, watcher=self._watch))
        except Exception as error:
            self._error = error

    def _watch(self, sample: Sample) -> str | None:
        self._started_at = min(self._started_at, time.time() - sample.end_s)
        self._samples.append(sample)
        return OVER if self._stop.is_set() else None

    @property
    def ended(self) -> bool:
        """All requests were sent and answered, or the driver failed."""
        return not self._thread.is_alive()

    def completed(self) -> list[Sample]:
        """The samples up to the first request that is still in flight, in the schedule's order."""
        known = {sample.index: sample for sample in list(self._samples)}
        found: list[Sample] = []
        while (sample := known.get(len(found))) is not None:
            found.append(sample)
        return found

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """End the sending, and wait for the requests in flight."""
        self._stop.set()
        self._thread.join(self.job.step.request_timeout_s + _GRACE_S)

    def end(self) -> Measurement:
        """Stop, and return the measurement.

        Raises:
            StageError: the driver failed.
        """
        self.stop()
        if self._error is not None:
            raise self._error
        if self._measurement is None:
            raise StageError(f"the traffic of {self.job.step.id} did not end")
        return self._measurement

    def await_answers(self, seconds: float) -> None:
        """Wait until requests scheduled over so many seconds are answered.

        Raises:
            WaitFailed: they are not.
        """
        self._await(f"{seconds:g} s of traffic", lambda: self._covers(seconds), seconds + _GRACE_S)

    def _covers(self, seconds: float) -> bool:
        done = self.completed()
        return bool(done) and done[-1].scheduled_s >= seconds

    def await_recovery(self, began_at: float, ended_at: float, promise: Promise, timeout_s: float) -> None:
        """Wait until the stage has recovered, or the time is over: the verdict says which.

        Args:
            began_at: The disruption's start in seconds since the epoch.
            ended_at: Its end.
            promise: Decides what a recovery is.
            timeout_s: Seconds to wait.
        """
        until = time.monotonic() + timeout_s

        def recovered() -> bool:
            marks = Marks(began_at - self._started_at, ended_at - self._started_at)
            return find_recovery(self.completed(), marks, promise) is not None

        what = "every request succeeds again"
        self._await(what, lambda: time.monotonic() >= until or recovered(), timeout_s + _GRACE_S)

    def _await(self, what: str, reached: Callable[[], bool], timeout_s: float) -> None:
        def look() -> Observation:
            failed = sum(sample.failure is not None for sample in list(self._samples))
            state = f"{len(self._samples)} requests answered, {failed} failed"
            return Observation(self.ended or reached(), state)

        wait_until(f"{self.job.step.id}: {what}", look, timeout_s=timeout_s, journal=self.journal, interval_s=0.2)


@contextmanager
def running(job: LoadJob, journal: Journal) -> Iterator[Traffic]:
    """Traffic for a ``with`` statement; it ends with the block, however that ends."""
    traffic = Traffic(replace(job, fresh_connections=True), journal)
    traffic.start()
    try:
        yield traffic
    finally:
        traffic.stop()

"""A driver's observations of itself during a step: its progress, and the lag of its event loop."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

from pytest_vllm_stage.measurement.statistics import rank_of
from pytest_vllm_stage.measurement.step import LoadStep

_INTERVAL_S = 0.05
#: The loop's own timers are this coarse; less is not a lag.
_TIMER_S = 0.002


@dataclass
class LoadProgress:
    """The progress of a step.

    Attributes:
        sent: Requests sent.
        done: Answers complete, failed ones included.
        failed: Of these, failed.
        elapsed_s: Since the step's start.
        running: The engine's batch, at the last reading.
        waiting: The engine's queue, at the last reading.
        certain: The verdict that has just become certain, which ends the sending; empty otherwise.
        warmup: How many answers of the warm-up are complete, and how many there will be; None once it is over.
    """

    sent: int = 0
    done: int = 0
    failed: int = 0
    elapsed_s: float = 0.0
    running: float | None = None
    waiting: float | None = None
    certain: str = ""
    warmup: tuple[int, int] | None = None

    def text(self, step: LoadStep) -> str:
        """The state in a few words."""
        if self.warmup is not None:
            return "warm-up: {} of {} answered".format(*self.warmup)
        engine = "" if self.running is None else f", engine runs {self.running:g}, {self.waiting or 0:g} wait"
        failed = f", {self.failed} failed" if self.failed else ""
        planned = f" of {step.planned_requests}" if step.open_loop else ""
        return f"{self.sent}{planned} sent, {self.done} answered{failed}{engine}"


class LoopLag:
    """Measures the lag of the event loop, which delays send times and token times alike."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._late_s: list[float] = []
        self._expected_s = 0.0
        self._next()

    def _next(self) -> None:
        self._expected_s = time.perf_counter() + _INTERVAL_S
        self._handle = self._loop.call_later(_INTERVAL_S, self._fired)

    def _fired(self) -> None:
        self._late_s.append(time.perf_counter() - self._expected_s)
        self._next()

    def restart(self) -> None:
        """Forget what was measured so far."""
        self._late_s.clear()

    def stop(self) -> None:
        """Measure no more."""
        self._handle.cancel()

    def p99_ms(self) -> float | None:
        """The 99th percentile, corrected for the timer's resolution; None before anything was measured."""
        if not self._late_s:
            return None
        late_s = sorted(self._late_s)[rank_of(99, len(self._late_s)) - 1]
        return max(0.0, late_s - _TIMER_S) * 1000

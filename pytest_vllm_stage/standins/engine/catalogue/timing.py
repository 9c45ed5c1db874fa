"""Faults of time: an engine that freezes, starts slowly, or keeps some requests waiting."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from pytest_vllm_stage.standins.engine.engine import Engine
from pytest_vllm_stage.standins.engine.faults import Fault, fault


@fault("stall")
@dataclass
class Stall(Fault):
    """The engine freezes again and again.

    Attributes:
        duration_s: How long each time.
        every_s: Interval between the starts of two freezes.
    """

    duration_s: float = 2.0
    every_s: float = 15.0
    _timer: asyncio.TimerHandle | None = field(default=None, init=False, repr=False)

    def start(self, engine: Engine) -> None:
        """Freeze after the first interval, and so on."""
        self._timer = asyncio.get_running_loop().call_later(self.every_s, self._freeze, engine)

    def _freeze(self, engine: Engine) -> None:
        engine.pause(self.duration_s)
        self.start(engine)

    def stop(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


@fault("slow_start")
@dataclass
class SlowStart(Fault):
    """Answers are slow for a while after the start.

    Attributes:
        for_s: How long.
        delay_s: What is added to the time to first token.
    """

    for_s: float = 10.0
    delay_s: float = 1.0
    _until: float = field(default=0.0, init=False, repr=False)

    def start(self, engine: Engine) -> None:
        self._until = time.perf_counter() + self.for_s

    def extra_s(self) -> float:
        return self.delay_s if time.perf_counter() < self._until else 0.0


@fault("slow_requests")
@dataclass
class SlowRequests(Fault):
    """A fraction of the requests waits long for its first token.

    Attributes:
        delay_s: How long.
    """

    share: float = 0.02
    delay_s: float = 1.0

    def extra_s(self) -> float:
        return self.delay_s

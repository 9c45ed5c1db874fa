"""The first request after a pause of the whole endpoint, compared with those after it."""

from __future__ import annotations

import time
from dataclasses import dataclass

from pytest_vllm_stage.checks.inference.patterns import pattern
from pytest_vllm_stage.serving.client import EndpointClient

#: Seconds without a request: longer than the idle limits of gateways' connections to backends, mostly 5 s or less.
PAUSE_S = 8.0
#: Requests after the first one.
OTHERS = 3
#: The first one is slow from this factor, and from so many seconds, over the slowest of the others.
SLOW_FACTOR, LEAST_SLOWER_S = 4.0, 0.75


@dataclass(frozen=True)
class AfterPause:
    """How long requests took after a pause.

    Attributes:
        pause_s: The pause.
        first_s: The first one.
        others_s: The slowest of those after it.
    """

    pause_s: float
    first_s: float
    others_s: float

    @property
    def is_slow(self) -> bool:
        """Whether the pause made the first one slow."""
        return self.first_s > SLOW_FACTOR * self.others_s and self.first_s - self.others_s > LEAST_SLOWER_S

    def describe(self) -> str:
        """What was measured, in words."""
        return (
            f"it took {self.first_s:.2f} s after {self.pause_s:.0f} s without a request, "
            f"the {OTHERS} after it {self.others_s:.2f} s at most"
        )


def ask_after_pause(endpoint: EndpointClient) -> AfterPause:
    """Pause, then ask for one token several times, one after the other."""
    time.sleep(PAUSE_S)
    took_s = []
    for _ in range(1 + OTHERS):
        started_s = time.monotonic()
        endpoint.completion(pattern(33).prompt(), temperature=0, max_tokens=1)
        took_s.append(time.monotonic() - started_s)
    return AfterPause(PAUSE_S, took_s[0], max(took_s[1:]))

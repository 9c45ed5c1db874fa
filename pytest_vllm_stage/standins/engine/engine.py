"""The queue, the slots and the clock: when each token of each request should be emitted, and when it was.

A request waits for a slot in order of arrival, is prefilled, and then emits its tokens at absolute deadlines: one
late token does not delay those after it. One timer serves all requests.
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
import time
from array import array
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any

from pytest_vllm_stage.standins.engine.prefix_cache import PrefixCache
from pytest_vllm_stage.standins.engine.settings import Settings
from pytest_vllm_stage.standins.engine.stats import Stats

#: Finished requests whose times are kept.
KEPT_TRUTHS = 100_000


class Job:
    """One request in the engine, and afterwards the record of its true times. Times are ``time.perf_counter()``.

    Args:
        request_id: The id in the response.
        prompt: The prompt's pieces.
        tokens: How many tokens will be generated.
        on_token: Called with the index of each token when it is emitted; the last index ends the request.
        finish_reason: Why the answer ends.
        received_at: When the request was read.
        extra_s: Time added before the first token, by a fault.
    """

    __slots__ = (
        "admitted_at",
        "cached_tokens",
        "deadline",
        "extra_s",
        "faults",
        "finish_reason",
        "finished_at",
        "on_token",
        "pace",
        "prompt",
        "prompt_tokens",
        "received_at",
        "request_id",
        "token_times",
        "tokens",
    )

    def __init__(
        self,
        request_id: str,
        prompt: Sequence[bytes],
        tokens: int,
        on_token: Callable[[int], None],
        finish_reason: str,
        received_at: float,
        extra_s: float = 0.0,
        faults: Sequence[str] = (),
    ) -> None:
        self.request_id = request_id
        self.prompt: Sequence[bytes] = prompt
        self.prompt_tokens = len(prompt)
        self.tokens = tokens
        self.on_token = on_token
        self.finish_reason = finish_reason
        self.received_at = received_at
        self.extra_s = extra_s
        self.faults = faults
        self.cached_tokens = 0
        self.admitted_at = math.nan
        self.finished_at = math.nan
        self.deadline = math.nan
        self.pace = 1.0
        self.token_times = array("d")

    @property
    def running(self) -> bool:
        """It has a slot."""
        return not math.isnan(self.admitted_at) and math.isnan(self.finished_at)

    def truth(self) -> dict[str, Any]:
        """What really happened, as plain data."""
        return {
            "request_id": self.request_id,
            "received_at": self.received_at,
            "admitted_at": None if math.isnan(self.admitted_at) else self.admitted_at,
            "finished_at": self.finished_at,
            "token_times": self.token_times.tolist(),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "completion_tokens": len(self.token_times),
            "finish_reason": self.finish_reason,
            "faults": list(self.faults),
        }


def _ignore_token(_place: int) -> None:
    """Token callback of a job that has ended."""


class Engine:
    """Runs jobs; created and used inside one event loop."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.stats = Stats()
        self.truths: deque[Job] = deque(maxlen=KEPT_TRUTHS)
        self.lateness_max_s = 0.0
        self.running = 0
        self._waiting: deque[Job] = deque()
        self._scheduled: list[tuple[float, int, Job]] = []
        self._order = 0
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = math.inf
        self._paused_until = 0.0
        self._random = random.Random(settings.seed)  # noqa: S311 - service times, not a secret
        self._cache = PrefixCache(settings.block_size, settings.kv_cache_tokens)

    @property
    def waiting(self) -> int:
        """Requests in the queue."""
        return len(self._waiting)

    @property
    def kv_cache_usage(self) -> float:
        """The share of the KV cache that running requests hold."""
        held = sum(job.prompt_tokens + len(job.token_times) for _, _, job in self._scheduled if job.running)
        return min(held / self.settings.kv_cache_tokens, 1.0)

    def submit(self, job: Job) -> None:
        """Queue a job."""
        if self.running < self.settings.max_num_seqs:
            self._admit(job)
            self._arm()
        else:
            self._waiting.append(job)

    def abort(self, job: Job) -> None:
        """The client of a job disconnected: its slot is free at once."""
        if not math.isnan(job.finished_at):
            return
        job.finish_reason = "abort"
        if job.running:
            self._leave(job)
            self._arm()
        else:
            self._waiting.remove(job)
            job.finished_at = time.perf_counter()
            self._keep(job)

    def pause(self, seconds: float) -> None:
        """Emit no token for this long, and shift everything scheduled by as much, as when an engine freezes."""
        self._paused_until = time.perf_counter() + seconds
        self._scheduled = [(deadline + seconds, order, job) for deadline, order, job in self._scheduled]
        for deadline, _, job in self._scheduled:
            job.deadline = deadline
        self._arm()

    def _admit(self, job: Job) -> None:
        now = job.admitted_at = time.perf_counter()
        job.cached_tokens = self._cache.look_up(job.prompt)
        self.stats.prefix_cache_queries += job.prompt_tokens
        self.stats.prefix_cache_hits += job.cached_tokens
        self.running += 1
        settings = self.settings
        if settings.jitter:
            job.pace = self._random.lognormvariate(0.0, settings.jitter)
        prefill_s = (job.prompt_tokens - job.cached_tokens) / settings.prefill_tokens_per_s
        first_s = job.pace * (settings.ttft_ms / 1000 + prefill_s) + job.extra_s
        self._push(job, max(now, self._paused_until) + first_s)

    def _push(self, job: Job, deadline: float) -> None:
        job.deadline = deadline
        self._order += 1
        heapq.heappush(self._scheduled, (deadline, self._order, job))

    def _arm(self) -> None:
        """Set the one timer to the earliest deadline."""
        first = self._scheduled[0][0] if self._scheduled else math.inf
        if first == self._timer_at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = first
        delay_s = max(first - time.perf_counter(), 0.0)
        self._timer = None if first == math.inf else asyncio.get_running_loop().call_later(delay_s, self._fire)

    def _fire(self) -> None:
        """Emit every token whose deadline has passed."""
        self._timer, self._timer_at = None, math.inf
        scheduled = self._scheduled
        now = time.perf_counter()
        if scheduled:
            self.lateness_max_s = max(self.lateness_max_s, now - scheduled[0][0])
        while scheduled and scheduled[0][0] <= now:
            _, _, job = heapq.heappop(scheduled)
            if job.running:
                self._emit(job)
        self._arm()

    def _emit(self, job: Job) -> None:
        place = len(job.token_times)
        job.token_times.append(time.perf_counter())
        self.stats.generation_tokens += 1
        if place == 0:
            self.stats.prompt_tokens += job.prompt_tokens
        if place + 1 < job.tokens:
            settings = self.settings
            batch = 1.0 + settings.itl_growth * (self.running - 1)
            self._push(job, job.deadline + job.pace * settings.itl_ms * batch / 1000)
            job.on_token(place)
        else:
            job.on_token(place)
            if job.running:
                self._leave(job)

    def _leave(self, job: Job) -> None:
        """Give the slot of a job to the next one."""
        job.finished_at = time.perf_counter()
        self.running -= 1
        self._keep(job)
        if self._waiting:
            self._admit(self._waiting.popleft())

    def _keep(self, job: Job) -> None:
        """Keep only the times: the prompt and the response would take kilobytes per request."""
        self.stats.finish(job)
        job.prompt = ()
        job.on_token = _ignore_token
        self.truths.append(job)

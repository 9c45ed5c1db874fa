"""Carries a step out in this process's event loop: sends on an absolute schedule, and returns one sample per request.

Everything is a callback on the loop: no task per request, no clock but ``perf_counter``, no parsing that delays a
token. Nothing in flight is cancelled at the end of a step, except by its own time limit, or where the step ended early
because it is past capacity: then the requests in flight are abandoned instead of waiting for the whole backlog.
"""

from __future__ import annotations

import asyncio
import gc
import resource
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.connections import Pool, parse_address
from pytest_vllm_stage.load.exchange import Exchange, Outgoing
from pytest_vllm_stage.load.monitor import Monitor, Source, gpu_source
from pytest_vllm_stage.load.nvml import open_local_gpus
from pytest_vllm_stage.load.progress import LoadProgress, LoopLag
from pytest_vllm_stage.load.timer import Timer
from pytest_vllm_stage.load.workers.share import WHOLE, Share
from pytest_vllm_stage.measurement.samples import (
    ABANDONED,
    PAST_CAPACITY,
    ClientFacts,
    EarlyStop,
    Failure,
    Measurement,
    Sample,
)
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep

VERSION = "1"
#: Plain progress lines of a load step: its state changes faster than that of other work.
PROGRESS_INTERVAL_S = 5.0
_REPORT_INTERVAL_S = 1.0
_UPKEEP_INTERVAL_S = 0.5
#: From the end of the warm-up to the first request.
_LEAD_S = 0.2
#: How often the engine is asked whether it has dropped the abandoned requests.
_IDLE_INTERVAL_S = 0.2

#: Called with each completed sample, in any order; a returned text ends the sending and is its reason. `PAST_CAPACITY`
#: also abandons what is in progress, and may come when everything was sent.
Watcher = Callable[[Sample], str | None]
#: Called with the step's progress.
Report = Callable[[LoadProgress], None]
#: Awaited when the warm-up is over; returns the ``perf_counter`` at which the step starts.
AgreeStart = Callable[[], Awaitable[float]]


@dataclass(frozen=True)
class LoadJob:
    """A step with everything it needs.

    Attributes:
        step: The plan.
        base_url: Root of the server, without ``/v1``.
        bodies: One JSON body per request, ready to send; a closed loop ends when it has used them up.
        warmup_bodies: The same for the warm-up.
        api_key: Sent as bearer token.
        ca_file: PEM file of the trusted authorities.
        metrics_url: Root of what serves the engine's ``/metrics``; default: the server itself.
        gpu_metrics_url: A DCGM exporter's page (``.../metrics``) or a Prometheus' root; None without GPU metrics.
        gpu_metrics_token: Sent there as bearer token.
        facts: Added to the measurement.
        share: Which part of the step is sent; the bodies are this part's.
        fresh_connections: Each request opens a connection of its own: a load balancer then chooses a pod for each.
    """

    step: LoadStep
    base_url: str
    bodies: Sequence[bytes]
    warmup_bodies: Sequence[bytes] = ()
    api_key: Secret | None = None
    ca_file: str | None = None
    metrics_url: str | None = None
    gpu_metrics_url: str | None = None
    gpu_metrics_token: Secret | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    share: Share = WHOLE
    fresh_connections: bool = False

    @property
    def users(self) -> int | None:
        """Concurrent users of a closed loop."""
        return self.share.users(self.step)

    def schedule_s(self) -> list[float]:
        """Send times of the bodies of an open loop, in seconds from the step's start."""
        times_s = self.step.schedule_s()
        return [times_s[place] for place in self.share.places(self.step, len(times_s))][: len(self.bodies)]


async def start_soon() -> float:
    """The start of a step that nothing else waits for."""
    return time.perf_counter() + _LEAD_S


async def run_step(
    job: LoadJob,
    *,
    watcher: Watcher | None = None,
    report: Report = lambda _progress: None,
    agree_start: AgreeStart = start_soon,
) -> Measurement:
    """Warm up, carry the step out, and wait for every answer; past capacity, until the engine has dropped the rest.

    Args:
        job: What to do.
        watcher: Receives each sample, and may end the sending early.
        report: Receives the progress about once a second.
        agree_start: Decides when the step starts.
    """
    loop_lag = LoopLag()
    pool = Pool(parse_address(job.base_url, job.ca_file), fresh=job.fresh_connections)
    await pool.resolve()
    await warm_up(job, pool, report)
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        zero_s = await agree_start()
        return await _StepInProgress(job, pool, watcher, report, loop_lag, zero_s).carry_out()
    finally:
        gc.enable()
        gc.unfreeze()
        loop_lag.stop()
        await pool.close()


def _head(job: LoadJob) -> bytes:
    address = parse_address(job.base_url, job.ca_file)
    path = "/v1/chat/completions" if job.step.api == "chat" else "/v1/completions"
    lines = [
        f"POST {address.prefix}{path} HTTP/1.1",
        f"host: {address.authority}",
        "content-type: application/json",
        "accept: text/event-stream",
        f"user-agent: pytest-vllm-stage-load/{VERSION}",
    ]
    return "\r\n".join(lines).encode() + b"\r\n" + _bearer(job.api_key)


def _bearer(token: Secret | None) -> bytes:
    return f"authorization: Bearer {token.reveal()}\r\n".encode() if token else b""


async def warm_up(job: LoadJob, pool: Pool, report: Report = lambda _progress: None) -> list[Sample]:
    """Send the warm-up, a few at a time, and wait for it; the step itself shows its failures."""
    waiting = list(enumerate(job.warmup_bodies))
    samples: list[Sample] = []
    done = asyncio.Event()

    def finished(sample: Sample) -> None:
        samples.append(sample)
        report(LoadProgress(warmup=(len(samples), len(job.warmup_bodies))))
        if waiting:
            start()
        elif len(samples) == len(job.warmup_bodies):
            done.set()

    def start() -> None:
        index, body = waiting.pop(0)
        now_s = time.perf_counter()
        Exchange(outgoing, index, body, now_s).start(now_s)

    outgoing = Outgoing(job.step, pool, _head(job), time.perf_counter(), finished)
    for _ in range(min(job.users or 4, len(waiting))):
        start()
    if job.warmup_bodies:
        await done.wait()
    return samples


class _StepInProgress:
    def __init__(
        self,
        job: LoadJob,
        pool: Pool,
        watcher: Watcher | None,
        report: Report,
        loop_lag: LoopLag,
        zero_s: float,
    ) -> None:
        self._job = job
        self._step = job.step
        self._pool = pool
        self._watcher = watcher
        self._report = report
        self._loop_lag = loop_lag
        self._loop = asyncio.get_running_loop()
        self._zero_s = zero_s
        self._started_at = time.time() + zero_s - time.perf_counter()
        self._out = Outgoing(job.step, pool, _head(job), self._zero_s, self._finished)
        self._schedule_s = job.schedule_s() if job.step.open_loop else []
        self._samples: list[Sample] = []
        self._exchanges: dict[int, Exchange] = {}
        self._sent = 0
        self._failed = 0
        self._open = 0
        self._sending = True
        self._abandoning = False
        self._ran_out = False
        self._stop: EarlyStop | None = None
        self._all_done = asyncio.Event()
        self._timer = Timer(self._loop, self._send_scheduled)
        self._monitor = create_monitor(job, self._zero_s)

    async def carry_out(self) -> Measurement:
        """Run it until the last answer."""
        rate = (self._step.request_rate or 1) / self._job.share.workers
        expected_open = self._job.users or min(64, max(4, round(rate)))
        await self._pool.warm(expected_open)
        await self._monitor.read()
        background = [self._loop.create_task(work) for work in (self._monitor.run(self._quiet_s()), self._run_upkeep())]
        self._loop_lag.restart()
        cpu_s = _cpu_s()
        self._timer.arm(max(self._zero_s, time.perf_counter()))
        try:
            await self._all_done.wait()
            wall_s = time.perf_counter() - self._zero_s
            client = self._client_facts(_cpu_s() - cpu_s, wall_s)
        finally:
            self._timer.close()
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
        await self._await_idle_engine()
        await self._monitor.read()
        await self._monitor.close()
        return Measurement(
            step=self._step,
            started_at=self._started_at,
            samples=tuple(sorted(self._samples, key=lambda sample: sample.index)),
            client=client,
            server=tuple(self._monitor.readings),
            early_stop=self._stop,
            facts={**self._job.facts, **({"prompts_ran_out": True} if self._ran_out else {})},
        )

    def _client_facts(self, cpu_s: float, wall_s: float) -> ClientFacts:
        return ClientFacts(
            driver=f"asyncio {VERSION}",
            cpu_s=cpu_s,
            wall_s=wall_s,
            loop_lag_p99_ms=self._loop_lag.p99_ms(),
            connections=self._pool.opened,
            resent=sum(sample.resent for sample in self._samples),
        )

    def _send_scheduled(self) -> None:
        """Send the requests whose scheduled time has come; called by the timer."""
        if not self._step.open_loop:
            for _ in range(self._job.users or 1):
                self._send_next_user()
            return
        while self._sending and self._sent < len(self._schedule_s):
            scheduled_s = self._zero_s + self._schedule_s[self._sent]
            now_s = time.perf_counter()
            if scheduled_s > now_s:
                self._timer.arm(scheduled_s)
                return
            self._start(scheduled_s, now_s)
        self._sending = False

    def _send_next_user(self) -> None:
        """Send the next request of a free user of a closed loop, while the step lasts."""
        now_s = time.perf_counter()
        over = now_s - self._zero_s >= self._step.duration_s
        if over or self._sent >= len(self._job.bodies):
            self._ran_out = self._ran_out or (self._sending and not over)
            self._sending = False
        if self._sending:
            self._start(now_s, now_s)

    def _start(self, scheduled_s: float, now_s: float) -> None:
        index = self._sent
        self._sent += 1
        self._open += 1
        exchange = self._exchanges[index] = Exchange(self._out, index, self._job.bodies[index], scheduled_s)
        exchange.start(now_s)

    def _finished(self, sample: Sample) -> None:
        self._samples.append(sample)
        self._open -= 1
        self._failed += sample.failed
        del self._exchanges[sample.index]
        reason = self._watcher(sample) if self._watcher and not sample.abandoned else None
        if reason and (self._sending or reason == PAST_CAPACITY):
            self._end_early(reason)
        if not self._step.open_loop:
            self._loop.call_soon(self._user_is_free)
        elif not self._sending and not self._open:
            self._all_done.set()

    def _user_is_free(self) -> None:
        self._send_next_user()
        if not self._sending and not self._open:
            self._all_done.set()

    def _end_early(self, reason: str) -> None:
        if self._abandoning:
            return
        self._abandoning = reason == PAST_CAPACITY and self._engine_load_at_start() is not None
        if self._sending or (self._stop is None and self._abandoning):
            at_s = time.perf_counter() - self._zero_s
            self._stop = EarlyStop(at_s, self._sent, reason, max(0.0, self._step.duration_s - at_s))
            self._report(replace(self._progress(time.perf_counter()), certain=reason))
        self._sending = False
        if self._abandoning:
            self._loop.call_soon(self._abandon)

    def _abandon(self) -> None:
        """Give up every request in progress."""
        failure = Failure(ABANDONED, f"given up: {PAST_CAPACITY} was certain")
        for exchange in list(self._exchanges.values()):
            exchange.abandon(failure)

    def _engine_load_at_start(self) -> float | None:
        """The requests in the engine before the step's first one; None where the engine does not report them."""
        first = self._monitor.readings[0] if self._monitor.readings else None
        return None if first is None or first.running is None else first.running + (first.waiting or 0.0)

    async def _await_idle_engine(self) -> None:
        """Wait until the engine has dropped the abandoned requests, so that they do not slow the next step's down.

        An engine that goes on with them is waited for as long as their answers would have been.
        """
        if not any(sample.abandoned for sample in self._samples):
            return
        before, kept = self._engine_load_at_start() or 0.0, len(self._monitor.readings)
        until_s = time.perf_counter() + self._step.request_timeout_s
        while time.perf_counter() < until_s:
            await self._monitor.read()
            last = self._monitor.readings[-1]
            if last.running is None or last.running + (last.waiting or 0.0) <= before:
                break
            await asyncio.sleep(_IDLE_INTERVAL_S)
        del self._monitor.readings[kept:]

    async def _run_upkeep(self) -> None:
        """Maintain the connections twice a second, and report the step's progress."""
        reported_s, next_s = self._zero_s, self._quiet_s()
        while True:
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
            next_s += _UPKEEP_INTERVAL_S
            self._pool.upkeep()
            now_s = time.perf_counter()
            if now_s - reported_s >= _REPORT_INTERVAL_S:
                reported_s = now_s
                self._report(self._progress(now_s))

    def _quiet_s(self) -> float:
        """When to start the background work: half-way between two sends where they are regular.

        Otherwise work of every second would coincide with a request of a whole-number rate every time, and delay it.
        """
        rate = self._step.request_rate if self._step.arrivals == CONSTANT else None
        return self._zero_s + (0.5 / rate if rate else 0.0)

    def _progress(self, now_s: float) -> LoadProgress:
        last = self._monitor.readings[-1] if self._monitor.readings else None
        return LoadProgress(
            sent=self._sent,
            done=len(self._samples),
            failed=self._failed,
            elapsed_s=now_s - self._zero_s,
            running=last.running if last else None,
            waiting=last.waiting if last else None,
        )


def create_monitor(job: LoadJob, zero_s: float) -> Monitor:
    """Create a monitor of the job's engine, and of its GPUs: an exporter's, else those of a server on this machine.

    Where several drivers share a step, the first one reads them for all.
    """
    if job.share.worker:
        return Monitor(None, None, zero_s)
    engine = parse_address(job.metrics_url or job.base_url, job.ca_file)
    gpu = gpu_source(parse_address(job.gpu_metrics_url, job.ca_file)) if job.gpu_metrics_url else None
    local_gpus = None if gpu else open_local_gpus(engine.host, engine.port)
    headers, gpu_headers = _bearer(job.api_key), _bearer(job.gpu_metrics_token)
    return Monitor(Source(engine, model=job.step.model), gpu, zero_s, headers, gpu_headers, local_gpus)


def _cpu_s() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime

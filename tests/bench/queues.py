"""Seeded queues for `bench_verdicts`: steps in the stationary queue or from an empty engine, and true percentiles.

The unit of time is a mean answer. TTFT is the wait and a lognormal prefill (median 0.1, sigma 0.25, at most half of the
answer); the end-to-end latency is the wait and the answer. M/M and M/D have Poisson arrivals and exponential or equal
answer times; D/L has constant arrivals and lognormal answer times (sigma 0.05). ``sim`` is the simulated engine itself
on a virtual clock.
"""

from __future__ import annotations

import heapq
import math
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple
from unittest import mock

import numpy as np

from pytest_vllm_stage.measurement.samples import ClientFacts, Measurement, Sample, ServerReading
from pytest_vllm_stage.measurement.step import CONSTANT, POISSON, LoadStep
from pytest_vllm_stage.standins.engine import engine as engine_module
from pytest_vllm_stage.standins.engine.engine import Engine, Job
from pytest_vllm_stage.standins.engine.settings import Settings
from tests.unit.made_samples import STARTED_AT

QUEUES = ("M/M", "M/D", "D/L", "sim")
SIGMA = 0.05
#: Requests before a step of M/D or D/L, which leave the empty start behind.
WARM_UP = {"M/D": 20_000, "D/L": 2_000, "sim": 20_000}
#: Requests behind the true percentiles.
TRUTH = {"M/M": 4_000_000, "M/D": 8_000_000, "D/L": 400_000, "sim": 300_000}
#: The simulated engine's are run in so many parts, since each keeps its requests in memory.
TRUTH_PARTS = 8
READINGS = 50


class Row(NamedTuple):
    """One request: when it arrived, started, gave its first token and ended."""

    at_s: float
    start_s: float
    first_s: float
    end_s: float


@dataclass
class Case:
    """A queue at a load.

    Attributes:
        queue: One of `QUEUES`.
        load: Offered rate over capacity.
        servers: Requests that run at once.
        empty: Steps begin with an empty engine.
    """

    queue: str
    load: float
    servers: int
    empty: bool = False

    @property
    def rate(self) -> float:
        """Requests per mean answer."""
        return self.load * self.servers

    @property
    def arrivals(self) -> str:
        """The plan's kind of arrivals."""
        return CONSTANT if self.queue == "D/L" else POISSON

    @property
    def _varied(self) -> float:
        """Equal answers get the prefill on top: most of them would have exactly the true percentile."""
        return float(self.queue == "M/D")

    def steps(self, seeds: range, n: int) -> Iterator[list[Row]]:
        """The requests of one step per seed; those of the simulated engine follow each other."""
        if self.queue == "sim" and not self.empty:
            rows = simulated_requests(self, np.random.default_rng([7, seeds.start]), WARM_UP["sim"] + n * len(seeds))
            for k in range(len(seeds)):
                yield rows[WARM_UP["sim"] + k * n : WARM_UP["sim"] + (k + 1) * n]
            return
        for seed in seeds:
            dice = np.random.default_rng([seed, round(1000 * self.load), QUEUES.index(self.queue)])
            if self.queue == "sim":
                yield simulated_requests(self, dice, n)
            else:
                yield self._requests(dice, n)

    def _requests(self, dice: np.random.Generator, n: int) -> list[Row]:
        before = 0 if self.empty else WARM_UP.get(self.queue, 0)
        gaps = np.ones(before + n) / self.rate if self.queue == "D/L" else dice.exponential(1 / self.rate, before + n)
        arrivals = np.cumsum(gaps)
        served = self._served(dice, before + n)
        if self.queue == "M/D":
            waits = equal_waits(arrivals, self.servers)
        else:
            free = [0.0] * self.servers if self.empty or before else stationary_free(self, dice)
            waits = _fifo_waits(arrivals.tolist(), served.tolist(), free)
        arrivals, waits, served = arrivals[before:], waits[before:], served[before:]
        start = arrivals + waits
        prefill = _prefill(dice, served)
        columns = (arrivals, start, start + prefill, start + served + self._varied * prefill)
        return [Row(*row) for row in zip(*(column.tolist() for column in columns), strict=True)]

    def _served(self, dice: np.random.Generator, n: int) -> np.ndarray:
        if self.queue == "M/M":
            return dice.exponential(1.0, n)
        return np.ones(n) if self.queue == "M/D" else dice.lognormal(-(SIGMA**2) / 2, SIGMA, n)

    def true_latencies(self) -> dict[str, np.ndarray]:
        """TTFT and end-to-end latencies of the stationary queue, ascending."""
        n, dice = TRUTH[self.queue], np.random.default_rng([3, round(1000 * self.load)])
        if self.queue == "sim":
            parts = [self._simulated_latencies(dice, n) for _ in range(TRUTH_PARTS)]
            ttft, e2e = np.concatenate(parts, axis=1)
            return {"ttft": np.sort(ttft), "e2e_latency": np.sort(e2e)}
        served = self._served(dice, n)
        if self.queue == "M/M":
            waits = np.where(dice.random(n) < waiting_probability(self.servers, self.load), 1.0, 0.0)
            waits *= dice.exponential(1 / (self.servers * (1 - self.load)), n)
        elif self.queue == "M/D":
            waits = equal_waits(np.cumsum(dice.exponential(1 / self.rate, n)), self.servers)
        else:
            waits = _fifo_waits((np.arange(n) / self.rate).tolist(), served.tolist(), [0.0] * self.servers)
        prefill = _prefill(dice, served)
        rest = slice(WARM_UP.get(self.queue, 0), None)
        ends = waits + served + self._varied * prefill
        return {"ttft": np.sort((waits + prefill)[rest]), "e2e_latency": np.sort(ends[rest])}

    def _simulated_latencies(self, dice: np.random.Generator, n: int) -> np.ndarray:
        rows = simulated_requests(self, dice, WARM_UP["sim"] + n)[WARM_UP["sim"] :]
        return np.array([[row.first_s - row.at_s for row in rows], [row.end_s - row.at_s for row in rows]])


def _prefill(dice: np.random.Generator, served: np.ndarray) -> np.ndarray:
    return np.minimum(0.1 * dice.lognormal(0.0, 0.25, len(served)), served / 2)


def _fifo_waits(arrivals: Sequence[float], served: Sequence[float], free: list[float]) -> np.ndarray:
    heapq.heapify(free)
    waits = []
    for at_s, served_s in zip(arrivals, served, strict=True):
        start_s = max(at_s, free[0])
        heapq.heapreplace(free, start_s + served_s)
        waits.append(start_s - at_s)
    return np.array(waits)


def equal_waits(arrivals: np.ndarray, servers: int) -> np.ndarray:
    """The waits of M/D/c from an empty start: every c-th request is served by the same server (Lindley's recursion)."""
    n = -(-len(arrivals) // servers) * servers
    padded = np.full(n, arrivals[-1])
    padded[: len(arrivals)] = arrivals
    turns = padded.reshape(-1, servers)
    walk = np.arange(len(turns))[:, None] - turns + turns[0]
    waits: np.ndarray = walk - np.minimum.accumulate(walk, axis=0)
    return waits.reshape(-1)[: len(arrivals)]


def waiting_probability(servers: int, load: float) -> float:
    """Erlang C: the share of M/M/c requests that wait."""
    offered = servers * load
    blocked = 1.0
    for k in range(1, servers + 1):
        blocked = offered * blocked / (k + offered * blocked)
    return blocked / (1 - load * (1 - blocked))


def stationary_free(case: Case, dice: np.random.Generator) -> list[float]:
    """When each server of a stationary M/M/c queue is free, behind those that it holds at time 0."""
    servers, offered = case.servers, case.rate
    weights = [math.exp(k * math.log(offered) - math.lgamma(k + 1)) for k in range(servers)]
    waits = waiting_probability(servers, case.load)
    if dice.random() >= waits:
        busy = int(dice.choice(servers, p=np.array(weights) / sum(weights)))
        return [*dice.exponential(1.0, busy).tolist(), *[0.0] * (servers - busy)]
    free: list[float] = dice.exponential(1.0, servers).tolist()
    queued = int(dice.geometric(1 - case.load)) - 1
    heapq.heapify(free)
    for served_s in dice.exponential(1.0, queued).tolist():
        heapq.heapreplace(free, free[0] + served_s)
    return free


class VirtualEngine(Engine):
    """The simulated engine with its timer replaced by `run_until`, on a clock that jumps to the next event."""

    now = 0.0

    def perf_counter(self) -> float:
        """The virtual time."""
        return self.now

    def _arm(self) -> None:
        pass

    def run_until(self, at_s: float) -> None:
        """Emit every token until then."""
        while self._scheduled and self._scheduled[0][0] <= at_s:
            self.now = self._scheduled[0][0]
            self._fire()
        self.now = at_s


#: Four tokens per answer, which lasts about 1 with a full batch.
_SIM = Settings(ttft_ms=100.0, itl_ms=261.0, itl_growth=0.01, jitter=SIGMA)
_SIM_TOKENS = 4


def simulated_requests(case: Case, dice: np.random.Generator, n: int) -> list[Row]:
    """Requests of the simulated engine, from an empty start."""
    settings = replace(_SIM, max_num_seqs=case.servers, seed=int(dice.integers(2**31)))
    full = 1 + settings.itl_growth * (case.servers - 1)
    answer_s = (settings.ttft_ms + (_SIM_TOKENS - 1) * settings.itl_ms * full) / 1000
    engine = VirtualEngine(settings)
    jobs = []
    arrivals = np.cumsum(dice.exponential(answer_s / case.rate, n)).tolist()
    with mock.patch.object(engine_module, "time", engine):
        for at_s in arrivals:
            engine.run_until(at_s)
            job = Job("", (), _SIM_TOKENS, _ignore, "stop", at_s)
            engine.submit(job)
            jobs.append(job)
        engine.run_until(math.inf)
    return [Row(job.received_at, job.admitted_at, job.token_times[0], job.finished_at) for job in jobs]


def _ignore(_place: int) -> None:
    pass


def build_measurement(rows: Sequence[Row], arrivals: str) -> Measurement:
    """A step, with the engine's readings at 50 times; the start of the first request's gap is time 0."""
    n = len(rows)
    zero_s = rows[0].at_s - (rows[-1].at_s - rows[0].at_s) / (n - 1)
    duration_s = rows[-1].at_s - zero_s
    plan = LoadStep("full", "m", arrivals, duration_s, 64, 2, request_rate=n / duration_s)
    samples = []
    for i, row in enumerate(rows):
        at_s, first_s, end_s = row.at_s - zero_s, row.first_s - zero_s, row.end_s - zero_s
        samples.append(Sample(plan.id, i, at_s, at_s, (first_s, end_s), end_s, 64, 2, 64, 2, None, 200))
    readings = list(_readings(rows, zero_s, duration_s))
    return Measurement(plan, STARTED_AT, tuple(samples), ClientFacts("bench"), tuple(readings))


def _readings(rows: Sequence[Row], zero_s: float, duration_s: float) -> Iterator[ServerReading]:
    arrivals, starts = [row.at_s for row in rows], sorted(row.start_s for row in rows)
    ends = sorted(row.end_s for row in rows)
    for k in range(1, READINGS + 1):
        at_s = k * duration_s / (READINGS + 1)
        arrived, started, ended = (bisect_right(times, zero_s + at_s) for times in (arrivals, starts, ends))
        yield ServerReading(at_s, float(started - ended), float(arrived - started))

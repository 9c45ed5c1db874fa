"""How often verdicts are correct near capacity: the judge itself, over many seeded steps of simulated queues.

    python -m tests.bench.bench_verdicts [--steps 2000] [--servers 16] [--requests 600] [--load 0.7 ...]

Requests arrive by a Poisson process at a FIFO queue of so many servers (the batch), with exponential (M/M/c) or
equal (M/D/c) answer times of mean 1. TTFT is the wait and a lognormal prefill (median 0.1, sigma 0.25); the end-to-end
latency adds the answer. Each step is judged by `slo.verdict.judge`, with the engine's readings, against objectives that
lie on the stationary queue's true percentile or 20 % above it. Steps begin in the stationary queue; ``--empty`` begins
them with an empty engine, as real ones do. Past capacity (load above 1) they always begin empty, with an objective that
only the growth of the queue can break.
"""

from __future__ import annotations

import argparse
import heapq
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

from pytest_vllm_stage.measurement.samples import Measurement, Sample, ServerReading
from pytest_vllm_stage.measurement.statistics import nearest_rank
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import measurement, open_step, sample

LOADS = (0.5, 0.7, 0.9, 0.95, 1.03, 1.1)
#: Requests that estimate the true percentiles, and those that fill the queue before a step.
TRUTH = 400_000
INSIDE = 1 / 0.8
FAR_S = 1000.0
#: Objective's key, without unit, to the sample's latency.
OBJECTIVES = (("e2e_latency", 50, "s"), ("e2e_latency", 90, "s"), ("ttft", 90, "ms"), ("ttft", 99, "ms"))


@dataclass
class Queue:
    """A FIFO queue of c servers."""

    dice: random.Random
    servers: int
    load: float
    exponential: bool
    free: list[float] = field(default_factory=list)
    at_s: float = 0.0

    def __post_init__(self) -> None:
        self.free = [0.0] * self.servers

    def next(self) -> tuple[float, float, float]:
        """Arrival, wait and service of the next request."""
        self.at_s += self.dice.expovariate(self.load * self.servers)
        start_s = max(self.at_s, heapq.heappop(self.free))
        served_s = self.dice.expovariate(1.0) if self.exponential else 1.0
        heapq.heappush(self.free, start_s + served_s)
        return self.at_s, start_s - self.at_s, served_s

    def prefill_s(self) -> float:
        """What a first token takes without a wait."""
        return 0.1 * self.dice.lognormvariate(0.0, 0.25)


def true_percentiles(queue: Queue) -> dict[tuple[str, int], float]:
    """The stationary percentiles, from one long run."""
    ttfts, ends = [], []
    for i in range(TRUTH):
        _, wait_s, served_s = queue.next()
        if i >= TRUTH // 20:
            first_s = wait_s + queue.prefill_s()
            ttfts.append(first_s)
            ends.append(first_s + served_s)
    ordered = {"ttft": sorted(ttfts), "e2e_latency": sorted(ends)}
    return {(name, percent): nearest_rank(ordered[name], percent) for name, percent, _ in OBJECTIVES}


def step_of(queue: Queue, n: int, first_s: float) -> Measurement:
    """The next n requests as a step, with the engine's readings once a second of 50 in the step."""
    samples: list[Sample] = []
    rows = []
    for i in range(n):
        at_s, wait_s, served_s = queue.next()
        at_s -= first_s
        ttft_s = wait_s + queue.prefill_s()
        rows.append((at_s, at_s + wait_s, at_s + ttft_s + served_s))
        end_s = at_s + ttft_s + served_s
        times = (at_s + ttft_s, end_s)
        samples.append(replace(sample(i, at_s, tokens=2), token_times_s=times, end_s=end_s, output_tokens=2))
    duration_s = rows[-1][0]
    plan = open_step(n / duration_s, duration_s, output_tokens=2, arrivals="poisson")
    samples = [replace(one, expected_output_tokens=2) for one in samples]
    return measurement(plan, samples, list(_readings(rows, duration_s)))


def _readings(rows: Sequence[tuple[float, float, float]], duration_s: float) -> Iterator[ServerReading]:
    for k in range(1, 51):
        at_s = k * duration_s / 51
        waiting = sum(arrived <= at_s < started for arrived, started, _ in rows)
        running = sum(started <= at_s < ended for _, started, ended in rows)
        yield ServerReading(at_s, float(running), float(waiting))


@dataclass
class Tally:
    """Counts of verdicts over many steps."""

    steps: int = 0
    passed: int = 0
    failed: int = 0
    not_steady: int = 0
    early_pass: int = 0

    def add(self, made: Measurement, objective: Objective, *, early: bool = False) -> None:
        """Judge one step."""
        found = judge(made, [objective])[1]
        self.steps += 1
        self.passed += found.outcome == "pass"
        self.failed += found.outcome == "fail"
        self.not_steady += "not steady" in found.why or "past capacity" in found.why
        if early:
            watched = EarlyDecision(replace(made.step, decide_early=True), [objective])
            self.early_pass += "pass" in (watched(one) for one in made.samples[:-1])

    def share(self, count: int) -> str:
        """Per cent of the steps."""
        return f"{100 * count / self.steps:.1f} %"


def table(name: str, load: float, arguments: argparse.Namespace) -> Iterator[str]:
    """The rows of one kind of queue at one load."""
    exponential = name.startswith("M/M")
    dice = random.Random(f"{name} {load} {arguments.seed}")
    if load > 1:
        yield from _past_capacity(name, load, exponential, dice, arguments)
        return
    truth = true_percentiles(Queue(dice, arguments.servers, load, exponential))
    tallies = {(key, where): Tally() for key in OBJECTIVES for where in ("on", "inside")}
    queue = Queue(dice, arguments.servers, load, exponential)
    for _ in range(TRUTH // 20):
        queue.next()
    for k in range(arguments.steps):
        if arguments.empty:
            queue = Queue(dice, arguments.servers, load, exponential)
        made = step_of(queue, arguments.requests, queue.at_s)
        for key in OBJECTIVES:
            latency, percent, unit = key
            limit = truth[latency, percent] * (1000 if unit == "ms" else 1)
            early = k < arguments.early
            tallies[key, "on"].add(made, Objective(f"{latency}_p{percent}_{unit}", limit), early=early)
            tallies[key, "inside"].add(made, Objective(f"{latency}_p{percent}_{unit}", limit * INSIDE))
        for _ in range(0 if arguments.empty else arguments.requests):
            queue.next()
    for key in OBJECTIVES:
        on, inside = tallies[key, "on"], tallies[key, "inside"]
        watched = min(arguments.early, arguments.steps)
        early_text = f"{100 * on.early_pass / watched:.1f} %" if watched else "-"
        cells = [on.share(on.passed), early_text, on.share(on.failed), on.share(on.not_steady)]
        cells += [inside.share(inside.passed), inside.share(inside.failed), inside.share(inside.not_steady)]
        yield f"| {name} | {load:g} | {key[0]} P{key[1]} | {' | '.join(cells)} |"


def _past_capacity(
    name: str, load: float, exponential: bool, dice: random.Random, arguments: argparse.Namespace
) -> Iterator[str]:
    far, near = Tally(), Tally()
    for _ in range(arguments.steps):
        made = step_of(Queue(dice, arguments.servers, load, exponential), arguments.requests, 0.0)
        slowest = max((one.first_token_s or 0.0) - one.scheduled_s for one in made.samples)
        far.add(made, Objective("ttft_p90_ms", FAR_S * 1000))
        near.add(made, Objective("ttft_p90_ms", 1.3 * slowest * 1000))
    for label, tally in (("1000 answer times", far), ("1.3 x the slowest", near)):
        cells = [
            tally.share(tally.passed),
            "-",
            tally.share(tally.failed),
            tally.share(tally.not_steady),
            "-",
            "-",
            "-",
        ]
        yield f"| {name} | {load:g} | ttft P90 <= {label} | {' | '.join(cells)} |"


HEAD = (
    "| queue | load | objective | on the true percentile: pass | ended early by a pass | fail | not steady "
    "| 20 % inside: pass | fail | not steady |\n|---|---|---|---|---|---|---|---|---|---|"
)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--early", type=int, default=200, help="of these, also watched by the early rule")
    parser.add_argument("--servers", type=int, default=16)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--load", type=float, nargs="*", default=LOADS)
    parser.add_argument("--queue", nargs="*", default=["M/M", "M/D"], choices=["M/M", "M/D"])
    parser.add_argument("--empty", action="store_true", help="begin each step with an empty engine")
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    started_s = time.monotonic()
    print(HEAD)  # noqa: T201
    for kind in arguments.queue:
        for load in arguments.load:
            for row in table(f"{kind}/{arguments.servers}", load, arguments):
                print(row, flush=True)  # noqa: T201
    print(f"\n{arguments.steps} steps each, {time.monotonic() - started_s:.0f} s")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

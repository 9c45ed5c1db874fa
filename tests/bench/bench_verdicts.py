"""Whether verdicts are right as often as they say: the fixed and the sequential rule, over many seeded steps.

    python -m tests.bench.bench_verdicts [--steps 1000] [--live] [--live-steps 200]

Each step has 600 (or 1000) requests whose TTFT is lognormal (sigma 0.25), as the simulated engine draws it, and is
judged against an objective on its P99 that lies exactly on the true one, 20 % to either side of it, or far away.
``--live`` takes the requests from the real driver and the simulated engine over HTTP as well: one long open loop, cut
into steps. The last tables have requests that are not independent, the waits of a queue: there one step says little
about the next, no rule that looks at a single step can know it, and a verdict remarks it.
"""

from __future__ import annotations

import argparse
import heapq
import math
import random
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.load.driver import LoadJob
from pytest_vllm_stage.load.process import measure
from pytest_vllm_stage.load.prompts import body_of, prompt_maker
from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.statistics import nearest_rank
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from pytest_vllm_stage.slo.decision import Outcome, decide
from pytest_vllm_stage.slo.gates import Risks, SequentialGate
from pytest_vllm_stage.slo.objectives import Objective
from tests.bench.bench_driver import running_engine

SIGMA = 0.25
ALLOWED = 0.01
Z99 = NormalDist().inv_cdf(0.99)
#: Name to the objective, as a multiple of the true P99.
OBJECTIVES = {
    "on the true P99": 1.0,
    "true P99 20 % inside": 1 / 0.8,
    "true P99 20 % outside": 1 / 1.2,
    "true P99 half": 2.0,
    "true P99 double": 0.5,
}


@dataclass
class Tally:
    """What a rule said of many steps."""

    passed: int = 0
    failed: int = 0
    steps: int = 0
    used: float = 0.0

    def add(self, outcome: Outcome, used: float) -> None:
        """One step, and the share of it that was needed."""
        self.steps += 1
        self.passed += outcome is Outcome.PASS
        self.failed += outcome is Outcome.FAIL
        self.used += used

    def cells(self) -> str:
        """Cells of the table."""
        rest = self.steps - self.passed - self.failed
        shares = [100 * count / self.steps for count in (self.passed, self.failed, rest)]
        return " | ".join(f"{share:.1f} %" for share in shares) + f" | {100 * self.used / self.steps:.0f} %"


def rows(steps: Sequence[Sequence[float]], true_p99: float) -> Iterator[str]:
    """Judge every step by both rules against every objective."""
    n = len(steps[0])
    load_step = LoadStep("s", "sim", CONSTANT, float(n), 64, 1, 1.0, decide_early=True)
    for name, factor in OBJECTIVES.items():
        limit = factor * true_p99
        tallies = {rule: Tally() for rule in ("fixed", "sequential")}
        objective = Objective("ttft_p99_ms", limit * 1000)
        for step in steps:
            misses = [float(value > limit) for value in step]
            tallies["fixed"].add(decide(n, sum(misses), ALLOWED).outcome, 1.0)
            gate = SequentialGate(objective, n, Risks())
            for i, value in enumerate(step):
                gate.take(_sample(load_step, i, value))
                if gate.certain:
                    break
            tallies["sequential"].add(gate.outcome, (i + 1) / n)
        for rule, tally in tallies.items():
            yield f"| {name} | {n} | {rule} | {tally.cells()} |"


def _sample(step: LoadStep, index: int, ttft_s: float) -> Sample:
    return Sample(step.id, index, 0.0, 0.0, (ttft_s,), ttft_s, 64, 1)


def table(title: str, steps: Sequence[Sequence[float]], true_p99: float) -> str:
    """Markdown."""
    head = "| objective | n | rule | pass | fail | undecided | of the step used |\n|---|---|---|---|---|---|---|"
    return "\n".join([f"\n{title}, {len(steps)} steps", head, *rows(steps, true_p99)])


def independent(n: int, steps: int, seed: int) -> list[list[float]]:
    """Lognormal TTFTs of median 1."""
    dice = random.Random(seed)
    return [[dice.lognormvariate(0.0, SIGMA) for _ in range(n)] for _ in range(steps)]


def queueing(n: int, steps: int, seed: int, *, servers: int, load: float) -> tuple[list[list[float]], float]:
    """Waits of a FIFO queue under Poisson arrivals, and their P99 over everything; neighbours are alike."""
    dice = random.Random(seed)
    free, at_s = [0.0] * servers, 0.0
    waits = []
    for _ in range(n * steps):
        at_s += dice.expovariate(load * servers)
        start_s = max(at_s, heapq.heappop(free))
        heapq.heappush(free, start_s + dice.expovariate(1.0))
        waits.append(start_s - at_s + 0.05)
    return [waits[i * n : (i + 1) * n] for i in range(steps)], nearest_rank(sorted(waits), 99)


def live(n: int, steps: int, rate: float) -> tuple[list[list[float]], float]:
    """TTFTs that the driver measured, and the P99 of the engine's own record of them."""
    ttft_ms, prompt_tokens, prefill_per_s = 400.0, 64, 20_000.0
    options = ("--ttft-ms", str(ttft_ms), "--jitter", str(SIGMA), "--prefill-tokens-per-s", str(prefill_per_s))
    total_s = n * steps / rate
    with running_engine(*options, "--itl-ms", "1", realtime=True) as engine:
        maker = prompt_maker(engine.count)
        ttfts: list[float] = []
        truth: list[float] = []
        parts = max(1, round(total_s / 30))
        for part in range(parts):
            step = LoadStep(
                f"part-{part}", "sim", CONSTANT, total_s / parts, prompt_tokens, 2, rate, seed=time.time_ns()
            )
            bodies = [body_of(step, text) for text in maker.texts(step, step.planned_requests or 0, "step")]
            engine.forget()
            measurement = measure(LoadJob(step, engine.url, bodies), Journal())
            truth += engine.true_ttft_s().values()
            ttfts += [(s.first_token_s or math.inf) - s.scheduled_s for s in measurement.samples]
    true_p99 = nearest_rank(sorted(truth), 99)
    law_ms = (ttft_ms + 1000 * prompt_tokens / prefill_per_s) * math.exp(SIGMA * Z99)
    print(f"\ntrue P99 {1000 * true_p99:.2f} ms; the engine's law says {law_ms:.2f} ms")  # noqa: T201
    over = sum(value > true_p99 for value in ttfts) / len(ttfts)
    print(f"{len(ttfts)} requests; over the true P99: {100 * over:.2f} % (1 % and what the driver adds)")  # noqa: T201
    return [ttfts[i * n : (i + 1) * n] for i in range(len(ttfts) // n)], true_p99


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--live", action="store_true", help="measure with the driver and the simulated engine as well")
    parser.add_argument("--live-steps", type=int, default=200)
    parser.add_argument("--rate", type=float, default=500.0, help="requests a second of --live")
    arguments = parser.parse_args()
    say: Callable[[str], None] = print
    true_p99 = math.exp(SIGMA * Z99)
    for n in (600, 1000):
        say(table("independent requests", independent(n, arguments.steps, seed=n), true_p99))
    if arguments.live:
        steps, live_p99 = live(600, arguments.live_steps, arguments.rate)
        say(table("measured over HTTP", steps, live_p99))
    for load in (0.5, 0.8):
        steps, p99 = queueing(600, arguments.steps, 1, servers=16, load=load)
        say(table(f"a queue of 16 servers at {100 * load:g} % load (requests depend on each other)", steps, p99))
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Each regression rule's rate of false alarms, and of detection of a build that is 20 % slower.

    python -m tests.bench.bench_regression [--runs 1000] [--noise 0.05]

A run has n requests with lognormal latencies (sigma 0.3) around a level that varies by 5 % between runs; ten runs of a
healthy build come before. The rules that compare raw samples or P99s with the last run are what is often done.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

from pytest_vllm_stage.measurement.statistics import nearest_rank, student_at_least
from pytest_vllm_stage.slo.regression import State, gate

SIGMA = 0.3
SLOWER = 1.20


@dataclass(frozen=True)
class World:
    """Where runs come from."""

    dice: random.Random
    n: int
    noise: float

    def run(self, level: float) -> list[float]:
        """The sorted latencies of one run."""
        mean = level * self.dice.gauss(1, self.noise)
        return sorted(mean * self.dice.lognormvariate(0, SIGMA) for _ in range(self.n))


Rule = Callable[[World, float, list[list[float]]], bool]


def p99_of_last(world: World, level: float, history: list[list[float]]) -> bool:
    """P99 > 1.10 x last run."""
    return nearest_rank(world.run(level), 99) > 1.10 * nearest_rank(history[-1], 99)


def mann_whitney(world: World, level: float, history: list[list[float]]) -> bool:
    """Mann-Whitney p < .05 on raw samples of this and the last run."""
    n = world.n
    marked = sorted([(value, 1) for value in world.run(level)] + [(value, 0) for value in history[-1]])
    ranks = sum(rank for rank, (_, new) in enumerate(marked, start=1) if new)
    z = (ranks - n * (n + 1) / 2 - n * n / 2) / math.sqrt(n * n * (2 * n + 1) / 12)
    return 1 - statistics.NormalDist().cdf(z) < 0.05


def prediction_limit(world: World, level: float, history: list[list[float]]) -> bool:
    """P50 > max(1.10, prediction limit) x median of the last 10 accepted runs."""
    medians = [nearest_rank(run, 50) for run in history]
    baseline, spread = statistics.median(medians), statistics.stdev(medians)
    limit = baseline + _student(len(medians) - 1, 0.01) * spread * math.sqrt(1 + 1 / len(medians))
    return nearest_rank(world.run(level), 50) > max(1.10 * baseline, limit)


def _student(degrees: int, tail: float) -> float:
    low, high = 0.0, 20.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if student_at_least(middle, degrees) > tail else (low, middle)
    return high


def ours(world: World, level: float, history: list[list[float]]) -> bool:
    """P50 > 1.10 x median of 10, confirmed by the mean of two reruns."""
    past = [nearest_rank(run, 50) for run in history]
    first = gate("ttft_p50_ms", nearest_rank(world.run(level), 50), past)
    if first.state is not State.SUSPICIOUS:
        return False
    again = [nearest_rank(world.run(level), 50) for _ in range(2)]
    return gate("ttft_p50_ms", first.value, past, reruns=again).fails


RULES: tuple[Rule, ...] = (p99_of_last, mann_whitney, prediction_limit, ours)


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--noise", type=float, default=0.05)
    arguments = parser.parse_args()
    lines = ["| rule: false alarms / caught at +20 % | n=60 | n=600 |", "|---|---|---|"]
    for rule in RULES:
        cells = []
        for n in (60, 600):
            world = World(random.Random(f"{rule.__name__} {n}"), n, arguments.noise)
            runs = arguments.runs if n == 60 else arguments.runs // 4
            hits = [
                sum(rule(world, level, [world.run(100) for _ in range(10)]) for _ in range(runs)) / runs
                for level in (100, 100 * SLOWER)
            ]
            cells.append(f"{100 * hits[0]:.1f} % / {100 * hits[1]:.0f} %")
        lines.append(f"| {(rule.__doc__ or '').rstrip('.')} | {' | '.join(cells)} |")
    print("\n".join(lines))  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

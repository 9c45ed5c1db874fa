"""Counts false alarms: ``python -m tests.defects.clean 100 --workers 16`` runs the inference suite on healthy servers.

    python -m tests.defects.clean 100 --workers 16            100 simulated engines, each of a size and pace of its own
    python -m tests.defects.clean 100 --workers 16 --whole    with the slow lanes, which take a minute each
    python -m tests.defects.clean 20 --url URL                a running server, whose model the profile local knows

Each run's engine is drawn from the seed and the run's number, so that an alarm can be repeated: ``--seed S --first N``.
In every second run its answers are drawn too, and nothing is compared with the answers recorded for seed 0. The whole
output of a run with an alarm is kept in a file that is printed. Exit code 1: there was a false alarm.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import urllib.request
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.defects.runner import PROFILE, Outcome, run_suite, simulator

#: The least batch that lets the checks of concurrent requests see what they look for.
LEAST_SLOTS = 4


@dataclass(frozen=True)
class CleanRun:
    """One run on a healthy server.

    Attributes:
        number: Its place, from 1.
        engine: The engine's arguments; empty for a running server.
        outcome: What the suite reported.
        elapsed_s: How long it took.
        requests: Generations that the simulated engine served; 0 for a running server.
    """

    number: int
    engine: Sequence[str]
    outcome: Outcome
    elapsed_s: float
    requests: int

    def describe(self) -> str:
        """The run on one line."""
        outcome = self.outcome
        return (
            f"run {self.number}: {outcome.passed} passed, {outcome.skipped} skipped, {len(outcome.failed)} failed, "
            f"{self.elapsed_s:.0f} s, {self.requests} requests"
        )


def draw_engine(seed: int, number: int) -> list[str]:
    """The arguments of a healthy engine of any size and pace."""
    dice = random.Random(seed * 1_000_003 + number)
    engine = {
        "max-num-seqs": dice.choice((LEAST_SLOTS, 8, 16, 64, 256)),
        "ttft-ms": round(dice.uniform(1, 30), 1),
        "itl-ms": round(dice.uniform(1, 8), 1),
        "itl-growth": round(dice.uniform(0, 0.1), 3),
        "jitter": round(dice.uniform(0, 0.4), 2),
        "block-size": dice.choice((16, 32, 128)),
        "seed": 0 if number % 2 else dice.randrange(1, 2**31),
    }
    return [f"--{name}={value}" for name, value in engine.items()]


def run_clean(number: int, seed: int, url: str | None, *, whole: bool) -> CleanRun:
    """Run the suite on the given server, or on a simulated engine drawn for this run."""
    started_s = time.monotonic()
    if url:
        outcome = run_suite(url, profile=None, key=os.environ.get("VLLM_STAGE_API_KEY", ""), slow=whole)
        return CleanRun(number, (), outcome, time.monotonic() - started_s, 0)
    engine = draw_engine(seed, number)
    with simulator(arguments=engine) as own, tempfile.TemporaryDirectory(prefix="vllm-stage-clean-") as place:
        profile = PROFILE if "--seed=0" in engine else write_profile_without_reference(Path(place))
        outcome = run_suite(own, profile=profile, slow=whole)
        with urllib.request.urlopen(f"{own}/sim/requests") as response:  # noqa: S310 - the simulator's own URL
            requests = len(json.load(response)["requests"])
    return CleanRun(number, engine, outcome, time.monotonic() - started_s, requests)


def write_profile_without_reference(folder: Path) -> Path:
    """The simulator's profile for answers of another seed, which no reference records."""
    lines = PROFILE.read_text(encoding="utf-8").splitlines(keepends=True)
    profile = folder / PROFILE.name
    profile.write_text("".join(line for line in lines if not line.startswith("reference")), encoding="utf-8")
    return profile


def run_many(arguments: argparse.Namespace) -> int:
    """Run the suite as often as asked for, and print what failed."""
    alarms: Counter[str] = Counter()
    counts: Counter[tuple[int, int]] = Counter()
    failed = requests = 0
    started_s = time.monotonic()
    numbers = range(arguments.first, arguments.first + arguments.runs)
    with ThreadPoolExecutor(arguments.workers) as pool:
        for run in pool.map(
            lambda number: run_clean(number, arguments.seed, arguments.url, whole=arguments.whole), numbers
        ):
            say(run.describe())
            counts[run.outcome.passed, run.outcome.skipped] += 1
            alarms.update(dict.fromkeys(run.outcome.failed, 1))
            failed += bool(run.outcome.failed)
            requests += run.requests
            if run.outcome.failed:
                _report_alarm(run, arguments.seed)
    elapsed_s = time.monotonic() - started_s
    say(
        f"{arguments.runs} clean runs in {elapsed_s:.0f} s with {arguments.workers} workers (seed {arguments.seed}): "
        f"{failed} with a false alarm {dict(alarms) or ''}",
        f"(passed, skipped): {dict(counts)}; {requests} requests, {requests / arguments.runs:.0f} per run",
    )
    return 1 if alarms else 0


def _report_alarm(run: CleanRun, seed: int) -> None:
    with tempfile.NamedTemporaryFile("w", prefix=f"false-alarm-{run.number}-", suffix=".txt", delete=False) as kept:
        kept.write(run.outcome.output)
    say(f"    engine: {' '.join(run.engine)}", f"    repeat: --seed {seed} --first {run.number}", f"    {kept.name}")
    say(*(f"    FALSE ALARM {name}: {message}" for name, message in run.outcome.failed.items()))


def say(*lines: str) -> None:
    """Print lines at once."""
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def main() -> int:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.defects.clean", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("runs", type=int, metavar="N", help="number of runs")
    parser.add_argument("--workers", type=int, default=1, help="runs at the same time (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=1, help="draws the engines (default: %(default)s)")
    parser.add_argument("--first", type=int, default=1, metavar="N", help="number of the first run")
    parser.add_argument("--whole", action="store_true", help="with the slow lanes")
    parser.add_argument("--url", help="a running server; its key, if it asks for one, is in VLLM_STAGE_API_KEY")
    arguments = parser.parse_args()
    if min(arguments.runs, arguments.workers, arguments.first) < 1:
        parser.error("N, --workers and --first must be at least 1")
    return run_many(arguments)


if __name__ == "__main__":
    sys.exit(main())

"""How often verdicts are correct near capacity: the judge itself, over many seeded steps of simulated queues.

    python -m tests.bench.bench_verdicts --pieces FOLDER [--workers N] [--minutes M] [--row "M/M 0.7" ...]

Each step (see `queues`) is judged against objectives that lie on the stationary queue's true percentile or 20 % above
it, as `slo.verdict.judge` does with one gate. Past capacity (load above 1) steps begin with an empty engine, and the
objectives are ones that only the growth of the queue can break. The last column is the ideal share of passes 20 %
inside: a step passes if its misses are fewer than the 5 % quantile of the misses on the true percentile, a bound that
only knowledge of the queue's law gives.

The steps are judged in pieces by seed, one JSON file per piece in FOLDER; the same command continues where it was
stopped, and prints the table of what is there. A piece depends on its row and its seeds only, not on the number of
workers. All rows are computed on a virtual clock, those of the simulated engine (``sim``) too. Delete the folder when
the judge changes.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.gates import Risks
from pytest_vllm_stage.slo.growth import judge_growth
from pytest_vllm_stage.slo.judgement import judge_objectives
from pytest_vllm_stage.slo.objectives import Objective
from tests.bench.queues import QUEUES, Case, build_measurement

SERVERS = 16
PIECE = 100
#: Of each piece, so many steps are also watched by the early rule.
EARLY = 5
INSIDE = 1 / 0.8
FAR_S = 1000.0
#: Latency, percent and unit of each objective.
OBJECTIVES = (("e2e_latency", 50, "s"), ("e2e_latency", 90, "s"), ("ttft", 90, "ms"), ("ttft", 99, "ms"))


@dataclass(frozen=True)
class BenchRow:
    """Steps of one kind, named like ``M/M 0.95 n=60 empty``."""

    queue: str
    load: float
    n: int = 600
    empty: bool = False

    @staticmethod
    def parse(text: str) -> BenchRow:
        """From its name."""
        queue, load, *more = text.split()
        n = next((int(one[2:]) for one in more if one.startswith("n=")), 600)
        return BenchRow(queue, float(load), n, "empty" in more or float(load) > 1)

    @property
    def name(self) -> str:
        """The name that `parse` reads."""
        short = f" n={self.n}" if self.n != 600 else ""
        return f"{self.queue} {self.load:g}{short}{' empty' if self.empty and self.load < 1 else ''}"

    @property
    def case(self) -> Case:
        """The queue."""
        return Case(self.queue, self.load, SERVERS, self.empty)


#: The targets, as shares of a row's steps.
MOST_ON, MOST_ON_NEAR, NEAR = 0.06, 0.08, 0.9
LEAST_INSIDE, LOAD_INSIDE = 0.85, 0.7
MOST_PAST_CAPACITY, MOST_UNSTEADY = 0.02, 0.01
MARKER, END_MARKER = "<!-- calibration -->", "<!-- end of calibration -->"

LOADS = (0.5, 0.7, 0.9, 0.95, 1.03)
ROWS = (
    *(BenchRow(queue, load, empty=load > 1) for queue in QUEUES for load in LOADS),
    *(BenchRow(queue, load, empty=True) for load in (1.1, 1.3) for queue in QUEUES),
    *(BenchRow(queue, 0.95, empty=True) for queue in QUEUES),
    *(BenchRow(queue, load, 60) for load in (0.7, 0.9) for queue in ("M/M", "M/D")),
)


def find_limits(row: BenchRow) -> dict[str, float]:
    """Each objective's true percentile, in seconds."""
    true = replace(row.case, empty=False).true_latencies()
    found = {}
    for latency, percent, unit in OBJECTIVES:
        ordered = true[latency]
        found[f"{latency}_p{percent}_{unit}"] = float(ordered[-(-percent * len(ordered) // 100) - 1])
    return found


def judge_step(made: Measurement, objectives: Sequence[Objective]) -> list[tuple[str, str, float, float]]:
    """For each objective alone: the outcome, the reason's kind, the misses, and the share of independent requests."""
    judged = judge_objectives(made, objectives, Risks())
    rows = []
    for objective, gate in zip(objectives, judged.gates, strict=True):
        growth = judge_growth(made, [objective], judged.steadiness, judged.load)
        alone = replace(judged, gates=(gate,), growth=growth)
        unsteady = "not steady" if growth or judged.saturation.saturated else ""
        rows.append((alone.outcome.value, unsteady, gate.misses, gate.effective_n / max(1, gate.n)))
    return rows


def judge_early(made: Measurement, objective: Objective) -> str:
    """How the early rule ends the step; empty where it does not."""
    watched = EarlyDecision(replace(made.step, decide_early=True), [objective])
    return next((end for one in made.samples[:-1] if (end := watched(one))), "")


def _objectives(row: BenchRow, made: Measurement, limits: dict[str, float]) -> dict[str, Objective]:
    if row.load > 1:
        ttfts = sorted((one.first_token_s or 0.0) - one.scheduled_s for one in made.samples)
        bounds = {"1000 answers": FAR_S, "1.3 x the slowest": 1.3 * ttfts[-1], "half its own": ttfts[-60] / 2}
        return {name: Objective("ttft_p90_ms", 1000 * bound) for name, bound in bounds.items()}
    units = {key: 1000 if key.endswith("_ms") else 1 for key in limits}
    on = {f"{key} on": Objective(key, limit * units[key]) for key, limit in limits.items()}
    return on | {f"{key} inside": Objective(key, limit * units[key] * INSIDE) for key, limit in limits.items()}


def run_piece(row: BenchRow, start: int, limits: dict[str, float]) -> dict[str, Any]:
    """Judge a piece's steps."""
    found: dict[str, list[Any]] = {}
    early: dict[str, list[str]] = {}
    for k, rows in enumerate(row.case.steps(range(start, start + PIECE), row.n)):
        made = build_measurement(rows, row.case.arrivals)
        objectives = _objectives(row, made, limits)
        for name, judged in zip(objectives, judge_step(made, list(objectives.values())), strict=True):
            found.setdefault(name, []).append(judged)
        for name, objective in objectives.items() if k < EARLY else ():
            if not name.endswith("inside"):
                early.setdefault(name, []).append(judge_early(made, objective))
    return {"judged": found, "early": early}


def _work(row: BenchRow, start: int, limits: dict[str, float], path: Path) -> None:
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(run_piece(row, start, limits)))
    partial.replace(path)


def _limits_path(folder: Path, row: BenchRow) -> Path:
    return folder / f"limits {row.queue.replace('/', '')} {row.load:g}.json"


def _find_limits(row: BenchRow, path: Path) -> None:
    path.write_text(json.dumps(find_limits(row)))


def _piece_path(folder: Path, row: BenchRow, start: int) -> Path:
    return folder / f"{row.name.replace('/', '')} {start:05d}.json"


def run(folder: Path, rows: Sequence[BenchRow], steps: int, minutes: float, workers: int) -> bool:
    """Judge the missing pieces for so long; whether all are there."""
    folder.mkdir(parents=True, exist_ok=True)
    until_s = time.monotonic() + 60 * minutes
    missing = [(row, k) for k in range(0, steps, PIECE) for row in rows if not _piece_path(folder, row, k).exists()]
    with ProcessPoolExecutor(workers) as pool:
        unknown = {_limits_path(folder, row): row for row, _ in missing if row.load < 1}
        todo = [pool.submit(_find_limits, row, path) for path, row in unknown.items() if not path.exists()]
        for one in todo:
            one.result()
        queue = iter(missing)
        running: list[Any] = []
        for row, k in queue:
            running = [one for one in running if not one.done() or one.result()]
            while len(running) >= workers:
                time.sleep(0.05)
                running = [one for one in running if not one.done() or one.result()]
            if time.monotonic() > until_s:
                break
            path = _limits_path(folder, row)
            limits = json.loads(path.read_text()) if path.exists() else {}
            running.append(pool.submit(_work, row, k, limits, _piece_path(folder, row, k)))
        for one in running:
            one.result()
    return all(_piece_path(folder, row, k).exists() for row, k in missing)


def read_row(folder: Path, row: BenchRow) -> dict[str, tuple[list[Any], list[str]]]:
    """All judged steps of a row, by objective."""
    found: dict[str, tuple[list[Any], list[str]]] = {}
    for path in sorted(folder.glob(f"{row.name.replace('/', '')} [0-9][0-9][0-9][0-9][0-9].json")):
        piece = json.loads(path.read_text())
        for name, judged in piece["judged"].items():
            before = found.setdefault(name, ([], []))
            before[0].extend(judged)
            before[1].extend(piece["early"].get(name, []))
    return found


def _share(values: Sequence[bool]) -> str:
    return f"{100 * sum(values) / len(values):.1f} %" if values else "-"


def _cells(judged: Sequence[Any]) -> list[str]:
    passed, failed = ([one[0] == end.value for one in judged] for end in (Outcome.PASS, Outcome.FAIL))
    return [_share(passed), _share(failed), _share([bool(one[1]) for one in judged])]


def find_ideal(on: Sequence[Any], inside: Sequence[Any]) -> str:
    """The share that passes 20 % inside where the bound on the misses passes 5 % on the true percentile."""
    misses = sorted(one[2] for one in on)
    bound = misses[len(misses) // 20]
    exact = [float(value < bound) for value in misses]
    edge = (0.05 * len(misses) - sum(exact)) / max(1, sum(value == bound for value in misses))
    passed = sum(1.0 if one[2] < bound else edge if one[2] == bound else 0.0 for one in inside)
    return f"{100 * passed / len(inside):.1f}"


def _objectives_of(folder: Path, row: BenchRow) -> Iterator[tuple[str, list[Any], list[str], list[Any]]]:
    """Each objective of a row: its name, the steps judged on it, how the early rule ended them, the ones inside."""
    found = read_row(folder, row)
    for name, (judged, early) in found.items():
        if row.load > 1:
            yield f"TTFT P90 <= {name}", judged, early, []
        elif name.endswith(" on"):
            yield name.removesuffix(" on"), judged, early, found[f"{name.removesuffix('on')}inside"][0]


def table(folder: Path, rows: Sequence[BenchRow]) -> Iterator[str]:
    """The table's lines."""
    yield (
        "| queue, load, steps | objective | on the true percentile: pass | fail | not steady | ended early by a pass "
        "| by a fail | 20 % inside: pass | fail | not steady | ideal pass |\n" + "|---" * 11 + "|"
    )
    for row in rows:
        for name, judged, early, inside in _objectives_of(folder, row):
            cells = [*_cells(judged), *(_share([one == end for one in early]) for end in ("pass", "fail"))]
            cells += [*_cells(inside), f"{find_ideal(judged, inside)} %"] if inside else ["-"] * 4
            yield f"| {row.name}, {len(judged)} | {name} | {' | '.join(cells)} |"


def find_missed(folder: Path, rows: Sequence[BenchRow]) -> Iterator[str]:
    """A line for each share on the wrong side of its target."""
    for row in rows:
        for name, judged, _, inside in _objectives_of(folder, row):
            of = f"{row.name}, {name}: {{}} of {len(judged)} steps"
            passed = [one[0] == Outcome.PASS.value for one in judged]
            most = MOST_PAST_CAPACITY if row.load > 1 else MOST_ON_NEAR if row.load > NEAR else MOST_ON
            if sum(passed) > most * len(judged):
                yield f"{of.format(_share(passed))} pass, at most {100 * most:g} % are meant to"
            unsteady = [bool(one[1]) for one in judged]
            if row.load < 1 and sum(unsteady) > MOST_UNSTEADY * len(judged):
                yield f"{of.format(_share(unsteady))} are not steady, at most {100 * MOST_UNSTEADY:g} % are meant to"
            within = [one[0] == Outcome.PASS.value for one in inside]
            if (row.load, row.n) == (LOAD_INSIDE, 600) and sum(within) < LEAST_INSIDE * len(inside):
                ideal = find_ideal(judged, inside)
                text = f"pass 20 % inside, at least {100 * LEAST_INSIDE:g} % are meant to (ideal {ideal} %)"
                yield f"{of.format(_share(within))} {text}"


def write_manual(path: Path, lines: Sequence[str]) -> None:
    """Replace the table between the manual's markers."""
    before, _, rest = path.read_text().partition(MARKER)
    _, _, after = rest.partition(END_MARKER)
    path.write_text("\n".join([f"{before}{MARKER}", *lines, f"{END_MARKER}{after}"]))


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pieces", type=Path, required=True, help="folder of the judged pieces")
    parser.add_argument("--steps", type=int, default=2000, help=f"per row, a multiple of {PIECE}")
    parser.add_argument("--minutes", type=float, default=9.0, help="no piece starts later")
    parser.add_argument("--row", nargs="*", type=BenchRow.parse, default=ROWS, help='for example "M/M 0.95 n=60"')
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes")
    parser.add_argument("--manual", type=Path, help="docs/accuracy.md: put the table between its markers")
    arguments = parser.parse_args()
    complete = run(arguments.pieces, arguments.row, arguments.steps, arguments.minutes, arguments.workers)
    lines = list(table(arguments.pieces, arguments.row))
    print("\n".join([*lines, "", *find_missed(arguments.pieces, arguments.row)]))  # noqa: T201
    if arguments.manual:
        write_manual(arguments.manual, lines)
    print("\ncomplete" if complete else "\nincomplete: run it again")  # noqa: T201
    return 0


if __name__ == "__main__":
    sys.exit(main())

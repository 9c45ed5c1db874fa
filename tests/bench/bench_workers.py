"""How much load several workers of this machine send together, against simulated engines on loopback.

    python -m tests.bench.bench_workers [--workers 16] [--engines 8] [--rates 400,1600,3000] [--seconds 15]
                                        [--prompt-tokens 48] [--output-tokens 4] [--json FILE]

The workers are those of ``--stage-load-from=cluster`` as processes of this machine, with the same shares, common start
and merging. One simulated engine has one core, so the rate is spread over several: each engine has its own workers and
its own merged step, and all steps run at the same time. Columns: requests sent per second over all engines, what was
sent of the plan, the send lag, the merged steps' invalidating findings, and the cores that the workers and the engines
used. The last column names what a rate that is not clean was bound by: the workers, the engines, or the machine.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

from pytest_vllm_stage.load.workers.assignment import Assignment
from pytest_vllm_stage.load.workers.gather import Gathering
from pytest_vllm_stage.load.workers.merge import merge
from pytest_vllm_stage.load.workers.processes import LocalWorkers, local_workers
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.statistics import nearest_rank
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.sim_engine import Sim, running_sim

_TICKS = os.sysconf("SC_CLK_TCK")
#: A step that learns of its start late is invalid: enough for the slowest start of 16 interpreters.
LEAD_S = 6.0
BUSY_CORE = 0.9
#: The engines answer after 25 ms where they have the processor time.
LATE_ANSWER_MS = 50.0


@dataclass(frozen=True)
class RateResult:
    """One rate over all engines.

    Attributes:
        rate: Planned requests per second, over all engines.
        requests: Samples.
        sent_per_s: Requests sent per second.
        failed: Of these, failed.
        gap_cv: Coefficient of variation of the gaps between the sends of one engine, the largest of all engines.
        lag_p50_ms: Send lag.
        lag_p99_ms: Send lag.
        loop_lag_p99_ms: The slowest worker's event loop.
        ttft_p50_ms: Time to the first token, from the scheduled time.
        ttft_p99_ms: The same.
        worker_cores: Cores that all workers used.
        busiest_worker: The busiest worker's share of a core.
        engine_cores: Cores that all engines used.
        busiest_engine: The busiest engine's share of a core.
        lost: Workers without a result.
        invalid: Names of invalidating findings.
    """

    rate: float
    requests: int
    sent_per_s: float
    failed: int
    gap_cv: float
    lag_p50_ms: float
    lag_p99_ms: float
    loop_lag_p99_ms: float
    ttft_p50_ms: float
    ttft_p99_ms: float
    worker_cores: float
    busiest_worker: float
    engine_cores: float
    busiest_engine: float
    lost: list[str]
    invalid: list[str]

    def bound_by(self) -> str:
        """What kept the rate from being clean."""
        late = self.failed or self.ttft_p50_ms > LATE_ANSWER_MS
        if not self.invalid and not late:
            return "nothing: clean"
        cores = os.cpu_count() or 1
        if self.worker_cores + self.engine_cores > BUSY_CORE * cores:
            return f"the machine: {self.worker_cores + self.engine_cores:.1f} of {cores} cores in use"
        if self.busiest_engine > BUSY_CORE:
            return f"the engines: the busiest used {100 * self.busiest_engine:.0f} % of a core"
        if self.busiest_worker > BUSY_CORE:
            return f"the workers: the busiest used {100 * self.busiest_worker:.0f} % of a core"
        return "other work on the machine, which delays the engines" if late else "other work on the machine"


def cpu_s(process: subprocess.Popen[str]) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{process.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


class CpuWatch:
    """CPU time that processes use while a step runs."""

    def __init__(self, processes: Sequence[subprocess.Popen[str]]) -> None:
        self._processes = processes
        self._before = [cpu_s(process) for process in processes]
        self._began_s = time.monotonic()

    def cores(self) -> list[float]:
        """Each process' share of a core so far."""
        passed_s = time.monotonic() - self._began_s
        after = [cpu_s(process) for process in self._processes]
        return [(now - before) / passed_s for now, before in zip(after, self._before, strict=True)]


def measure_rate(sims: Sequence[Sim], rate: float, given: argparse.Namespace, seed: int) -> RateResult:
    """Send one rate to all engines at once."""
    each = given.workers // len(sims)
    steps = [
        LoadStep(
            f"engine-{number}",
            "sim",
            CONSTANT,
            given.seconds,
            given.prompt_tokens,
            given.output_tokens,
            request_rate=rate / len(sims),
            warmup_requests=4 * each,
            request_timeout_s=30.0,
            seed=seed + number,
        )
        for number in range(len(sims))
    ]
    with ExitStack() as stack:
        groups = []
        for sim, step in zip(sims, steps, strict=True):
            assignment = Assignment(
                step, step.planned_requests or 0, each, sim.maker.overhead, sim.maker.words, sim.url
            )
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            groups.append(stack.enter_context(local_workers(assignment, folder)))
        watch: list[CpuWatch] = []
        cores: list[float] = []
        engines = [sim.process for sim in sims if sim.process is not None]

        def gather(group: LocalWorkers, step: LoadStep) -> Measurement:
            found = Gathering(group, step, lead_s=LEAD_S).gather()
            return merge(step, each, found, {})

        with ThreadPoolExecutor(len(sims)) as pool:
            futures = [pool.submit(gather, group, step) for group, step in zip(groups, steps, strict=True)]
            while not all(future.done() for future in futures):
                time.sleep(0.2)
                started = [folder for folder in groups if folder.start_at is not None]
                if (
                    not watch
                    and len(started) == len(groups)
                    and time.time() > max(group.start_at or 0.0 for group in groups)
                ):
                    watch.append(CpuWatch(engines))
                if watch and time.time() < (groups[0].start_at or 0.0) + given.seconds:
                    cores = watch[0].cores()
            merged = [future.result() for future in futures]
    return summarize(rate, merged, cores)


def summarize(rate: float, merged: Sequence[Measurement], engine_cores: Sequence[float]) -> RateResult:
    """The numbers over all engines."""
    samples = [sample for one in merged for sample in one.samples]
    lags = sorted(sample.lag_s for sample in samples if sample.lag_s is not None) or [float("nan")]
    ttfts = sorted(
        sample.first_token_s - sample.scheduled_s for sample in samples if sample.first_token_s is not None
    ) or [float("nan")]
    judged = [judge(one, (), gates=1)[1] for one in merged]
    workers = [one.client.cpu_s / one.client.wall_s for one in merged if one.client.wall_s]
    return RateResult(
        rate=rate,
        requests=len(samples),
        sent_per_s=sum(sent_rate(one) for one in merged),
        failed=sum(sample.failure is not None for sample in samples),
        gap_cv=max((gap_cv(one) for one in merged), default=0.0),
        lag_p50_ms=1000 * nearest_rank(lags, 50),
        lag_p99_ms=1000 * nearest_rank(lags, 99),
        loop_lag_p99_ms=max((one.client.loop_lag_p99_ms or 0.0 for one in merged), default=0.0),
        ttft_p50_ms=1000 * nearest_rank(ttfts, 50),
        ttft_p99_ms=1000 * nearest_rank(ttfts, 99),
        worker_cores=sum(workers) * (merged[0].facts["load_workers"]["count"] if merged else 0),
        busiest_worker=max(workers, default=0.0),
        engine_cores=sum(engine_cores),
        busiest_engine=max(engine_cores, default=0.0),
        lost=[str(lost) for one in merged for lost in one.facts["load_workers"]["lost"]],
        invalid=sorted({one.name for verdict in judged for one in verdict.findings if one.invalidates}),
    )


def sent_rate(merged: Measurement) -> float:
    """Requests sent per second, from the first to the last."""
    sent = sorted(sample.sent_s for sample in merged.samples if sample.sent_s is not None)
    return (len(sent) - 1) / (sent[-1] - sent[0]) if len(sent) > 1 else 0.0


def gap_cv(merged: Measurement) -> float:
    """How regular the sends are: 0 for a constant rate, 1 for a Poisson process."""
    sent = sorted(sample.sent_s for sample in merged.samples if sample.sent_s is not None)
    gaps = [after - before for before, after in pairwise(sent)]
    return statistics.pstdev(gaps) / statistics.fmean(gaps) if len(gaps) > 1 else 0.0


def main() -> int:
    """Print a row per rate."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=16)
    parser.add_argument("--engines", type=int, default=8)
    parser.add_argument("--rates", default="400,1600,3000")
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--prompt-tokens", type=int, default=48)
    parser.add_argument("--output-tokens", type=int, default=4)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    sys.stdout.write(
        f"{given.workers} workers, {given.engines} engines, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}, "
        f"{given.prompt_tokens}/{given.output_tokens} tokens, {given.seconds:g} s a step\n"
        "| rate | sent/s | requests | failed | gap CV | lag P50 / P99 ms | loop lag P99 ms | TTFT P50 / P99 ms "
        "| worker cores (busiest) | engine cores (busiest) | invalid | bound by |\n" + "|---" * 12 + "|\n"
    )
    results = []
    with ExitStack() as stack:
        options = ("--ttft-ms", "20", "--itl-ms", "5", "--max-num-seqs", "256")
        sims = [stack.enter_context(running_sim(*options)) for _ in range(given.engines)]
        for number, rate in enumerate(float(text) for text in given.rates.split(",")):
            row = measure_rate(sims, rate, given, seed=1000 * (number + 1))
            results.append(row)
            sys.stdout.write(
                f"| {row.rate:g} | {row.sent_per_s:.1f} | {row.requests} | {row.failed} | {row.gap_cv:.3f} "
                f"| {row.lag_p50_ms:.2f} / {row.lag_p99_ms:.2f} | {row.loop_lag_p99_ms:.2f} "
                f"| {row.ttft_p50_ms:.1f} / {row.ttft_p99_ms:.1f} "
                f"| {row.worker_cores:.2f} ({row.busiest_worker:.2f}) | {row.engine_cores:.2f} "
                f"({row.busiest_engine:.2f}) | {', '.join(row.invalid) or 'no'} | {row.bound_by()} |\n"
            )
            sys.stdout.writelines(f"  lost: {lost}\n" for lost in row.lost)
            sys.stdout.flush()
    if given.json:
        given.json.write_text(json.dumps([asdict(row) for row in results], indent=1), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""The accuracy of the load driver and its peers, against the simulated engine's own record of every request.

    python -m tests.bench.bench_driver [--drivers ours,guidellm,aiperf] [--rates 10,100,400] [--seconds 10]
                                       [--repeats 3] [--ceiling] [--json FILE]

Columns: what the reported TTFT adds to the true one (P50, P99, over all requests of all repeats), the P99 of the send
lag, failures, and the CPU time of a request. ``--ceiling`` raises the rate until a step is no longer clean: a failure,
lag P99 above 10 ms, or less than 99 % of the rate sent. The engine has one core and the driver, with all its processes,
another, where the machine has two; what else runs on them belongs to the result, and the load is printed. The engine
and our driver run at real-time priority where the kernel allows it, GuideLLM at nice -15, and aiperf as it comes.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

from pytest_vllm_stage.load.prompts import PromptMaker, make_body, make_prompt_maker
from pytest_vllm_stage.measurement.statistics import nearest_rank
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from tests.bench.drivers import DRIVERS, Driver

PROMPT_TOKENS, OUTPUT_TOKENS = 64, 16
CLEAN_LAG_MS = 10.0
CLEAN_SENT_SHARE = 0.99


@dataclass
class Line:
    """One line of the table."""

    driver: str
    request_rate: float
    requests: int
    failed: int
    added_p50_ms: float
    added_p99_ms: float
    added_p99_each_ms: list[float]
    lag_p99_each_ms: list[float | None]
    sent_share: float | None
    cpu_ms_per_request: float

    @property
    def clean(self) -> bool:
        """The driver kept up."""
        lag_ms = max((lag for lag in self.lag_p99_each_ms if lag is not None), default=0.0)
        return not self.failed and lag_ms <= CLEAN_LAG_MS and (self.sent_share or 1.0) >= CLEAN_SENT_SHARE


class Engine:
    """A running simulated engine."""

    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        """One JSON request."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - our own engine's URL
            self.url + path, data, {"content-type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310
            return json.load(response)

    def count(self, text: str) -> int:
        """Tokens of a conversation with this text."""
        body = {"model": "sim", "messages": [{"role": "user", "content": text}]}
        return cast(int, self.call("/tokenize", body)["count"])

    def true_ttft_s(self) -> dict[str, float]:
        """Request id to true TTFT, of the requests since the last `forget`."""
        requests = self.call("/sim/requests")["requests"]
        return {r["request_id"]: r["token_times"][0] - r["received_at"] for r in requests if r["token_times"]}

    def forget(self) -> None:
        """Drop the record."""
        self.call("/sim/requests", method="DELETE")


@contextmanager
def running_engine(*options: str, realtime: bool, apart: bool = False) -> Iterator[Engine]:
    """A simulated engine on a free port, with the driver's own priority where the kernel allows it.

    Args:
        options: Of the engine's command line.
        realtime: It runs before others.
        apart: It has a core of its own, and this process with all that it starts another, where there are two.
    """
    command = [
        sys.executable,
        "-m",
        "pytest_vllm_stage.standins.engine",
        "--max-num-seqs",
        "8192",
        "--itl-growth",
        "0",
        *options,
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        first = cast(Any, process.stdout).readline()
        found = re.search(r"http://\S+", first)
        if found is None:
            raise RuntimeError(f"the engine did not start: {first!r}")
        if realtime:
            os.sched_setscheduler(process.pid, os.SCHED_FIFO, os.sched_param(1))
        cores = sorted(os.sched_getaffinity(0))
        if apart and len(cores) > 1:
            os.sched_setaffinity(process.pid, cores[:1])
            os.sched_setaffinity(0, cores[1:2])  # the drivers inherit it
        yield Engine(found[0])
    finally:
        process.terminate()
        process.wait()


def bench(engine: Engine, maker: PromptMaker, driver: Driver, rate: float, seconds: float, repeats: int) -> Line:
    """One rate, several times."""
    added: list[float] = []
    p99s: list[float] = []
    reports = []
    for repeat in range(repeats):
        step = LoadStep(
            "driver", "sim", CONSTANT, seconds, PROMPT_TOKENS, OUTPUT_TOKENS, rate, seed=time.time_ns() + repeat
        )
        bodies = [make_body(step, text) for text in maker.texts(step, step.planned_requests or 0, "step")]
        warmup = [make_body(step, text) for text in maker.texts(step, step.warmup_requests, "warm-up")]
        engine.forget()
        report = driver.run(engine.url, step, bodies, warmup)
        truth = engine.true_ttft_s()
        errors = sorted((row.ttft_s - truth[row.request_id]) * 1000 for row in report.rows if row.request_id in truth)
        if len(errors) < 0.9 * len(report.rows) or not errors:
            raise RuntimeError(f"{driver.name}: only {len(errors)} of {len(report.rows)} requests are in the record")
        added += errors
        p99s.append(nearest_rank(errors, 99))
        reports.append(report)
    added.sort()
    shares = [report.sent_share for report in reports if report.sent_share is not None]
    requests = sum(report.requests for report in reports)
    return Line(
        driver=driver.name,
        request_rate=rate,
        requests=requests,
        failed=sum(report.failed for report in reports),
        added_p50_ms=nearest_rank(added, 50),
        added_p99_ms=nearest_rank(added, 99),
        added_p99_each_ms=p99s,
        lag_p99_each_ms=[report.lag_p99_ms for report in reports],
        sent_share=min(shares, default=None),
        cpu_ms_per_request=1000 * sum(report.cpu_s for report in reports) / requests,
    )


def table(lines: Sequence[Line]) -> str:
    """Markdown."""
    rows = [
        "| driver | requests/s | n | failed | added TTFT P50 | P99 (each) | lag P99 (each) | CPU a request |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for line in lines:
        p99s = ", ".join(f"{value:.2f}" for value in line.added_p99_each_ms)
        lags = ", ".join("?" if lag is None else f"{lag:.2f}" for lag in line.lag_p99_each_ms)
        rows.append(
            f"| {line.driver} | {line.request_rate:g} | {line.requests} | {line.failed} | {line.added_p50_ms:.2f} ms "
            f"| {line.added_p99_ms:.2f} ms ({p99s}) | {lags} ms | {line.cpu_ms_per_request:.2f} ms |"
        )
    return "\n".join(rows)


def ceiling(engine: Engine, maker: PromptMaker, driver: Driver, seconds: float) -> list[Line]:
    """Rising rates until one is not clean in three tries: one try may coincide with other work on the machine."""
    lines = []
    for rate in (50, 100, 150, 200, 300, 400, 600, 800, 1000, 1250, 1500, 2000, 2500, 3000):
        tries = 0
        while tries < 3:
            tries += 1
            lines.append(bench(engine, maker, driver, rate, seconds, 1))
            if lines[-1].clean:
                break
        else:
            break
    return lines


def main() -> int:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--drivers", default=",".join(DRIVERS), help="which ones (default: %(default)s)")
    parser.add_argument("--rates", default="10,100,400")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--ceiling", action="store_true", help="find the highest clean rate as well")
    parser.add_argument("--ceiling-seconds", type=float, default=5.0)
    parser.add_argument("--normal-priority", action="store_true", help="leave the engine's priority as it is")
    parser.add_argument("--json", type=Path, help="write every line to this file")
    arguments = parser.parse_args()
    rates = [float(rate) for rate in arguments.rates.split(",") if rate]
    drivers = [DRIVERS[name]() for name in arguments.drivers.split(",")]
    lines: list[Line] = []
    with running_engine(realtime=not arguments.normal_priority, apart=True) as engine:
        maker = make_prompt_maker(engine.count)
        for driver in drivers:
            lines += [bench(engine, maker, driver, rate, arguments.seconds, arguments.repeats) for rate in rates]
            print(table(lines), flush=True)  # noqa: T201
        if arguments.ceiling:
            for driver in drivers:
                found = ceiling(engine, maker, driver, arguments.ceiling_seconds)
                lines += found
                clean = [line.request_rate for line in found if line.clean]
                print(f"\n{driver.name}: clean up to {max(clean, default=0):g} requests/s\n{table(found)}", flush=True)  # noqa: T201
    load = statistics.fmean(os.getloadavg()[:2])
    print(f"\nload of the machine: {load:.1f} on {os.cpu_count()} cores")  # noqa: T201
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(line) for line in lines], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())

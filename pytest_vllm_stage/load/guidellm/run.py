"""Runs a step with GuideLLM in separate processes.

The warm-up is ours, and so are the readings of the engine. GuideLLM sends a fixed number of requests and waits for all:
its time limit would cancel those in flight, the slow ones. Its first requests load modules and come some 20 ms late, so
a few extra ones are sent first, which do not count as samples.
"""

from __future__ import annotations

import asyncio
import os
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.engine import environment as engine_environment
from pytest_vllm_stage.engine.environment import EngineEnvironment
from pytest_vllm_stage.load.connections import Pool, parse_address
from pytest_vllm_stage.load.driver import PROGRESS_INTERVAL_S, LoadJob, Watcher, create_monitor, warm_up
from pytest_vllm_stage.load.guidellm import keeper
from pytest_vllm_stage.load.guidellm.reading import read_report
from pytest_vllm_stage.load.guidellm.scenario import REPORT, SCENARIO, reverse_words, write_scenario
from pytest_vllm_stage.load.guidellm.usage import GroupUsage
from pytest_vllm_stage.measurement.samples import (
    LOST_ROWS,
    MEASURED_AGAIN,
    Measurement,
    Sample,
    ServerReading,
    are_too_many_lost,
)
from pytest_vllm_stage.measurement.step import LoadStep

#: Importing torch, making its processes, and at the end its statistics, on a machine that is busy with the engine too.
AROUND_S = 180.0
#: A closed loop whose answers become this many times slower than its warm-up's is still awaited.
_SLOWER = 5.0
_LOOK_INTERVAL_S = 0.2
_SHOWN_CHARACTERS = 2000
#: Its interpreter's own settings: one worker process, nothing from a hub, no output that a terminal would redraw.
_SETTINGS = {
    "GUIDELLM__MAX_WORKER_PROCESSES": "1",
    "HF_HUB_OFFLINE": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",
    "COLUMNS": "200",
}


def measure(
    job: LoadJob, journal: Journal, *, watcher: Watcher | None = None, environment: EngineEnvironment | None = None
) -> Measurement:
    """Carry out one step by GuideLLM; the journal gets a phase and a progress line about every five seconds.

    Args:
        job: What to do. A closed loop needs a warm-up, which determines how many requests its duration corresponds to.
        journal: Where progress goes.
        watcher: Receives each sample after the step: GuideLLM cannot be stopped early.
        environment: Where GuideLLM is installed; default: the engine's, created if it does not exist.

    Raises:
        ConfigError: GuideLLM cannot carry out the step or its bodies.
        EnvironmentUnusable: GuideLLM ended without a report, or did not end in time; carries its last output.
    """
    installed = environment or engine_environment.ensure(journal)
    with journal.phase(f"load {job.step.id}", step=job.step.to_json()) as facts:
        facts["driver"] = f"guidellm {installed.versions['guidellm']}"
        measurement = _carry_out(job, journal, installed)
        if lacked := describe_loss(measurement):
            facts["measured_again"] = lacked
            journal.event("measured_again", job.step.id, reason=lacked)
            other = replace(job, bodies=[reverse_words(body) for body in job.bodies])
            measurement = _carry_out(other, journal, installed)
            measurement = replace(measurement, facts={**measurement.facts, MEASURED_AGAIN: lacked})
        facts["requests"] = len(measurement.samples)
        facts["failed"] = sum(sample.failed for sample in measurement.samples)
    if watcher is not None:
        for sample in measurement.samples:
            watcher(sample)
    return measurement


def _carry_out(job: LoadJob, journal: Journal, installed: EngineEnvironment) -> Measurement:
    with tempfile.TemporaryDirectory(prefix="guidellm-") as folder:
        return asyncio.run(_GuideLLMRun(job, journal, installed, Path(folder)).carry_out())


def count_requests(step: LoadStep, warmup: Sequence[Sample], bodies: int) -> int:
    """How many requests to send: rate times duration, or what so many users make in the duration.

    Args:
        step: The plan.
        warmup: Samples of the warm-up, sent by as many users.
        bodies: How many prompts there are.

    Raises:
        ConfigError: a closed loop without a warm-up.
    """
    if step.planned_requests is not None:
        return min(bodies, step.planned_requests)
    if not warmup:
        raise ConfigError(
            f"step {step.id}: warmup_requests: is 0; GuideLLM ends a closed loop after a number of requests, which "
            f"depends on the warm-up's latency"
        )
    answered = [sample.end_s - sample.scheduled_s for sample in warmup if sample.failure is None]
    users = step.concurrency or 1
    wanted = users * step.duration_s / statistics.median(answered) if answered else users
    return min(bodies, max(users, round(wanted)))


@dataclass
class _GuideLLMRun:
    """One step in progress."""

    job: LoadJob
    journal: Journal
    environment: EngineEnvironment
    folder: Path
    _priority: str = "normal"

    async def carry_out(self) -> Measurement:
        """Warm up, let GuideLLM send, and read what it wrote."""
        job, step = self.job, self.job.step
        warmup = await self._warm_up()
        count = count_requests(step, warmup, len(job.bodies))
        lead_in = [reverse_words(body) for body in job.warmup_bodies[: step.concurrency or 1]]
        write_scenario(job, [*lead_in, *job.bodies[:count]], self.folder)
        monitor = create_monitor(job, time.perf_counter())
        zero = time.time()
        reading = asyncio.get_running_loop().create_task(monitor.run())
        try:
            with self._guidellm() as process:
                usage = GroupUsage(process.pid)
                await self._follow(process, usage, monitor.readings)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
            await monitor.read()
            await monitor.close()
        self._check(process)
        measurement = read_report(
            self.folder / REPORT, step, lead_in=len(lead_in), facts=job.facts, refuse_impossible=False
        )
        return self._completed(measurement, monitor.readings, zero, usage, count)

    async def _warm_up(self) -> list[Sample]:
        pool = Pool(parse_address(self.job.base_url, self.job.ca_file))
        try:
            await pool.resolve()
            return await warm_up(self.job, pool)
        finally:
            await pool.close()

    @contextmanager
    def _guidellm(self) -> Iterator[subprocess.Popen[bytes]]:
        """GuideLLM's processes, in a group of their own; whatever ends the block ends them."""
        command = [
            sys.executable,
            "-I",
            str(Path(keeper.__file__)),
            str(self.environment.python),
            "-P",
            "-m",
            "guidellm",
        ]
        command += ["run", "--config", str(self.folder / SCENARIO), "--disable-console-interactive"]
        with (self.folder / "output").open("wb") as output:
            process = subprocess.Popen(
                command,
                cwd=self.folder,  # it reads settings from a .env in its folder
                env=environ_of(self.job.ca_file, self.folder),
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if process.stdin:
                process.stdin.close()

    async def _follow(
        self, process: subprocess.Popen[bytes], usage: GroupUsage, readings: Sequence[ServerReading]
    ) -> None:
        """Wait for the end, reporting the elapsed time and the engine's state."""
        step = self.job.step
        longest_s = step.duration_s * (1 if step.open_loop else _SLOWER) + step.request_timeout_s + AROUND_S
        started_s = time.monotonic()
        with self.journal.activity(step.id, total_s=step.duration_s, interval_s=PROGRESS_INTERVAL_S) as activity:
            while process.poll() is None:
                usage.look()
                self._priority = _priority_of(process.pid) or self._priority
                now_s = time.monotonic()
                if now_s - started_s > longest_s:
                    raise EnvironmentUnusable(
                        f"GuideLLM did not end step {step.id} within {longest_s:.0f} s\n  it wrote: {self._wrote()}"
                    )
                activity.update(describe_progress(readings))
                await asyncio.sleep(_LOOK_INTERVAL_S)

    def _check(self, process: subprocess.Popen[bytes]) -> None:
        if process.returncode or not (self.folder / REPORT).exists():
            raise EnvironmentUnusable(
                f"GuideLLM ended step {self.job.step.id} without a report (exit status {process.returncode})\n"
                f"  it wrote: {self._wrote()}"
            )

    def _wrote(self) -> str:
        text = (self.folder / "output").read_text(errors="replace").strip()[-_SHOWN_CHARACTERS:]
        key = self.job.api_key.reveal() if self.job.api_key else ""
        return (text.replace(key, "***") if key else text) or "nothing"

    def _completed(
        self, measurement: Measurement, readings: Sequence[ServerReading], zero: float, usage: GroupUsage, count: int
    ) -> Measurement:
        """Add facts that GuideLLM does not know: the engine's readings, its CPU time, and missing requests."""
        start = measurement.started_at
        wall_s = max(sample.end_s for sample in measurement.samples)
        shifted = [replace(reading, at_s=reading.at_s + zero - start) for reading in readings]
        before = [reading for reading in shifted if reading.at_s <= 0][-1:]
        cpu_s = usage.between(start, start + wall_s)
        client = replace(measurement.client, cpu_s=cpu_s, wall_s=wall_s, priority=self._priority)
        return replace(
            measurement,
            client=client,
            server=(*before, *(reading for reading in shifted if reading.at_s > 0)),
            facts={**measurement.facts, **missing(count, len(measurement.samples))},
        )


def missing(sent: int, rows: int) -> dict[str, int]:
    """Facts about requests that the report does not have.

    GuideLLM occasionally loses a row between its processes; the request was sent and answered.
    """
    lost = sent - rows
    return {LOST_ROWS: lost} if lost > 0 else {}


def describe_loss(measurement: Measurement) -> str:
    """Why a step is to be measured again: its report lacks too many rows, and no request failed; else empty."""
    lost, rows = int(measurement.facts.get(LOST_ROWS, 0)), len(measurement.samples)
    # Other prompts of the step would begin with another prefix than the planned one.
    if not are_too_many_lost(lost, rows + lost) or measurement.step.shared_prefix_tokens:
        return ""
    if any(sample.failed for sample in measurement.samples):
        return ""
    return f"GuideLLM's report had {rows} of {rows + lost} samples, none failed"


def _priority_of(pid: int) -> str:
    """What its keeper could raise a process to; empty once it has ended."""
    with suppress(ProcessLookupError):
        nice = os.getpriority(os.PRIO_PROCESS, pid)
        return f"nice {nice}" if nice < 0 else "normal"
    return ""


def environ_of(ca_file: str | None, folder: Path) -> dict[str, str]:
    """GuideLLM's environment: none of the user's settings of it, no proxy, and the authorities that we trust too."""
    kept = {
        name: value
        for name, value in engine_environment.clean_environ().items()
        if not name.startswith("GUIDELLM") and not name.lower().endswith("_proxy")
    }
    trusted = ca_file or ssl.get_default_verify_paths().cafile
    authorities = {"SSL_CERT_FILE": str(Path(trusted).resolve())} if trusted else {}
    return kept | _SETTINGS | authorities | {"HF_HOME": str(folder / "hub")}


def describe_progress(readings: Sequence[ServerReading]) -> str:
    """The state of GuideLLM's run in a few words."""
    last = readings[-1] if readings else None
    if last is None or last.running is None:
        return "GuideLLM runs"
    return f"GuideLLM runs, engine runs {last.running:g}, {last.waiting or 0:g} wait"

"""What a long history costs: baselines and the index of reports with many runs; and a stage with many models.

    python -m tests.bench.bench_history [--runs 1000] [--steps 14] [--checks 700] [--models 100]

Baselines: the file that ``--stage-baselines`` reads for each promised step of a run, with a line per run and step. The
index: ``reports/index.html`` over so many records, each with so many checks. Models: InferenceServices of one namespace
on an API server of this process, listed once and then read one by one as a run does. Each is timed in a process of its
own, whose peak memory is printed too.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.report.index import write_index
from pytest_vllm_stage.slo.baselines import Baseline, make_key, read_baselines
from pytest_vllm_stage.stage import objects
from tests.unit.made_api import ApiServer, served
from tests.unit.made_run import make_run, steps

METRICS = ("ttft_p50_ms", "ttft_p90_ms", "ttft_p99_ms", "tpot_p50_ms", "e2e_latency_p50_s", "output_tokens_per_s")


def fill_baselines(path: Path, runs: int, steps_per_run: int) -> None:
    """A line per run and step."""
    with path.open("w", encoding="utf-8") as file:
        for run in range(runs):
            for step in range(steps_per_run):
                key = make_key(
                    model="mistral-24b", image_digest="sha256:" + "a" * 64, vllm_arguments="--max-num-seqs=24 " * 8,
                    gpu="NVIDIA L4", step=f"full-rate-{step}", prompt_set="256/256", driver="asyncio",
                    driver_version="1",
                )  # fmt: skip
                values = dict.fromkeys(METRICS, 100.0 + run % 10)
                line = asdict(Baseline(f"run-{run:05}", 1.79e9 + run, key, values, "ok", True))
                file.write(json.dumps({"schema_version": 1, **line}, sort_keys=True) + "\n")


def read_all_steps(path: Path, steps_per_run: int) -> None:
    """What a run reads: the whole file for each promised step."""
    for _ in range(steps_per_run):
        read_baselines(path)


def fill_reports(folder: Path, runs: int, checks: int) -> None:
    """Records of runs that are over."""
    events = [
        {"kind": "test", "name": f"suites/inference/test_answers.py::test_number_{number}[full]", "when": "call",
         "outcome": "passed", "start": 1.79e9, "duration_s": 0.5, "reason": "", "proves": "It answers.",
         "properties": {}}
        for number in range(checks)
    ]  # fmt: skip
    made = make_run(folder / "template", *events, measurements=steps())
    record = json.loads((made / "run.json").read_text(encoding="utf-8"))
    for number in range(runs):
        run_id = f"20261124-{number:06}-aaaa"
        (folder / run_id).mkdir()
        record |= {"run_id": run_id, "started_at": 1.79e9 + number}
        (folder / run_id / "run.json").write_text(json.dumps(record), encoding="utf-8")


def list_models(folder: Path, models: int) -> None:
    """List them once, then read each, as the checks of a stage do."""
    server = ApiServer()
    for number in range(models):
        name = f"model-{number:03}"
        server.add(
            {"apiVersion": "serving.kserve.io/v1beta1", "kind": "InferenceService", "metadata": {"name": name}},
        )
    with served(server):
        kube = client.connect_to(server.facts(folder))
        found = objects.listed(kube, "InferenceService", "ns")
        for one in found:
            objects.get(kube, "InferenceService", objects.name_of(one), "ns")
        kube.client.close()
    if len(found) != models:
        raise SystemExit(f"expected {models} InferenceServices, got {len(found)}")


def timed(name: str, work: Callable[[], object]) -> None:
    """Run it in a process of its own; print its time and its peak memory."""

    def child() -> None:
        before = resource.getrusage(resource.RUSAGE_SELF)
        began_s = time.perf_counter()
        work()
        took_s = time.perf_counter() - began_s
        after = resource.getrusage(resource.RUSAGE_SELF)
        cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        sys.stdout.write(f"| {name} | {took_s:.2f} s | {cpu_s:.2f} s | {after.ru_maxrss / 1024:.0f} MiB |\n")
        sys.stdout.flush()

    process = multiprocessing.get_context("fork").Process(target=child)
    process.start()
    process.join()


def main() -> int:
    """Print a row per piece of work."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--steps", type=int, default=14)
    parser.add_argument("--checks", type=int, default=700)
    parser.add_argument("--models", type=int, default=100)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        baselines, reports = folder / "baselines.jsonl", folder / "reports"
        reports.mkdir()
        fill_baselines(baselines, given.runs, given.steps)
        fill_reports(reports, given.runs, given.checks)
        size = sum(path.stat().st_size for path in reports.glob("*/run.json")) / 2**20
        lines = given.runs * given.steps
        sys.stdout.write("| work | time | CPU | peak memory |\n|---|---|---|---|\n")
        sys.stdout.flush()
        what = f"{lines} lines of baselines ({baselines.stat().st_size / 2**20:.0f} MiB)"
        timed(f"read {what} once", lambda: read_baselines(baselines))
        timed(f"read {what} for {given.steps} steps", lambda: read_all_steps(baselines, given.steps))
        timed(f"index of {given.runs} runs ({size:.0f} MiB of records)", lambda: write_index(reports))
        timed(f"list and read {given.models} InferenceServices", lambda: list_models(folder, given.models))
    return 0


if __name__ == "__main__":
    sys.exit(main())

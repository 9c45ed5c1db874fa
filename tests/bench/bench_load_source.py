"""How far load from this machine and load from pods of the cluster agree on one stage, with their steps sent in turn.

    python -m tests.bench.bench_load_source RUN-ID [--role quantized] [--steps rate-8,concurrency-2] [--workers 4]
                                            [--seconds 15] [--repeats 3]

RUN-ID is a kept stage of a local cluster with the simulated engine. The first of each pair alternates, so that what
drifts on the machine meets both. The two agree where the medians of their P50s are within 5 % or 1 ms of each other.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.load import prepare, process
from pytest_vllm_stage.load.workers.measure import SharedJob, measure_in_cluster
from pytest_vllm_stage.load.workers.pods import WorkerPlace
from pytest_vllm_stage.measurement.samples import LOAD_WORKERS, Measurement
from pytest_vllm_stage.measurement.statistics import nearest_rank
from pytest_vllm_stage.measurement.step import CLOSED, CONSTANT, LoadStep
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.target import Target
from pytest_vllm_stage.session import kept
from pytest_vllm_stage.stage import client
from pytest_vllm_stage.stage.observe.reader import StageReader
from tests.bench.bench_workers import gap_cv

RELATIVE, ABSOLUTE_MS = 0.05, 1.0
HOST, CLUSTER = "host", "cluster"


@dataclass
class Source:
    """What one source measured of one step, a value per repeat."""

    ttft_p50_ms: list[float] = field(default_factory=list)
    e2e_p50_ms: list[float] = field(default_factory=list)
    lag_p50_ms: list[float] = field(default_factory=list)
    lag_p99_ms: list[float] = field(default_factory=list)
    gap_cv: list[float] = field(default_factory=list)
    clock_ms: list[float] = field(default_factory=list)
    requests: int = 0
    failed: int = 0
    lost: list[str] = field(default_factory=list)

    def add(self, measurement: Measurement) -> None:
        """Take one repeat."""
        right = [one for one in measurement.samples if one.failure is None]
        workers = measurement.facts.get(LOAD_WORKERS, {})
        self.requests += len(measurement.samples)
        self.failed += len(measurement.samples) - len(right)
        self.lost += [str(one["reason"]) for one in workers.get("lost", ())]
        if not right:
            return
        lags = sorted(1000 * (one.lag_s or 0.0) for one in right)
        self.ttft_p50_ms.append(1000 * p50([(one.first_token_s or 0.0) - one.scheduled_s for one in right]))
        self.e2e_p50_ms.append(1000 * p50([one.end_s - one.scheduled_s for one in right]))
        self.lag_p50_ms.append(nearest_rank(lags, 50))
        self.lag_p99_ms.append(nearest_rank(lags, 99))
        self.gap_cv.append(gap_cv(measurement))
        self.clock_ms.append(float(workers.get("clock_uncertainty_ms", 0.0)))


def p50(values: Sequence[float]) -> float:
    """The median of all requests."""
    return nearest_rank(sorted(values), 50)


def step_of(name: str, target: Target, given: argparse.Namespace, seed: int) -> LoadStep:
    """``rate-8`` or ``concurrency-2`` as a step."""
    kind, _, level = name.partition("-")
    return LoadStep(
        target.role,
        target.model,
        CONSTANT if kind == "rate" else CLOSED,
        given.seconds,
        48,
        8,
        request_rate=float(level) if kind == "rate" else None,
        concurrency=int(level) if kind == "concurrency" else None,
        warmup_requests=8,
        request_timeout_s=30.0,
        seed=seed,
    )


def median(values: Sequence[float]) -> float:
    """The median of the repeats; not a number where there are none."""
    return statistics.median(values) if values else float("nan")


def agreement(name: str, host: float, cluster: float) -> str:
    """One number of both sources, and whether they agree."""
    within = abs(host - cluster) <= max(ABSOLUTE_MS, RELATIVE * host)
    return f"{name} {host:.2f} / {cluster:.2f} ({100 * (cluster / host - 1):+.1f} %{'' if within else ', DIFFERENT'})"


def main() -> int:
    """Print a row per step; return 1 where the two do not agree."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_id")
    parser.add_argument("--role", default="quantized")
    parser.add_argument("--steps", default="rate-8,concurrency-2")
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=15.0)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    found = kept.find(given.run_id)
    facts = next(target for target in found.stage.targets if target.role == given.role)
    target = Target(given.role, facts.inference_service, facts.base_url, facts.max_model_len)
    http = EndpointClient(target)
    maker, journal, different = prepare.create_prompt_maker(http, "chat"), Journal(), False
    with client.connection(found.cluster, found.stage.namespace) as kube:
        reader = StageReader(kube, found.cluster, found.stage.namespace)
        place = WorkerPlace(reader, fixtures_dir() / "overlays" / "local-sim", "bench", journal)

        def measure(source: str, step: LoadStep) -> Measurement:
            if source == HOST:
                return process.measure(prepare.prepare(step, http, maker), journal)
            shared = prepare.prepare_shared(
                step, http, maker, workers=given.workers, base_url=target.base_url, gpu_metrics=None
            )
            return measure_in_cluster(place, SharedJob(shared))

        for name in given.steps.split(","):
            sources = {HOST: Source(), CLUSTER: Source()}
            for repeat in range(given.repeats):
                for source in (HOST, CLUSTER) if repeat % 2 == 0 else (CLUSTER, HOST):
                    step = step_of(name, target, given, seed=100 * repeat + (source == HOST))
                    sources[source].add(measure(source, step))
            host, cluster = sources[HOST], sources[CLUSTER]
            rows = [
                agreement("TTFT P50 ms", median(host.ttft_p50_ms), median(cluster.ttft_p50_ms)),
                agreement("E2E P50 ms", median(host.e2e_p50_ms), median(cluster.e2e_p50_ms)),
            ]
            different |= any("DIFFERENT" in row for row in rows)
            sys.stdout.write(
                f"{name}: {'; '.join(rows)}; lag P50 {median(host.lag_p50_ms):.2f} / {median(cluster.lag_p50_ms):.2f}, "
                f"P99 {median(host.lag_p99_ms):.1f} / {median(cluster.lag_p99_ms):.1f} ms; gap CV "
                f"{median(host.gap_cv):.3f} / {median(cluster.gap_cv):.3f}; clocks within "
                f"{max(cluster.clock_ms, default=0.0):.1f} ms; requests {host.requests} / {cluster.requests}, failed "
                f"{host.failed} / {cluster.failed}, lost workers {cluster.lost or 'none'}\n"
            )
            sys.stdout.flush()
    http.close()
    return int(different)


if __name__ == "__main__":
    sys.exit(main())

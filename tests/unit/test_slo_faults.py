"""From a fault of the simulated engine to its name in the verdict, through the driver: short steps, scaled times."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

import pytest

from pytest_vllm_stage.load.driver import LoadJob, run_step
from pytest_vllm_stage.measurement.samples import Measurement, Sample
from pytest_vllm_stage.measurement.step import CLOSED, CONSTANT, LoadStep
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.early import EarlyDecision
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.validity import lag_limit_ms
from pytest_vllm_stage.slo.verdict import StepVerdict, judge
from tests.unit.sim_engine import Sim, request_of, running_sim, serving

#: Generous, so that this machine's load decides nothing; the lag limit becomes 5 s with it.
OBJECTIVES = (Objective("ttft_p90_ms", 100_000), Objective("error_rate", 0.1))
#: The fewest requests that can pass these: from 30 on, a busy machine may give their latency a trend.
RATE, DURATION_S = 20, 1.45


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    with running_sim("--ttft-ms", "20", "--itl-ms", "5") as engine:
        yield engine
        engine.faults()


def step(rate: float = 40, duration_s: float = 1.5, **changes: Any) -> LoadStep:
    made = LoadStep(
        "s", "sim", CONSTANT, duration_s, 64, 16, request_rate=rate, warmup_requests=2, request_timeout_s=30
    )
    return replace(made, **{"seed": time.time_ns() % 10**9} | changes)


def verdict(job: LoadJob, *objectives: Objective) -> StepVerdict:
    watcher = EarlyDecision(job.step, objectives or OBJECTIVES)
    return judge(asyncio.run(run_step(job, watcher=watcher)), objectives or OBJECTIVES)[1]


def under(sim: Sim, plan: LoadStep, *faults: dict[str, Any]) -> StepVerdict:
    sim.faults(*faults)
    try:
        return verdict(sim.job(plan))
    finally:
        sim.faults()


def test_healthy_server_passes_without_a_finding(sim: Sim) -> None:
    found = under(sim, step(RATE, DURATION_S))
    assert found.outcome is Outcome.PASS, found.why
    assert found.findings == ()


def test_finish_reason_alone_is_not_a_failure(sim: Sim) -> None:
    """It is a matter of the correctness suite."""
    found = under(sim, step(RATE, DURATION_S), {"fault": "always_stop", "share": 0.33})
    assert found.outcome is Outcome.PASS, found.why


def test_repeated_stalls_fail_the_step(sim: Sim) -> None:
    sim.faults()
    job = sim.job(step(20, 9, warmup_requests=0))
    sim.faults({"fault": "stall", "duration_s": 0.9, "every_s": 1.8})
    found = verdict(job, Objective("e2e_latency_p90_s", 0.4), *OBJECTIVES)
    sim.faults()
    assert found.outcome is Outcome.FAIL
    assert "stalls of up to" in found.why


def test_five_per_cent_of_503(sim: Sim) -> None:
    sim.faults({"fault": "server_error", "share": 0.05})
    job = sim.job(step(150, 3))
    found = verdict(job, Objective("error_rate", 0.001), Objective("ttft_p99_ms", 100_000))
    sim.faults()
    assert found.outcome is Outcome.FAIL
    assert "http_status" in found.why
    assert "error_rate <= 0.001: 0.0" in found.why


@pytest.mark.parametrize(
    ("fault", "name"),
    [
        ("error_in_stream", "error_in_stream"),
        ("truncated_stream", "truncated"),
        ("missing_done", "truncated"),
        ("empty_answers", "no_tokens"),
    ],
)
def test_fault_in_every_third_answer_fails_the_step(sim: Sim, fault: str, name: str) -> None:
    found = under(sim, step(40, 2), {"fault": fault, "share": 0.33})
    assert found.outcome is Outcome.FAIL
    assert f" {name}" in found.why
    assert "error_rate <= 0.1" in found.why


def test_no_tokens_at_all_is_vacuous(sim: Sim) -> None:
    found = under(sim, step(), {"fault": "server_error"})
    assert found.outcome is Outcome.FAIL
    assert found.why.startswith("vacuous: not one token came from 60 requests (60 http_status)")


def test_prompts_shorter_than_planned_make_the_step_invalid(sim: Sim) -> None:
    found = under(sim, step(), {"fault": "off_by_one_usage", "count": "prompt_tokens", "by": -32})
    assert found.outcome is Outcome.INVALID
    assert "prompts did not have the planned length: expected 64 tokens, the server counted 32" in found.why


class CachingGateway:
    """Stands before the engine, and gives every request after the first few the answer of one of those."""

    def __init__(self, sim: Sim, generated: int) -> None:
        self._port = urlsplit(sim.url).port
        self._generated = generated
        self._answers: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await request_of(reader)
        cached = request.startswith(b"POST") and len(self._answers) >= self._generated
        writer.write(self._answers[0] if cached else await self._asked(request))

    async def _asked(self, request: bytes) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        writer.write(request.replace(b"HTTP/1.1\r\n", b"HTTP/1.1\r\nconnection: close\r\n", 1))
        answer = await reader.read()
        writer.close()
        if request.startswith(b"POST"):
            self._answers.append(answer)
        return answer


def test_answers_from_a_gateway_cache_make_the_step_invalid(sim: Sim) -> None:
    async def measured() -> Measurement:
        async with serving(CachingGateway(sim, 12).serve) as port:
            return await run_step(replace(sim.job(step()), base_url=f"http://127.0.0.1:{port}"))

    found = judge(asyncio.run(measured()), OBJECTIVES)[1]
    assert found.outcome is Outcome.INVALID
    assert "answers came from a cache, not from the engine: " in found.why
    for evidence in (
        "answers share their id",
        "tokens were received and the engine generated",
        "the same answer at once",
    ):
        assert evidence in found.why


def test_gateway_that_gives_everyone_the_same_answer_is_a_finding(sim: Sim) -> None:
    # Long answers: a busy client may take a short one in one piece, and the same ones in one piece are a cache's.
    found = under(sim, step(RATE, DURATION_S, output_tokens=64), {"fault": "stale_cache"})
    assert "same_answers" in [finding.name for finding in found.findings]


def test_buffered_stream_is_a_finding(sim: Sim) -> None:
    found = under(sim, step(), {"fault": "buffered_stream"})
    assert "buffers the stream" in found.why


def test_overloaded_client_makes_the_step_invalid(sim: Sim) -> None:
    """A watcher that takes longer than the gap between two requests stands for a client without a free core."""
    objectives = (Objective("ttft_p90_ms", 100),)

    def slow(_sample: Sample) -> None:
        time.sleep(0.05)

    measurement = asyncio.run(run_step(sim.job(step(60, 1.5)), watcher=slow))
    found = judge(measurement, objectives)[1]
    assert lag_limit_ms(objectives) == 10
    assert found.outcome is Outcome.INVALID
    assert "the client was overloaded: P99 send lag" in found.why


def test_too_few_samples(sim: Sim) -> None:
    # 4 s, since a request sent 40 ms late is then 1 % of the rate.
    found = verdict(sim.job(step(5, 4)), Objective("ttft_p99_ms", 100_000))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "0 misses of 20 requests; too few samples: a pass needs at least 299" in found.why


def test_queueing_past_capacity() -> None:
    """Two sequences of about 0.2 s serve 10 requests a second."""
    with running_sim("--max-num-seqs", "2", "--ttft-ms", "50", "--itl-ms", "10", "--itl-growth", "0") as small:
        found = verdict(small.job(step(24, 3, warmup_requests=0)))
        assert found.outcome is Outcome.FAIL
        assert "24 requests/s is past capacity, about " in found.why
        assert found.saturation.capacity_requests_per_s == pytest.approx(10, rel=0.3)
        users = step(1, 3, arrivals=CLOSED, request_rate=None, concurrency=6, warmup_requests=0)
        closed = verdict(small.job(users, requests=200))
        assert "4 requests always waited: the engine runs 2 at a time (concurrency 6)" in closed.saturation.message


def test_a_certain_step_ends_early(sim: Sim) -> None:
    plan = step(40, 20, decide_early=True, warmup_requests=0)
    any_lag = Objective("ttft_p90_ms", 60_000)
    found = verdict(sim.job(plan), Objective("e2e_latency_p50_s", 0.001), any_lag)
    assert found.outcome is Outcome.FAIL
    assert found.saved_s > 10

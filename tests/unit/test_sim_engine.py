"""The simulated engine's queue, slots and deadlines: by arithmetic on its own times, not by this machine's clock."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Coroutine
from typing import Any

import pytest

from pytest_vllm_stage.serving.metrics import parse
from pytest_vllm_stage.standins.engine.engine import Engine, Job
from pytest_vllm_stage.standins.engine.prefix_cache import PrefixCache
from pytest_vllm_stage.standins.engine.settings import Settings

FAST = Settings(ttft_ms=2, itl_ms=1, itl_growth=0.5, prefill_tokens_per_s=1e6, max_num_seqs=2)


class Client:
    """Submits jobs and notes what leaves."""

    def __init__(self, settings: Settings = FAST) -> None:
        self.engine = Engine(settings)
        self.left: list[tuple[str, int]] = []
        self.most_running = 0

    def submit(self, name: str, tokens: int = 3, prompt: int = 4, **more: Any) -> Job:
        """Queue a job with a prompt of its own."""
        pieces = [f"{name}{place}".encode() for place in range(prompt)]
        job = Job(name, pieces, tokens, lambda place: self._note(name, place), "length", 0.0, **more)
        self.engine.submit(job)
        return job

    def _note(self, name: str, place: int) -> None:
        self.left.append((name, place))
        self.most_running = max(self.most_running, self.engine.running)

    async def idle(self) -> None:
        """Wait until nothing runs or waits."""
        async with asyncio.timeout(30):
            while self.engine.running or self.engine.waiting:
                await asyncio.sleep(0.001)


def run(work: Coroutine[Any, Any, None]) -> None:
    asyncio.run(work)


def test_jobs_get_slots_in_order_of_arrival() -> None:
    async def work() -> None:
        client = Client()
        jobs = [client.submit(name) for name in "abcdef"]
        assert (client.engine.running, client.engine.waiting) == (2, 4)
        await client.idle()
        assert client.most_running == 2
        assert [job.admitted_at for job in jobs] == sorted(job.admitted_at for job in jobs)
        for earlier, later in zip(jobs, jobs[2:], strict=False):
            assert later.admitted_at >= earlier.finished_at, "a job was admitted before a slot was free"
        for name in "abcdef":
            assert [place for who, place in client.left if who == name] == [0, 1, 2]
        assert [job.request_id for job in client.engine.truths] == [job.request_id for job in sorted(jobs, key=_end)]

    run(work())


def _end(job: Job) -> float:
    return job.finished_at


def test_deadlines_are_absolute_and_grow_with_the_batch() -> None:
    async def work() -> None:
        client = Client()
        alone = client.submit("alone", tokens=5, prompt=1000)
        await client.idle()
        assert alone.deadline - alone.admitted_at == pytest.approx(0.002 + 0.001 + 4 * 0.001)
        first, second = client.submit("one", tokens=4), client.submit("two", tokens=4)
        await client.idle()
        for job in (first, second):
            took = job.deadline - job.admitted_at - 4e-6
            assert 0.002 + 3 * 0.001 <= took + 1e-9 <= 0.002 + 3 * 0.0015 + 2e-9
        assert first.deadline - first.admitted_at > 0.0055, "two running jobs were as fast as one"

    run(work())


def test_no_token_leaves_before_its_deadline() -> None:
    async def work() -> None:
        client = Client(Settings(ttft_ms=3, itl_ms=2, prefill_tokens_per_s=1e9, itl_growth=0.0))
        jobs = [client.submit(str(number), tokens=8) for number in range(20)]
        await client.idle()
        for job in jobs:
            due = [job.admitted_at + 0.003 + place * 0.002 for place in range(8)]
            assert all(left >= at - 1e-6 for left, at in zip(job.token_times, due, strict=True))
        assert client.engine.lateness_max_s > 0.0

    run(work())


def test_a_client_that_goes_away_frees_its_slot_or_its_place() -> None:
    async def work() -> None:
        client = Client(Settings(ttft_ms=1, itl_ms=1, max_num_seqs=1))
        running, waiting, last = (client.submit(name, tokens=10_000) for name in ("running", "waiting", "last"))
        client.engine.abort(waiting)
        assert (client.engine.running, client.engine.waiting) == (1, 1)
        client.engine.abort(running)
        assert last.running
        assert (client.engine.running, client.engine.waiting) == (1, 0)
        client.engine.abort(last)
        client.engine.abort(last)
        assert client.engine.running == 0
        metrics = parse(client.engine.stats.exposition(client.engine))
        assert metrics.value("vllm:request_success", finished_reason="abort") == 3
        assert waiting.truth()["admitted_at"] is None
        assert not any(job.prompt or job.on_token.__closure__ for job in client.engine.truths), "ended jobs hold memory"
        await client.idle()
        assert client.left == []

    run(work())


def test_a_pause_shifts_everything_that_is_scheduled() -> None:
    async def work() -> None:
        client = Client(Settings(ttft_ms=5, itl_ms=5, itl_growth=0.0, prefill_tokens_per_s=1e9))
        before = client.submit("before", tokens=2)
        client.engine.pause(0.05)
        during = client.submit("during", tokens=2)
        await client.idle()
        assert before.deadline - before.admitted_at == pytest.approx(0.06, abs=1e-6)
        assert during.deadline >= before.admitted_at + 0.06

    run(work())


def test_the_metrics_add_up() -> None:
    async def work() -> None:
        client = Client()
        for name in ("a", "b", "a"):
            client.submit(name, tokens=4, prompt=40)
            await client.idle()
        metrics = parse(client.engine.stats.exposition(client.engine))
        assert metrics.value("vllm:prompt_tokens") == 120
        assert metrics.value("vllm:generation_tokens") == 12
        assert metrics.value("vllm:prefix_cache_queries") == 120
        assert metrics.value("vllm:prefix_cache_hits") == 32
        assert metrics.value("vllm:request_success", finished_reason="length") == 3
        assert metrics.histogram("vllm:time_to_first_token_seconds").count == 3
        assert metrics.histogram("vllm:inter_token_latency_seconds").count == 9
        e2e = metrics.histogram("vllm:e2e_request_latency_seconds")
        assert e2e.buckets[math.inf] == e2e.count == 3
        assert metrics.value("vllm:num_requests_running") == metrics.value("vllm:num_requests_waiting") == 0
        assert metrics.value("vllm:kv_cache_usage_perc") == 0

    run(work())


def test_jitter_is_drawn_from_the_seed() -> None:
    async def paces(seed: int) -> list[float]:
        client = Client(Settings(ttft_ms=0, itl_ms=0, jitter=0.3, seed=seed))
        jobs = [client.submit(str(number), tokens=1) for number in range(5)]
        await client.idle()
        return [job.pace for job in jobs]

    assert asyncio.run(paces(1)) == asyncio.run(paces(1)) != asyncio.run(paces(2))


def test_the_prefix_cache_knows_whole_blocks_of_the_beginning() -> None:
    cache = PrefixCache(block_size=4, capacity_tokens=100)
    prompt = [b"%d" % number for number in range(12)]
    assert cache.look_up(prompt) == 0
    assert cache.look_up(prompt) == 8, "the last token must be computed, so its block is none"
    assert cache.look_up([*prompt, b"more"]) == 8
    assert cache.look_up([*prompt[:6], b"x", *prompt[7:]]) == 4
    assert cache.look_up([b"x", *prompt]) == 0
    cache.clear()
    assert cache.look_up(prompt) == 0


def test_the_prefix_cache_forgets_what_was_not_used() -> None:
    cache = PrefixCache(block_size=1, capacity_tokens=4)
    cache.look_up([b"a", b"b", b"c"])
    cache.look_up([b"d", b"e", b"f"])
    assert cache.look_up([b"a", b"b", b"c"]) == 2
    cache.look_up([b"g", b"h", b"i"])
    assert cache.look_up([b"d", b"e", b"f"]) == 0
    longer_than_the_cache = [b"%d" % number for number in range(6)]
    cache.look_up(longer_than_the_cache)
    assert cache.look_up(longer_than_the_cache) == 0, "blocks count as cached though the ones before them are gone"

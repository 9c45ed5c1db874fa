"""Several load workers on one step: together they send exactly what one driver sends, and a lost one is named."""

from __future__ import annotations

import itertools
import math
import os
import random
import signal
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.load.prompts import PromptMaker, make_body
from pytest_vllm_stage.load.words import WORDS
from pytest_vllm_stage.load.workers import clock, messages
from pytest_vllm_stage.load.workers.assignment import Assignment, parse_assignment
from pytest_vllm_stage.load.workers.clock import ClockOffset
from pytest_vllm_stage.load.workers.gather import Gathering
from pytest_vllm_stage.load.workers.merge import Gathered, LostWorker, merge
from pytest_vllm_stage.load.workers.processes import local_workers
from pytest_vllm_stage.load.workers.share import Share, count_workers
from pytest_vllm_stage.measurement.samples import LOAD_WORKERS, Measurement
from pytest_vllm_stage.measurement.samples_file import as_saved, write_measurement
from pytest_vllm_stage.measurement.step import CLOSED, CONSTANT, POISSON, LoadStep
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import STARTED_AT, closed_step, measurement, open_step, sample
from tests.unit.sim_engine import Sim, running_sim

ALL = settings(max_examples=100, deadline=None)
STEPS = st.one_of(
    st.builds(
        lambda arrivals, rate, duration_s, seed: open_step(rate, duration_s, arrivals=arrivals, seed=seed),
        st.sampled_from((CONSTANT, POISSON)),
        st.sampled_from((1.0, 2.5, 7.0)),
        st.integers(1, 12).map(float),
        st.integers(0, 9),
    ),
    st.builds(closed_step, st.integers(1, 20)),
)
MAKER = PromptMaker(6, WORDS, lambda text: 6 + len(text.split()) - 1)


def requests_of(step: LoadStep) -> int:
    return step.planned_requests or 57


def assignment_of(step: LoadStep, workers: int, url: str = "http://m") -> Assignment:
    return Assignment(step, requests_of(step), workers, MAKER.overhead, MAKER.words, url)


@ALL
@given(STEPS, st.integers(1, 9))
def test_the_shares_are_disjoint_and_together_the_whole_step(step: LoadStep, wanted: int) -> None:
    workers = count_workers(step, wanted)
    shares = [Share(worker, workers) for worker in range(workers)]
    places = [share.places(step, requests_of(step)) for share in shares]
    assert sorted(itertools.chain(*places)) == list(range(requests_of(step)))
    assert all(places), "a worker has nothing to send"
    for share, own in zip(shares, places, strict=True):
        assert [share.place(step, number) for number in range(len(own))] == own
    if step.concurrency is not None:
        assert sum(share.users(step) or 0 for share in shares) == step.concurrency


@settings(max_examples=30, deadline=None)
@given(STEPS, st.integers(1, 5))
def test_the_workers_schedules_and_bodies_are_those_of_one_driver(step: LoadStep, wanted: int) -> None:
    step = replace(step, warmup_requests=7)
    workers = count_workers(step, wanted)
    assignment = parse_assignment(assignment_of(step, workers).to_text())
    jobs = [assignment.job(worker, None, None, None) for worker in range(workers)]
    whole = [make_body(step, text) for text in MAKER.unchecked_texts(step, requests_of(step), "step")]
    bodies = {job.share.place(step, n): body for job in jobs for n, body in enumerate(job.bodies)}
    assert [bodies[place] for place in range(requests_of(step))] == whole
    assert len(set(whole)) == len(whole)
    assert sum(len(job.warmup_bodies) for job in jobs) == 7
    if step.open_loop:
        assert sorted(itertools.chain(*(job.schedule_s() for job in jobs))) == step.schedule_s()


def test_fewer_prompts_are_the_first_of_more() -> None:
    """What the server counts is what the workers send."""
    step = open_step()
    assert MAKER.texts(step, 16, "step") == list(MAKER.unchecked_texts(step, 300, "step"))[:16]


def split(whole: Measurement, workers: int) -> dict[int, Measurement]:
    """The measurement as these workers would have made it."""
    parts: dict[int, Measurement] = {}
    for worker in range(workers):
        own = Share(worker, workers).places(whole.step, len(whole.samples))
        rows = [replace(whole.samples[place], index=number) for number, place in enumerate(own)]
        parts[worker] = replace(whole, samples=tuple(rows))
    return parts


def gathered(parts: dict[int, Measurement], lost: tuple[LostWorker, ...] = (), uncertain_s: float = 0.001) -> Gathered:
    return Gathered(parts, lost, {worker: ClockOffset(0.5, uncertain_s) for worker in parts}, STARTED_AT)


@ALL
@given(st.integers(1, 8), st.sampled_from((CONSTANT, POISSON)), st.integers(0, 99))
def test_merging_loses_and_doubles_no_sample(workers: int, arrivals: str, seed: int) -> None:
    step = open_step(10.0, 5.0, arrivals=arrivals, seed=seed)
    whole = measurement(step, [sample(i, at_s) for i, at_s in enumerate(step.schedule_s())])
    merged = merge(step, workers, gathered(split(whole, workers)), {"run_id": "r"})
    assert merged.samples == whole.samples
    assert (merged.step, merged.started_at, merged.facts["run_id"]) == (step, STARTED_AT, "r")
    assert merged.server == whole.server
    assert merged.facts[LOAD_WORKERS]["count"] == workers


def test_a_merged_closed_loop_is_in_the_order_of_sending() -> None:
    step = closed_step(3, 5.0)
    dice = random.Random(1)
    rows = [sample(i, round(dice.uniform(0, 5), 6)) for i in range(30)]
    merged = merge(step, 2, gathered(split(measurement(step, rows), 2)), {})
    assert [one.index for one in merged.samples] == list(range(30))
    assert [one.response_id for one in merged.samples] == [
        one.response_id for one in sorted(rows, key=lambda row: row.scheduled_s)
    ]


def test_the_merged_driver_is_as_late_as_the_latest_worker() -> None:
    whole = measurement(open_step(10.0, 5.0), [sample(i, i / 10) for i in range(50)])
    parts = split(whole, 2)
    for worker, lag_ms in enumerate((2.0, 30.0)):
        client = replace(
            parts[worker].client, loop_lag_p99_ms=lag_ms, connections=3, resent=1, cpu_s=lag_ms, wall_s=40.0
        )
        parts[worker] = replace(parts[worker], client=client)
    client = merge(whole.step, 2, gathered(parts), {}).client
    assert (client.loop_lag_p99_ms, client.connections, client.resent, client.cpu_s) == (30.0, 6, 2, 30.0)
    assert client.driver == "test 1 x2 in cluster", "runs of other load sources are not comparable"


def test_a_lost_worker_makes_the_step_invalid_and_is_named() -> None:
    whole = measurement(open_step(10.0, 40.0), [sample(i, i / 10) for i in range(400)])
    parts = split(whole, 4)
    _, healthy = judge(merge(whole.step, 4, gathered(parts), {}), (), gates=1)
    assert "invalid" not in healthy.outcome.value
    del parts[2]
    merged = merge(whole.step, 4, gathered(parts, (LostWorker(2, "load-2-x7", "pod was evicted"),)), {})
    _, verdict = judge(merged, (), gates=1)
    assert verdict.outcome.value == "invalid"
    assert "load worker 2 of 4 (load-2-x7) has no result: pod was evicted" in str(
        [one.text for one in verdict.findings]
    )


def test_clocks_that_are_not_known_well_enough_make_the_step_invalid() -> None:
    whole = measurement(open_step(10.0, 40.0), [sample(i, i / 10) for i in range(400)])
    merged = merge(whole.step, 2, gathered(split(whole, 2), uncertain_s=0.2), {})
    _, verdict = judge(merged, (), gates=1)
    assert verdict.outcome.value == "invalid"
    assert "within 200.0 ms, limit 10 ms" in str([one.text for one in verdict.findings])


@ALL
@given(st.binary(max_size=40000), st.integers(0, 5))
def test_a_result_arrives_whole_whatever_is_between_its_lines(data: bytes, repeats: int) -> None:
    lines = list(messages.encode_result(data))
    assert all(len(line) < 16000 for line in lines), "a container runtime cuts longer lines"
    parts = messages.ResultParts()
    for line in ["a warning", "{}", '{"vllm-stage-load', *lines[:repeats], *lines]:
        message = messages.decode_message(line)
        if message and message[0] == messages.PART:
            parts.add(message[1])
    end = messages.decode_message(lines[-1])
    assert end is not None
    assert parts.join(end[1]) == data


@pytest.mark.parametrize("damage", ["lost", "changed"])
def test_a_result_that_is_not_whole_is_refused(damage: str) -> None:
    decoded = [messages.decode_message(line) for line in messages.encode_result(os.urandom(20000))]
    *found, end = [one for one in decoded if one is not None]
    if damage == "lost":
        del found[1]
    else:
        found[1] = (messages.PART, {"n": 1, "data": found[0][1]["data"]})
    parts = messages.ResultParts()
    for _, content in found:
        parts.add(content)
    with pytest.raises(ValueError, match=r"1 of 4 parts .* the first is 1|digest"):
        parts.join(end[1])


@ALL
@given(st.floats(-100, 100), st.integers(0, 999))
def test_the_offset_is_found_to_within_the_time_of_a_request(offset_s: float, seed: int) -> None:
    dice = random.Random(seed)
    now = [1.79e9 + dice.random()]

    def ask() -> float:
        now[0] += dice.uniform(0.0005, 0.004)
        date = math.floor(now[0] + offset_s)
        now[0] += dice.uniform(0.0005, 0.004)
        return date

    found = clock.measure_offset(ask, now=lambda: now[0], sleep=lambda s: now.__setitem__(0, now[0] + s))
    assert abs(found.offset_s - offset_s) <= found.uncertainty_s + 1e-6
    assert found.uncertainty_s < 0.01


def test_a_clock_that_jumps_is_refused() -> None:
    dates = iter((1000.0, 1030.0))
    now = iter(float(i) for i in range(1000, 1100))
    with pytest.raises(ValueError, match="differs by"):
        clock.measure_offset(lambda: next(dates), now=lambda: next(now), sleep=lambda _s: None)


@dataclass
class FakeWorkers:
    """Workers with prepared output: lines up to being ready, then those after the start; None never ends."""

    before: list[list[str]]
    after: list[list[str] | None]
    rehearsed: list[int] = field(default_factory=list)
    ended: threading.Event = field(default_factory=threading.Event)
    started: threading.Event = field(default_factory=threading.Event)

    @property
    def count(self) -> int:
        return len(self.before)

    def lines(self, worker: int) -> Iterator[str]:
        yield from self.before[worker]
        self.started.wait(20)
        after = self.after[worker]
        if after is None:
            self.ended.wait(20)
        yield from after or ()

    def rehearse(self, worker: int) -> None:
        self.rehearsed.append(worker)

    def announce(self, lead_s: float) -> float:
        self.started.set()
        return STARTED_AT

    def name(self, worker: int) -> str:
        return f"pod-{worker}"

    def describe_end(self, worker: int) -> str:
        return "OOMKilled"


READY = [
    messages.encode_message(messages.STARTED),
    messages.encode_message(messages.REHEARSED),
    messages.encode_message(messages.READY, offset_s=0.0, uncertainty_s=0.0),
]


def result_lines(part: Measurement, folder: Path) -> list[str]:
    path = folder / "samples"
    write_measurement(part, path)
    return list(messages.encode_result(path.read_bytes()))


def gather(fake: FakeWorkers, step: LoadStep, **limits: Any) -> Gathered:
    try:
        return Gathering(fake, step, lead_s=0.0, **limits).gather()
    finally:
        fake.started.set()
        fake.ended.set()


def test_results_are_gathered_from_all(tmp_path: Path) -> None:
    whole = measurement(open_step(10.0, 5.0), [sample(i, i / 10) for i in range(50)])
    parts = split(whole, 3)
    fake = FakeWorkers([READY] * 3, [result_lines(parts[worker], tmp_path) for worker in range(3)])
    found = gather(fake, whole.step)
    assert found.lost == ()
    assert sorted(fake.rehearsed) == [0, 1, 2]
    assert merge(whole.step, 3, found, {}).samples == as_saved(whole).samples


def test_a_worker_that_ends_without_a_result_is_named_with_what_is_known(tmp_path: Path) -> None:
    whole = measurement(open_step(10.0, 5.0), [sample(i, i / 10) for i in range(50)])
    fake = FakeWorkers([READY] * 2, [result_lines(split(whole, 2)[0], tmp_path), ["Killed"]])
    assert gather(fake, whole.step).lost == (LostWorker(1, "pod-1", "it ended without a result (OOMKilled)"),)


def test_a_worker_that_gives_fewer_samples_than_its_share_is_lost(tmp_path: Path) -> None:
    whole = measurement(open_step(10.0, 5.0), [sample(i, i / 10) for i in range(50)])
    cut = replace(split(whole, 2)[1], samples=split(whole, 2)[1].samples[:-1])
    fake = FakeWorkers([READY] * 2, [result_lines(split(whole, 2)[0], tmp_path), result_lines(cut, tmp_path)])
    (lost,) = gather(fake, whole.step).lost
    assert lost.reason.startswith("expected 25 samples, got 24")


def test_no_load_is_sent_unless_every_worker_is_ready() -> None:
    fake = FakeWorkers([READY, ["warming up"]], [None, None])
    found = gather(fake, open_step(10.0, 5.0), ready_timeout_s=2.0)
    assert found.lost == (LostWorker(1, "pod-1", "was not ready within 2 s (OOMKilled)"),)
    assert found.parts == {}


def test_what_a_late_worker_says_is_its_reason() -> None:
    late = [messages.encode_message(messages.ERROR, text="it learned of the common start 2.0 s after it")]
    fake = FakeWorkers([READY, READY], [None, late])
    reason = "it learned of the common start 2.0 s after it (OOMKilled)"
    assert gather(fake, open_step(10.0, 5.0)).lost == (LostWorker(1, "pod-1", reason),)


def test_an_assignment_of_another_version_is_refused() -> None:
    text = assignment_of(open_step(), 2).to_text().replace('"schema_version": 1', '"schema_version": 2')
    with pytest.raises(ConfigError, match="expected 1, got 2"):
        parse_assignment(text)


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    with running_sim("--ttft-ms", "5", "--itl-ms", "1") as engine:
        yield engine


def assignment_for(sim: Sim, step: LoadStep, workers: int) -> Assignment:
    return Assignment(step, requests_of(step), workers, sim.maker.overhead, sim.maker.words, sim.url)


def test_worker_processes_send_one_exact_schedule(sim: Sim, tmp_path: Path) -> None:
    sim.call("/sim/requests", method="DELETE")
    step = LoadStep("s", "sim", CONSTANT, 2.0, 64, 4, request_rate=30, warmup_requests=6, request_timeout_s=20)
    with local_workers(assignment_for(sim, step, 3), tmp_path) as workers:
        found = Gathering(workers, step, lead_s=5.0).gather()
    assert found.lost == ()
    merged = merge(step, 3, found, {})
    assert [one.scheduled_s for one in merged.samples] == pytest.approx(step.schedule_s(), abs=1e-5)
    assert {one.failure for one in merged.samples} == {None}
    truth = sim.truth()
    assert len(truth) == 60 + 6
    assert {one.response_id for one in merged.samples} <= truth.keys()
    received = [truth[one.response_id]["received_at"] for one in merged.samples]
    sent = [one.sent_s or 0.0 for one in merged.samples]
    drift = [at - received[0] - (sent_s - sent[0]) for at, sent_s in zip(received, sent, strict=True)]
    assert max(drift) - min(drift) < 1.0, "the workers do not have one start"
    assert merged.server, "one worker reads the engine"


def test_a_killed_worker_process_is_named(sim: Sim, tmp_path: Path) -> None:
    step = LoadStep("s", "sim", CLOSED, 30.0, 64, 4, concurrency=2, warmup_requests=2, request_timeout_s=20)
    with local_workers(assignment_for(sim, replace(step), 2), tmp_path) as workers:
        killed = workers.processes[1]

        def kill(_progress: object) -> None:
            if killed.poll() is None:
                killed.send_signal(signal.SIGKILL)

        found = Gathering(workers, step, report=kill, lead_s=5.0).gather()
    assert [(one.worker, one.name) for one in found.lost] == [(1, f"process {killed.pid}")]
    assert "exit status -9" in found.lost[0].reason

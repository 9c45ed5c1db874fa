"""The driver against the simulated engine's own record, and against servers that do what they should not."""

from __future__ import annotations

import asyncio
import http.client
import json
import os
import pickle
import re
import socket
import ssl
import subprocess
import sys
from asyncio import StreamReader, StreamWriter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal, read_events
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load import process as driver_process
from pytest_vllm_stage.load.driver import LoadJob, run_step
from pytest_vllm_stage.load.prompts import make_body
from pytest_vllm_stage.measurement.plausibility import find_impossible
from pytest_vllm_stage.measurement.samples import ABANDONED, PAST_CAPACITY, Measurement, Sample
from pytest_vllm_stage.measurement.step import CLOSED, CONSTANT, LoadStep
from tests.unit.sim_engine import Handler, Sim, request_of, running_sim, serving


@pytest.fixture(scope="module")
def sim() -> Iterator[Sim]:
    with running_sim("--ttft-ms", "5", "--itl-ms", "2") as engine:
        yield engine


@pytest.fixture(autouse=True)
def _healthy(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "sim" in request.fixturenames:
        request.getfixturevalue("sim").faults()


def step(rate: float = 50, duration_s: float = 1.0, **changes: Any) -> LoadStep:
    made = LoadStep("s", "sim", CONSTANT, duration_s, 64, 8, request_rate=rate, warmup_requests=3, request_timeout_s=20)
    return replace(made, **changes)


def users(concurrency: int, duration_s: float = 1.0, **changes: Any) -> LoadStep:
    return replace(
        step(), arrivals=CLOSED, request_rate=None, concurrency=concurrency, duration_s=duration_s, **changes
    )


def kinds(measurement: Measurement) -> set[str | None]:
    return {sample.failure.kind if sample.failure else None for sample in measurement.samples}


def test_an_open_loop_measures_what_the_engine_did(sim: Sim) -> None:
    sim.call("/sim/requests", method="DELETE")
    measurement = asyncio.run(run_step(sim.job(step(seed=1))))
    truth = sim.truth()
    assert [sample.index for sample in measurement.samples] == list(range(50))
    assert kinds(measurement) == {None}
    assert len(truth) == 50 + 3, "the warm-up is sent, and is not among the samples"
    for sample in measurement.samples:
        true = truth[sample.response_id]
        assert sample.sent_s is not None
        assert sample.scheduled_s <= sample.sent_s
        assert len(sample.token_times_s) == len(true["token_times"]) == 8
        assert (sample.prompt_tokens, sample.output_tokens, sample.status) == (64, 8, 200)
        true_first = true["token_times"][0] - true["received_at"]
        assert (sample.first_token_s or 0) - sample.scheduled_s >= true_first
        assert sample.scheduled_s == pytest.approx(sample.index / 50)
    assert len({sample.prompt_digest for sample in measurement.samples}) == 50
    assert measurement.server[0].running == 0
    assert (measurement.server[-1].generation_tokens or 0) - (measurement.server[0].generation_tokens or 0) == 50 * 8
    assert measurement.client.wall_s > 0


def test_nothing_is_cancelled_at_the_end_of_a_step(sim: Sim) -> None:
    sim.faults({"fault": "slow_requests", "share": 1.0, "delay_s": 1.5})
    measurement = asyncio.run(run_step(sim.job(step(20, 0.5, seed=2, warmup_requests=0))))
    assert len(measurement.samples) == 10
    assert kinds(measurement) == {None}
    assert all(sample.end_s > 1.5 for sample in measurement.samples)


def test_a_closed_loop_never_has_more_open_than_users(sim: Sim) -> None:
    measurement = asyncio.run(run_step(sim.job(users(3, 0.6, seed=3), requests=500)))
    marks = sorted(mark for sample in measurement.samples for mark in ((sample.sent_s or 0, 1), (sample.end_s, -1)))
    open_requests = [sum(change for _, change in marks[: i + 1]) for i in range(len(marks))]
    assert max(open_requests) == 3
    assert len(measurement.samples) > 6
    assert all(sample.scheduled_s < 0.6 for sample in measurement.samples), "no request starts after the step's end"
    assert "prompts_ran_out" not in measurement.facts


def test_a_closed_loop_that_runs_out_of_prompts_says_so(sim: Sim) -> None:
    measurement = asyncio.run(run_step(sim.job(users(2, 5, seed=4), requests=6)))
    assert len(measurement.samples) == 6
    assert measurement.facts["prompts_ran_out"]


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        ({"fault": "server_error"}, "http_status"),
        ({"fault": "error_in_stream"}, "error_in_stream"),
        ({"fault": "truncated_stream"}, "truncated"),
        ({"fault": "missing_done"}, "truncated"),
        ({"fault": "empty_answers"}, "no_tokens"),
        ({"fault": "malformed_chunk"}, "protocol"),
        ({"fault": "off_by_one_usage", "count": "prompt_tokens", "by": -1}, "prompt_tokens"),
        ({"fault": "off_by_one_usage", "count": "completion_tokens", "by": -1}, "output_tokens"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_a_faulty_answer_is_named_in_every_sample(sim: Sim, fault: dict[str, Any], kind: str) -> None:
    sim.faults(fault)
    measurement = asyncio.run(run_step(sim.job(step(40, 0.5, seed=5, warmup_requests=1))))
    assert len(measurement.samples) == 20
    assert kinds(measurement) == {kind}


def test_a_time_limit_ends_its_own_request_only(sim: Sim) -> None:
    sim.faults({"fault": "slow_requests", "share": 0.5, "delay_s": 30})
    measurement = asyncio.run(run_step(sim.job(step(40, 1, seed=6, warmup_requests=0, request_timeout_s=3.0))))
    assert kinds(measurement) == {None, "timeout"}
    assert len(measurement.samples) == 40


def test_a_refused_connection_is_a_failure_of_each_request() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        plan = step(40, 0.25)
        measurement = asyncio.run(run_step(LoadJob(plan, url, [b"{}"] * 10)))
    assert kinds(measurement) == {"connection"}
    assert len(measurement.samples) == 10
    assert "Connect" in str(measurement.samples[0].failure)


def test_warm_up_reports_its_progress(sim: Sim) -> None:
    plan, said = step(20, 0.5, seed=8, warmup_requests=3), []
    asyncio.run(run_step(sim.job(plan), report=lambda progress: said.append(progress.text(plan))))
    assert said[:3] == [f"warm-up: {done} of 3 answered" for done in (1, 2, 3)]
    assert not [text for text in said[3:] if "warm-up" in text]


def test_a_watcher_ends_the_sending_and_nothing_else(sim: Sim) -> None:
    seen: list[Sample] = []

    def watcher(sample: Sample) -> str | None:
        seen.append(sample)
        return "pass" if len(seen) == 10 else None

    measurement = asyncio.run(run_step(sim.job(step(50, 10, seed=7)), watcher=watcher))
    stop = measurement.early_stop
    assert stop is not None
    assert (stop.reason, stop.requests) == ("pass", len(measurement.samples))
    assert 10 <= len(measurement.samples) < 400
    assert stop.saved_s == pytest.approx(10 - stop.at_s)
    assert kinds(measurement) == {None}


def ten_and(reason: str) -> Callable[[Sample], str | None]:
    """A watcher that is certain after ten samples."""
    seen: list[Sample] = []

    def watcher(sample: Sample) -> str | None:
        seen.append(sample)
        return reason if len(seen) >= 10 else None

    return watcher


def test_requests_in_progress_past_capacity_are_abandoned_and_the_engine_drops_them() -> None:
    """Four at a time of 0.5 s each: 8 requests/s, so that 300 of them would take 37 s; ten are answered in 1.5 s."""
    with running_sim("--ttft-ms", "100", "--itl-ms", "57", "--max-num-seqs", "4") as engine:
        measurement = asyncio.run(run_step(engine.job(step(50, 6, seed=11)), watcher=ten_and(PAST_CAPACITY)))
        connection = http.client.HTTPConnection(engine.url.removeprefix("http://"))
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read().decode()
        connection.close()
    stop = measurement.early_stop
    assert stop is not None
    assert (stop.reason, stop.requests) == (PAST_CAPACITY, len(measurement.samples))
    assert kinds(measurement) == {None, ABANDONED}
    assert all(sample.end_s >= sample.scheduled_s for sample in measurement.samples)
    assert not list(find_impossible(measurement))
    busy = re.findall(r"^vllm:num_requests_(?:running|waiting)\S* (\S+)$", metrics, re.MULTILINE)
    assert list(map(float, busy)) == [0, 0]


def test_requests_are_not_abandoned_where_the_engine_does_not_report_its_load(sim: Sim) -> None:
    """Whether it has dropped them would not be known."""
    nowhere = replace(sim.job(step(50, 2, seed=12)), metrics_url="http://127.0.0.1:9")
    measurement = asyncio.run(run_step(nowhere, watcher=ten_and(PAST_CAPACITY)))
    assert measurement.early_stop is not None
    assert kinds(measurement) == {None}


async def against(serve: Handler, plan: LoadStep, **tls: Any) -> Measurement:
    """Run a step against a handler of connections, of which some never carry a request."""
    bodies = [make_body(plan, f"Text: {i}") for i in range(plan.planned_requests or 0)]
    scheme = "https" if tls.get("server") else "http"
    async with serving(serve, tls.get("server")) as port:
        return await run_step(LoadJob(plan, f"{scheme}://localhost:{port}", bodies, **tls.get("client", {})))


def stream_of(tokens: int) -> bytes:
    events = [json.dumps({"choices": [{"delta": {"content": "a"}}]}) for _ in range(tokens)]
    events.append(json.dumps({"choices": [{"delta": {}, "finish_reason": "length"}]}))
    body = "".join(f"data: {event}\n\n" for event in [*events, "[DONE]"]).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
    return head + b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)


def test_dead_keep_alive_connection_does_not_fail_the_request() -> None:
    """A server that drops idle connections without a word, just when the next request comes."""

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        await request_of(reader)
        writer.write(stream_of(8))
        await reader.read(1)
        writer.close()

    measurement = asyncio.run(against(serve, step(20, 1.0, warmup_requests=0)))
    assert kinds(measurement) == {None}
    assert measurement.client.resent > 0


def test_a_new_connection_that_dies_is_a_failure() -> None:
    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        await request_of(reader)
        writer.close()

    assert kinds(asyncio.run(against(serve, step(20, 0.5)))) == {"connection"}


def test_answer_without_a_stream_is_reported() -> None:
    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        await request_of(reader)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/html\r\ncontent-length: 9\r\n\r\n<p>hi</p>")
        writer.close()

    measurement = asyncio.run(against(serve, step(20, 0.5)))
    assert kinds(measurement) == {"not_a_stream"}
    assert "text/html: <p>hi</p>" in str(measurement.samples[0].failure)


def test_the_key_goes_out_as_a_bearer_token() -> None:
    seen: list[bytes] = []

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        seen.append(await request_of(reader))
        writer.write(stream_of(8))
        writer.close()

    asyncio.run(against(serve, step(20, 0.2), client={"api_key": Secret("letmein")}))
    posts = [request for request in seen if request.startswith(b"POST")]
    assert len(posts) == 4
    assert all(b"authorization: Bearer letmein\r\n" in request for request in posts)


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    key, pem = tmp_path / "key.pem", tmp_path / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", "/CN=localhost"]
    extension = ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(pem)]
    subprocess.run([*command, *extension], check=True, capture_output=True)
    return pem, key


@pytest.mark.parametrize("trusted", [True, False])
def test_tls_is_verified(certificate: tuple[Path, Path], trusted: bool) -> None:
    pem, key = certificate
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(pem, key)

    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        await request_of(reader)
        writer.write(stream_of(8))
        await writer.drain()
        writer.close()

    client = {"ca_file": str(pem)} if trusted else {}
    measurement = asyncio.run(against(serve, step(10, 0.5, warmup_requests=0), server=context, client=client))
    if trusted:
        assert kinds(measurement) == {None}
    else:
        assert kinds(measurement) == {"connection"}
        assert "CERTIFICATE_VERIFY_FAILED" in str(measurement.samples[0].failure)


def test_the_drivers_own_process_gives_the_same_and_is_recorded(sim: Sim, tmp_path: Path) -> None:
    said: list[str] = []
    journal = Journal(tmp_path / "journal", said.append)
    measurement = driver_process.measure(sim.job(step(50, 1, seed=8), facts={"gpu": "none"}), journal)
    assert kinds(measurement) == {None}
    assert len(measurement.samples) == 50
    assert measurement.facts == {"gpu": "none"}
    assert measurement.client.priority in ("realtime", "nice -15", "normal")
    (phase,) = [event for event in read_events(journal.path or tmp_path) if event["kind"] == "phase"]
    assert (phase["name"], phase["requests"], phase["failed"], phase["outcome"]) == ("load s-rate-50", 50, 0, "done")


def test_driver_process_can_be_stopped(sim: Sim) -> None:
    seen: list[int] = []

    def watcher(sample: Sample) -> str | None:
        seen.append(sample.index)
        return "fail" if len(seen) == 5 else None

    measurement = driver_process.measure(sim.job(step(50, 20, seed=9)), Journal(), watcher=watcher)
    assert measurement.early_stop is not None
    assert measurement.early_stop.reason == "fail"
    assert len(measurement.samples) < 500


def test_a_driver_that_dies_says_what_it_wrote(sim: Sim, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    dying = tmp_path / "python"
    dying.write_text("#!/bin/sh\necho out of luck >&2\nexit 3\n")
    dying.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(dying))
    with pytest.raises(EnvironmentUnusable, match=r"without a result \(exit status 3\)\n  it wrote: out of luck"):
        driver_process.measure(sim.job(step(50, 1, seed=10)), Journal())


def test_the_driver_ends_with_its_parent(sim: Sim) -> None:
    """A parent that is killed cannot clean up; the driver notices that its pipe is closed."""
    code = (
        "import os, sys, pickle\n"
        "from pytest_vllm_stage.core.journal import Journal\n"
        "from pytest_vllm_stage.load import process\n"
        "original = process._follow\n"
        "def follow(child, report, watcher):\n"
        "    print(child.pid, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
        "process._follow = follow\n"
        "process.measure(pickle.load(sys.stdin.buffer), Journal())\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as parent:
        out, _ = parent.communicate(pickle.dumps(sim.job(step(10, 60, seed=11))))
    child = int(out)
    for _ in range(1200):
        if not os.path.exists(f"/proc/{child}"):
            return
        asyncio.run(asyncio.sleep(0.05))
    os.kill(child, 9)
    pytest.fail("the driver outlived its parent")

"""GuideLLM's report as a measurement: real reports, cut down to a few requests, and what must be refused."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.load.guidellm.failures import failure_of, never_sent, status_of
from pytest_vllm_stage.load.guidellm.reading import read_report
from pytest_vllm_stage.measurement.metrics import summarise
from pytest_vllm_stage.measurement.samples import FAILURES, Sample
from pytest_vllm_stage.measurement.step import CLOSED, CONSTANT, LoadStep
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.saturation import saturation
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import open_step, queued

DATA = Path(__file__).parents[1] / "data"
#: 20 requests/s against an engine with 20 ms to the first token, 5 ms between two, and scripted faults.
OPEN, OPEN_STEP = DATA / "guidellm-0.8.1-constant.json", LoadStep("s", "sim", CONSTANT, 3, 64, 16, request_rate=20.0)
#: 2 users against the same engine.
USERS, USERS_STEP = DATA / "guidellm-0.8.1-concurrent.json", LoadStep("s", "sim", CLOSED, 3, 64, 16, concurrency=2)

Change = Callable[[dict[str, Any]], Any]


def changed(tmp_path: Path, change: Change, source: Path = OPEN) -> Path:
    """A copy of a report with one thing changed in its benchmark."""
    report = json.loads(source.read_text())
    change(report)
    path = tmp_path / "report.json"
    path.write_text(json.dumps(report))
    return path


def benchmark(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = report["benchmarks"][0]
    return found


def rows(path: Path) -> list[dict[str, Any]]:
    requests = benchmark(json.loads(path.read_text()))["requests"]
    found = [row for status in ("successful", "errored", "incomplete") for row in requests[status]]
    return sorted(found, key=lambda row: float(row["info"]["timings"]["targeted_start"]))


def test_an_open_loop_counts_from_its_schedule() -> None:
    measurement = read_report(OPEN, OPEN_STEP, facts={"gpu": "none"})
    expected = rows(OPEN)
    assert len(measurement.samples) == len(expected) == 6
    zero = expected[0]["info"]["timings"]["targeted_start"]
    assert measurement.started_at == zero
    for index, (sample, row) in enumerate(zip(measurement.samples, expected, strict=True)):
        times = row["info"]["timings"]
        assert sample.index == index
        assert sample.scheduled_s == pytest.approx(times["targeted_start"] - zero)
        assert sample.sent_s == pytest.approx(times["request_start"] - zero)
        assert sample.lag_s == pytest.approx(row["request_dispatch_delay"])
        assert sample.end_s == pytest.approx((times["request_end"] or times["resolve_end"]) - zero)
    whole = [sample for sample in measurement.samples if sample.failure is None]
    reported = [row for row in expected if row["info"]["status"] == "completed"]
    for sample, row in zip(whole, reported, strict=True):
        ttft_ms = 1000 * ((sample.first_token_s or 0) - sample.scheduled_s)
        assert ttft_ms == pytest.approx(row["time_to_first_token_ms"] + 1000 * row["request_dispatch_delay"])
        assert sample.end_s - sample.scheduled_s == pytest.approx(row["request_scheduled_latency"])
        assert (sample.prompt_tokens, sample.output_tokens, sample.cached_tokens) == (64, 16, row["cached_tokens"])
        assert sample.response_id == row["response_id"]
    assert len({sample.prompt_digest for sample in whole}) == len(whole) == 3
    assert measurement.client.driver == "guidellm 0.8.1"
    assert measurement.facts == {"gpu": "none", "driver": "guidellm 0.8.1"}


def test_failed_requests_are_misses_and_are_named() -> None:
    samples = read_report(OPEN, OPEN_STEP).samples
    failed = {sample.failure.kind: sample for sample in samples if sample.failure}
    assert set(failed) == {"http_status", "truncated", "error_in_stream"}
    assert failed["http_status"].status == 503
    assert failed["http_status"].token_times_s == ()
    assert len(failed["truncated"].token_times_s) == 2
    metrics = summarise(samples, OPEN_STEP)
    assert metrics.error_rate == pytest.approx(0.5)
    assert metrics.latencies["ttft"].percentiles[99].value == math.inf


def test_without_its_late_first_request_a_report_can_be_judged() -> None:
    objectives = [Objective("error_rate", 0.01)]
    assert judge(read_report(OPEN, OPEN_STEP), objectives)[1].outcome is Outcome.INVALID
    assert judge(read_report(OPEN, OPEN_STEP, lead_in=1), objectives)[1].outcome is Outcome.FAIL


def test_what_guidellm_does_not_know_stays_unknown() -> None:
    measurement = read_report(OPEN, OPEN_STEP, lead_in=1)
    metrics, verdict = judge(measurement, [Objective("itl_p50_ms", 1000.0)])
    assert "itl" not in metrics.latencies
    assert (metrics.stalls, metrics.longest_stall_s, metrics.tokens_per_event) == (None, None, None)
    assert verdict.outcome is Outcome.INCONCLUSIVE
    whole = [sample for sample in measurement.samples if sample.failure is None]
    assert {sample.status for sample in whole} == {None}
    tpots = [(s.token_times_s[1] - s.token_times_s[0]) / 15 for s in whole]
    assert summarise(whole, OPEN_STEP).flat()["tpot_max_ms"] == pytest.approx(max(tpots) * 1000)
    assert measurement.client.loop_lag_p99_ms is None


def test_a_closed_loop_counts_from_when_guidellm_took_a_request_up() -> None:
    measurement = read_report(USERS, USERS_STEP, lead_in=2)
    taken = sorted(row["info"]["timings"]["resolve_start"] for row in rows(USERS))[2:]
    assert [s.scheduled_s for s in measurement.samples] == pytest.approx([at - taken[0] for at in taken])
    assert all(sample.failure is None for sample in measurement.samples)
    ttfts = [(sample.first_token_s or 0) - sample.scheduled_s for sample in measurement.samples]
    assert all(0.020 < ttft < 0.060 for ttft in ttfts), "its own think time between two requests is not latency"


def test_an_answer_that_took_too_long_is_a_miss() -> None:
    step = LoadStep("s", "sim", CONSTANT, 3, 64, 16, request_rate=20.0, request_timeout_s=0.05)
    kinds = [sample.failure.kind for sample in read_report(OPEN, step).samples if sample.failure]
    assert kinds.count("timeout") == 3


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        (("input_metrics", "total_tokens"), 63, "prompt_tokens"),
        (("output_metrics", "total_tokens"), 15, "output_tokens"),
        (("info", "timings", "token_iterations"), 0, "no_tokens"),
    ],
)
def test_an_answer_of_another_length_is_a_miss(tmp_path: Path, field: tuple[str, ...], value: int, kind: str) -> None:
    def change(report: dict[str, Any]) -> None:
        for row in benchmark(report)["requests"]["successful"]:
            place = row
            for name in field[:-1]:
                place = place[name]
            place[field[-1]] = value

    samples = read_report(changed(tmp_path, change), OPEN_STEP).samples
    assert [sample.failure.kind for sample in samples if sample.failure].count(kind) == 3


def test_counts_that_the_server_did_not_give_are_unknown(tmp_path: Path) -> None:
    def change(report: dict[str, Any]) -> None:
        for row in benchmark(report)["requests"]["successful"]:
            row["input_metrics"]["total_tokens"] = row["output_metrics"]["total_tokens"] = 0

    whole = [sample for sample in read_report(changed(tmp_path, change), OPEN_STEP).samples if sample.failure is None]
    assert [(sample.prompt_tokens, sample.output_tokens) for sample in whole] == [(None, None)] * 3


def test_cut_off_requests_are_misses_and_queued_ones_are_not_samples(tmp_path: Path) -> None:
    def change(report: dict[str, Any]) -> None:
        requests = benchmark(report)["requests"]
        running, later = requests["successful"].pop(), requests["successful"].pop()
        requests["incomplete"] = [running, later]
        totals(report).update(successful=1, incomplete=2)
        for row in requests["incomplete"]:
            row["info"]["error"] = "Request was cancelled"
            row["info"]["timings"]["request_end"] = None
        later["info"]["timings"]["resolve_start"] = later["info"]["timings"]["request_start"] = None
        later["info"]["timings"]["targeted_start"] = later["info"]["timings"]["resolve_end"] + 1

    samples = read_report(changed(tmp_path, change), OPEN_STEP).samples
    assert len(samples) == 5
    assert [s.failure.text[:21] for s in samples if s.failure and s.failure.kind == "timeout"] == [
        "Request was cancelled"
    ]


def totals(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = benchmark(report)["metrics"]["request_totals"]
    return found


def without_requests(report: dict[str, Any]) -> None:
    benchmark(report)["requests"] = {"successful": [], "errored": None, "incomplete": [], "total": None}
    totals(report).update(dict.fromkeys(totals(report), 0))


def timings(report: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = benchmark(report)["requests"]["successful"][0]["info"]["timings"]
    return found


def before_sending(report: dict[str, Any]) -> None:
    timings(report)["first_token_iteration"] = timings(report)["targeted_start"] - 0.15


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda report: report.pop("metadata"), r"has no 'metadata'"),
        (lambda report: report["metadata"].update(version=1), r"metadata\.version is 1; this version reads 2"),
        (lambda report: report.update(benchmarks=[]), r"has 0 benchmarks; number 0 was asked for"),
        (lambda report: report.update(benchmarks={"a": 1}), r"benchmarks: expected a list, got"),
        (without_requests, r"benchmarks\[0\] is vacuous: no request was sent"),
        (
            lambda report: benchmark(report)["metrics"].update(request_totals=None),
            r"metrics\.request_totals: expected an object, got null",
        ),
        (lambda report: totals(report).update(successful=4), r"successful is 4, and 3 request rows are there"),
        (lambda report: timings(report).update(first_token_iteration=0.0), r"first_token_iteration is 0\.0: seconds"),
        (lambda report: timings(report).update(request_end=4e9), r"request_end is 4000000000\.0: .* not in the future"),
        (lambda report: timings(report).update(last_token_iteration=1.7e9), r"last_token_iteration is .*, before the"),
        (before_sending, r"first_token_iteration token_times_s begin at .* and the request was sent at"),
        (lambda report: totals(report).update(total=60), r"total is 60, and 6 request rows are there"),
        (
            lambda report: timings(report).pop("targeted_start"),
            r"successful\[0\]\.info\.timings has no 'targeted_start'",
        ),
        (lambda report: timings(report).update(resolve_start="soon"), r"resolve_start: expected a number, got 'soon'"),
        (lambda report: timings(report).update(token_iterations=-1), r": expected a whole number from 0, got -1"),
        (
            lambda report: benchmark(report)["config"]["strategy"].update(rate=5.0),
            r"is constant arrivals of 5 .* plans",
        ),
        (lambda report: benchmark(report)["config"]["strategy"].update(type_="throughput"), r"strategy 'throughput'"),
    ],
)
def test_another_file_gets_one_clear_error(tmp_path: Path, change: Change, says: str) -> None:
    path = changed(tmp_path, change)
    with pytest.raises(ConfigError, match=says) as caught:
        read_report(path, OPEN_STEP)
    assert str(path) in caught.value.message
    assert "\n" not in caught.value.message


@pytest.mark.parametrize("content", [b"", b"not json", b"[1]", b'"text"', b"\x1f\x8b\x08"])
def test_file_without_a_json_object_gets_one_clear_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"report\.json: (not readable JSON|must be a JSON object)"):
        read_report(path, OPEN_STEP)


def test_a_missing_file_gets_one_clear_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not readable JSON"):
        read_report(tmp_path / "absent.json", OPEN_STEP)


@pytest.mark.parametrize(
    ("error", "tokens", "kind"),
    [
        (
            "HTTPStatusError(\"Server error '503 Service Unavailable' for url 'x'\\nFor more information check: y\")",
            0,
            "http_status",
        ),
        ("ValueError('Streaming response returned an error: gone')", 3, "error_in_stream"),
        ("ValueError('[UNUSABLE_BACKEND_RESPONSE] backend resolved with empty response payload')", 0, "no_tokens"),
        ("ReadTimeout('')", 0, "timeout"),
        ("ConnectError('All connection attempts failed')", 0, "connection"),
        ("ReadError('')", 0, "connection"),
        ("ReadError('')", 4, "truncated"),
        ("RemoteProtocolError('Server disconnected without sending a response.')", 0, "connection"),
        ("RemoteProtocolError('peer closed connection without sending complete message body')", 2, "truncated"),
        ("Request was cancelled", 0, "timeout"),
        ("JSONDecodeError('Expecting value: line 1 column 1 (char 0)')", 1, "protocol"),
        ("http_status: 503: busy", 0, "http_status"),
    ],
)
def test_every_error_has_a_kind(error: str, tokens: int, kind: str) -> None:
    failure = failure_of(error, tokens)
    assert failure.kind == kind
    assert failure.kind in FAILURES
    assert "For more" not in failure.text


def test_status_and_never_sent_are_read_from_the_error() -> None:
    assert status_of("HTTPStatusError(\"Client error '429 Too Many Requests' for url 'http://x:8080/v1'\")") == 429
    assert status_of("ReadError('200 bytes')") is None
    assert never_sent("ConnectError('All connection attempts failed')")
    assert not never_sent("ReadError('')")


def test_a_request_without_a_connection_was_not_sent(tmp_path: Path) -> None:
    def change(report: dict[str, Any]) -> None:
        for row in benchmark(report)["requests"]["errored"]:
            row["info"]["error"] = "ConnectError('All connection attempts failed')"

    failed: list[Sample] = [s for s in read_report(changed(tmp_path, change), OPEN_STEP).samples if s.failure]
    assert [sample.sent_s for sample in failed] == [None] * 3


def test_a_server_past_capacity_has_the_same_capacity_by_either_driver() -> None:
    ours = queued(open_step(2.0, 60.0), 4, lambda _dice: 5.0)
    ends = [
        replace(one, token_times_s=(one.token_times_s[0], one.token_times_s[-1]), every_token_timed=False)
        for one in ours.samples
    ]
    capacity = saturation(ours).capacity_requests_per_s
    assert capacity == pytest.approx(4 / 5, rel=0.2)
    assert saturation(replace(ours, samples=tuple(ends))).capacity_requests_per_s == pytest.approx(capacity, rel=0.2)

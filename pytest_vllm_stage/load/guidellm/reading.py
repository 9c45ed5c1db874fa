"""GuideLLM's report as a measurement: the request rows, never GuideLLM's own percentiles.

Its own latencies begin when a request's header goes out, and its percentiles leave failed requests out. Here a latency
of an open loop counts from ``targeted_start``, the schedule, and a failed request is a miss. A closed loop has no
schedule; its targets are the ends of earlier answers, with GuideLLM's own think time in between, so that there a
request counts from ``resolve_start``, when GuideLLM took it up. Times are those of the wall clock.

A row has the times of the first and the last token only: the gaps between tokens, and stalls, stay unknown.
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pytest_vllm_stage.load.guidellm.document import Node, read_document
from pytest_vllm_stage.load.guidellm.failures import failure_of, never_sent, status_of
from pytest_vllm_stage.measurement.plausibility import CLOCK_SKEW_S, EARLIEST, find_impossible
from pytest_vllm_stage.measurement.samples import ClientFacts, Failure, Measurement, Sample
from pytest_vllm_stage.measurement.step import CONSTANT, POISSON, LoadStep

#: Of the report's schema; GuideLLM 0.8 writes it.
VERSION = 2
#: In reports that `write_report` wrote: when a request was sent, next to GuideLLM's own times.
SENT = "vllm_stage_sent"
#: What is read of a request's times, besides `SENT`.
_TIMES = (
    "targeted_start",
    "resolve_start",
    "request_start",
    "first_token_iteration",
    "last_token_iteration",
    "request_end",
    "resolve_end",
)
#: A sample's field to the place in a request that it was read from.
_FIELDS = {
    "scheduled_s": ("info", "timings", "targeted_start"),
    "sent_s": ("info", "timings", "request_start"),
    "token_times_s": ("info", "timings", "first_token_iteration"),
    "end_s": ("info", "timings", "request_end"),
    "prompt_tokens": ("input_metrics", "total_tokens"),
    "cached_tokens": ("input_metrics", "cached_tokens"),
    "output_tokens": ("output_metrics", "total_tokens"),
}
_STATUSES = ("successful", "errored", "incomplete")


@dataclass(frozen=True)
class _ReportRow:
    """One request as reported; times are seconds since the epoch.

    Attributes:
        node: Its place in the document.
        status: One of `_STATUSES`.
        scheduled: When it should have gone out.
        taken_up: When GuideLLM began with it; None if it never did.
        sent: When its header went out; None if it never did.
        end: When the answer or the failure was complete.
    """

    node: Node
    status: str
    scheduled: float
    taken_up: float | None
    sent: float | None
    end: float

    @property
    def is_a_sample(self) -> bool:
        """Whether it was sent, or should have been before GuideLLM stopped; requests queued for later do not count."""
        return self.taken_up is not None or self.scheduled < self.end

    @property
    def error(self) -> str:
        """GuideLLM's error text; empty for a whole answer."""
        return "" if self.status == "successful" else self.node.child("info", "error").text() or self.status


def read_report(
    path: Path,
    step: LoadStep,
    *,
    benchmark: int = 0,
    lead_in: int = 0,
    facts: Mapping[str, Any] | None = None,
    refuse_impossible: bool = True,
) -> Measurement:
    """Read one benchmark of a report as a measurement.

    Args:
        path: The JSON report.
        step: What was planned; the benchmark's strategy must agree with it.
        benchmark: Which one of the report's benchmarks.
        lead_in: Requests at the start that do not count as samples.
        facts: Added to the measurement, with GuideLLM's version.
        refuse_impossible: Refuse impossible values; otherwise the judgement makes the step invalid.

    Raises:
        ConfigError: the file is not a GuideLLM report of this version, was made by another plan, keeps only some of its
            requests, has none, or contains impossible values; names the place.
    """
    report = read_document(path)
    driver = _driver(report)
    found = list(report.child("benchmarks").items())
    if benchmark >= len(found):
        report.refuse(f"has {len(found)} benchmarks; number {benchmark} was asked for")
    _check_strategy(found[benchmark].child("config", "strategy"), step)
    rows = _rows(found[benchmark], step)[lead_in:]
    if not rows:
        found[benchmark].refuse("is vacuous: no request was sent")
    zero = rows[0].scheduled
    samples = tuple(_sample(row, step, index, zero) for index, row in enumerate(rows))
    found_facts = {**(facts or {}), "driver": driver}
    measurement = Measurement(step, zero, samples, ClientFacts(driver), facts=found_facts)
    if refuse_impossible:
        _check_possible(measurement, found[benchmark], rows)
    return measurement


def _check_possible(measurement: Measurement, benchmark: Node, rows: Sequence[_ReportRow]) -> None:
    """Refuse impossible values, naming the request and the field of the report."""
    latest = time.time() + CLOCK_SKEW_S
    for row in rows:
        times = row.node.child("info", "timings")
        for name in _TIMES:
            at = times.child(name).number_or_none()
            if at is not None and not EARLIEST <= at <= latest:
                times.child(name).refuse(f"is {at!r}: seconds since the epoch, after 2020 and not in the future")
        first, last = (times.child(f"{which}_token_iteration").number_or_none() for which in ("first", "last"))
        if first is not None and last is not None and last < first:
            times.child("last_token_iteration").refuse(f"is {last!r}, before the first token's {first!r}")
    for found in find_impossible(measurement):
        node = benchmark if found.position is None else rows[found.position].node
        node.child(*_FIELDS.get(found.field, ())).refuse(f"{found.field} {found.problem}")


def _driver(report: Node) -> str:
    version = report.child("metadata", "version")
    if version.value != VERSION:
        version.refuse(f"is {version.value!r}; this version reads {VERSION}, which GuideLLM 0.8 writes")
    return f"guidellm {report.child('metadata', 'guidellm_version').text()}"


def _check_strategy(strategy: Node, step: LoadStep) -> None:
    """A report of another load would be judged by the wrong objectives."""
    kind = strategy.child("type_").text()
    if kind in (CONSTANT, POISSON):
        ran = f"{kind} arrivals of {strategy.child('rate').number():g} requests/s"
    elif kind == "concurrent":
        ran = f"a closed loop of {strategy.child('streams').number():g}"
    else:
        ran = "a closed loop of 1" if kind == "synchronous" else f"strategy {kind!r}"
    closed = f"a closed loop of {step.concurrency}"
    planned = f"{step.arrivals} arrivals of {step.request_rate:g} requests/s" if step.open_loop else closed
    if ran != planned:
        strategy.refuse(f"is {ran}; step {step.id} plans {planned}")


def _rows(benchmark: Node, step: LoadStep) -> list[_ReportRow]:
    """The rows of all requests that were sent or should have been, in the schedule's order."""
    requests = benchmark.child("requests")
    rows = [_row(node, status, step) for status in _STATUSES for node in requests.child(status).items()]
    totals = benchmark.child("metrics", "request_totals")
    if not isinstance(totals.value, dict):
        totals.expect("an object")
    for name in (*_STATUSES, "total"):
        there = sum(name in (row.status, "total") for row in rows)
        if name in totals.value and (totals.child(name).count_or_none() or 0) != there:
            totals.child(name).refuse(f"is {totals.child(name).value!r}, and {there} request rows are there")
    if "total" not in totals.value:
        totals.refuse("has no 'total'")
    return sorted((row for row in rows if row.is_a_sample), key=lambda row: (row.scheduled, row.taken_up or row.end))


def _row(node: Node, status: str, step: LoadStep) -> _ReportRow:
    times = node.child("info", "timings")
    taken_up = times.child("resolve_start").number_or_none()
    sent = times.child(SENT if SENT in times.value else "request_start").number_or_none()
    end = times.child("request_end").number_or_none()
    end = times.child("resolve_end").number() if end is None else end
    target = times.child("targeted_start").number() if step.open_loop else taken_up
    scheduled = end if target is None else target
    row = _ReportRow(node, status, scheduled, taken_up, sent, max(end, scheduled))
    return replace(row, sent=None) if never_sent(row.error) else row


def _sample(row: _ReportRow, step: LoadStep, index: int, zero: float) -> Sample:
    tokens = _token_times(row.node.child("info", "timings"))
    asked, output = row.node.child("request_args").text(), row.node.child("output").text()
    return Sample(
        step=step.id,
        index=index,
        scheduled_s=row.scheduled - zero,
        sent_s=None if row.sent is None else row.sent - zero,
        token_times_s=tuple(at - zero for at in tokens),
        end_s=row.end - zero,
        expected_prompt_tokens=step.prompt_tokens,
        expected_output_tokens=step.output_tokens,
        # GuideLLM writes 0 where the usage leaves a count out
        prompt_tokens=row.node.child("input_metrics", "total_tokens").count_or_none() or None,
        output_tokens=row.node.child("output_metrics", "total_tokens").count_or_none() or None,
        cached_tokens=row.node.child("input_metrics", "cached_tokens").count_or_none(),
        status=status_of(row.error),
        failure=_failure(row, step),
        response_id=row.node.child("response_id").text(),
        prompt_digest=_digest(asked),
        output_digest=_digest(output),
        every_token_timed=False,
    )


def _token_times(times: Node) -> Sequence[float]:
    """The first and the last token's time, or one if there was one, or none."""
    first, last = (times.child(f"{which}_token_iteration").number_or_none() for which in ("first", "last"))
    if first is None:
        return ()
    return (first,) if last is None or _events(times) < 2 else (first, last)


def _events(times: Node) -> int:
    return times.child("token_iterations").count_or_none() or 0


def _failure(row: _ReportRow, step: LoadStep) -> Failure | None:
    """What was wrong: GuideLLM's own error, else what it takes as an answer and the plan does not."""
    events = _events(row.node.child("info", "timings"))
    if row.error:
        return failure_of(row.error, events)
    if not events:
        return Failure("no_tokens", "GuideLLM saw no event with text")
    took_s = row.end - row.scheduled
    if took_s > step.request_timeout_s:
        return Failure("timeout", f"the answer was whole after {took_s:.1f} s, at most {step.request_timeout_s:g} s")
    prompt = row.node.child("input_metrics", "total_tokens").count_or_none() or step.prompt_tokens
    if prompt != step.prompt_tokens:
        return Failure("prompt_tokens", f"{prompt} instead of {step.prompt_tokens}")
    output = row.node.child("output_metrics", "total_tokens").count_or_none() or events
    if output != step.output_tokens:
        return Failure("output_tokens", f"{output} instead of {step.output_tokens}")
    return None


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).hexdigest() if text else ""

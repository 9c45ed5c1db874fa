"""The window around a disruption, and its verdict: pure functions over samples and the disruption's marks.

A request is *bad* if it failed, or if its first token came later than the TTFT objective. The stage has *recovered* at
the first time after which every request is good, up to the settle period after it and after the disruption's end. The
*window* holds the requests that overlap the time from the disruption's start to the end of that settle period; a bad
request outside it is not explained by the disruption.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from pytest_vllm_stage.measurement.metrics import latency_s
from pytest_vllm_stage.measurement.samples import Measurement, Sample
from pytest_vllm_stage.measurement.statistics import nearest_rank
from pytest_vllm_stage.slo.decision import Outcome

#: Under the run directory: samples and verdict of each disruption.
FOLDER = "resilience"
#: Fewer requests in the window than this say nothing about its error rate.
LEAST_REQUESTS = 10
#: A driver whose event loop is later than this (P99) notices answers too late to blame the stage.
LOOP_LAG_LIMIT_MS = 100.0
#: With less of the planned requests than this, the driver did not send the promised rate.
SENT_SHARE = 0.99
#: Relative to the objective: sums of seconds are not exact.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Marks:
    """When a disruption began and when it was over, in seconds of the step's time.

    It is over when what it changes is in its new state: the new revision serves alone, the node takes pods again.
    """

    began_s: float
    ended_s: float


@dataclass(frozen=True)
class Promise:
    """What is promised of the window; None where nothing is.

    Attributes:
        recovery_s: The longest recovery.
        failed_requests_max: The most failed requests.
        window_error_rate: The highest share of failed requests.
        ttft_p99_ms: The highest P99 of the TTFT of answered requests; a request over it is bad.
        settle_s: How long every request must be good after a recovery.
    """

    recovery_s: float | None = None
    failed_requests_max: float | None = None
    window_error_rate: float | None = None
    ttft_p99_ms: float | None = None
    settle_s: float = 5.0

    def is_bad(self, sample: Sample) -> bool:
        """Whether the request failed, or was too slow."""
        ttft_s = latency_s("ttft", sample)
        slow = self.ttft_p99_ms is not None and ttft_s is not None and ttft_s * 1000 > self.ttft_p99_ms
        return sample.failure is not None or slow


@dataclass(frozen=True)
class WindowNumbers:
    """What the samples show of the window.

    Attributes:
        requests: Requests in the window.
        failed: Of these, failed.
        kinds: Failure kind to number.
        first_bad_s: Scheduled time of the first bad request in the window, from the disruption's start.
        last_bad_s: The same of the last.
        recovery_s: From the disruption's start to the recovery; None where none was seen.
        error_rate: Share of failed requests.
        ttft_p99_ms: Of answered requests; None without one.
        before: Requests that ended before the disruption.
        bad_before: Of these, bad.
        bad_after: Bad requests after the window.
    """

    requests: int
    failed: int
    kinds: Mapping[str, int]
    first_bad_s: float | None
    last_bad_s: float | None
    recovery_s: float | None
    error_rate: float
    ttft_p99_ms: float | None
    before: int
    bad_before: int
    bad_after: int


@dataclass(frozen=True)
class WindowVerdict:
    """The verdict on a disruption.

    Attributes:
        outcome: Pass, fail or inconclusive.
        why: What decided it, in a sentence.
        numbers: What it was decided from.
        broken: A line per broken promise.
    """

    outcome: Outcome
    why: str
    numbers: WindowNumbers
    broken: Sequence[str] = field(default=())


def find_recovery(samples: Sequence[Sample], marks: Marks, promise: Promise) -> float | None:
    """When the stage had recovered, in the step's time; None where no settle period was observed whole.

    Args:
        samples: Complete ones, without a gap in the schedule, in any order.
        marks: When the disruption began and ended.
        promise: Decides which requests are bad, and how long the settle period is.
    """
    ordered = sorted(samples, key=lambda sample: sample.scheduled_s)
    after = [sample for sample in ordered if sample.end_s >= marks.began_s]
    if not after:
        return None
    bad = [sample.scheduled_s for sample in after if promise.is_bad(sample)]
    candidate = marks.began_s
    for at_s in [*bad, None]:
        settled_s = max(candidate, marks.ended_s) + promise.settle_s
        if at_s is None or at_s > settled_s:
            return candidate if after[-1].scheduled_s >= settled_s else None
        following = next((one.scheduled_s for one in after if one.scheduled_s > at_s), None)
        if following is None:
            return None
        candidate = max(candidate, following)
    return None


def measure_window(samples: Sequence[Sample], marks: Marks, promise: Promise) -> WindowNumbers:
    """Derive the window's numbers from the samples."""
    recovered_s = find_recovery(samples, marks, promise)
    end_s = float("inf") if recovered_s is None else max(recovered_s, marks.ended_s) + promise.settle_s
    before = [sample for sample in samples if sample.end_s < marks.began_s]
    inside = [one for one in samples if one.end_s >= marks.began_s and one.scheduled_s <= end_s]
    bad = sorted(sample.scheduled_s - marks.began_s for sample in inside if promise.is_bad(sample))
    failures = [sample.failure for sample in inside if sample.failure is not None]
    ttfts_s = sorted(ttft_s for one in inside if one.failure is None and (ttft_s := latency_s("ttft", one)) is not None)
    return WindowNumbers(
        requests=len(inside),
        failed=len(failures),
        kinds=dict(sorted(Counter(failure.kind for failure in failures).items())),
        first_bad_s=bad[0] if bad else None,
        last_bad_s=bad[-1] if bad else None,
        recovery_s=None if recovered_s is None else recovered_s - marks.began_s,
        error_rate=len(failures) / len(inside) if inside else 0.0,
        ttft_p99_ms=nearest_rank(ttfts_s, 99) * 1000 if ttfts_s else None,
        before=len(before),
        bad_before=sum(promise.is_bad(sample) for sample in before),
        bad_after=sum(promise.is_bad(one) for one in samples if one.scheduled_s > end_s),
    )


def judge_window(measurement: Measurement, marks: Marks, promise: Promise) -> WindowVerdict:
    """Judge the window around a disruption.

    Nothing can be said where the driver was late; and nothing good where the traffic was too thin, or ended before the
    stage had recovered and before it had to.
    """
    samples = measurement.samples
    numbers = measure_window(samples, marks, promise)
    late = _driver_problem(measurement)
    if late:
        return WindowVerdict(Outcome.INCONCLUSIVE, late, numbers)
    observed_s = max((sample.scheduled_s for sample in samples), default=0.0) - marks.began_s
    broken = tuple(_broken(numbers, promise, observed_s))
    if broken:
        return WindowVerdict(Outcome.FAIL, "; ".join(broken), numbers, broken)
    if numbers.before == 0 or numbers.requests < LEAST_REQUESTS:
        why = (
            f"the traffic was too thin: {numbers.before} requests before the disruption and {numbers.requests} in its "
            f"window, expected at least 1 and {LEAST_REQUESTS}"
        )
        return WindowVerdict(Outcome.INCONCLUSIVE, why, numbers)
    if numbers.recovery_s is None:
        quiet = f"{promise.settle_s:g} s without a bad request"
        why = f"the traffic ended {observed_s:.1f} s after the start, before {quiet} were seen"
        return WindowVerdict(Outcome.INCONCLUSIVE, why, numbers)
    return WindowVerdict(Outcome.PASS, _describe(numbers), numbers)


def _driver_problem(measurement: Measurement) -> str:
    """Why the driver was behind; empty where it was not."""
    lag_ms = measurement.client.loop_lag_p99_ms
    if lag_ms is not None and lag_ms > LOOP_LAG_LIMIT_MS:
        return f"the driver was overloaded: its event loop was {lag_ms:.0f} ms late (P99), limit {LOOP_LAG_LIMIT_MS:g}"
    step, stop = measurement.step, measurement.early_stop
    until_s = min(step.duration_s, stop.at_s) if stop else step.duration_s
    planned = (step.request_rate or 0.0) * until_s
    if len(measurement.samples) < SENT_SHARE * planned - 1:
        return f"the driver sent {len(measurement.samples)} of {planned:.0f} requests: it fell behind its schedule"
    return ""


def _broken(numbers: WindowNumbers, promise: Promise, observed_s: float) -> Iterator[str]:
    if numbers.bad_before:
        yield f"{numbers.bad_before} of {numbers.before} requests failed or were slow before the disruption"
    failed, most = numbers.failed, promise.failed_requests_max
    if most is not None and failed > most:
        yield f"{failed} requests failed ({describe_kinds(numbers)}), at most {most:g} may"
    rate = promise.window_error_rate
    if rate is not None and numbers.error_rate > rate * (1 + _ROUNDING):
        yield f"{numbers.error_rate:.1%} of {numbers.requests} requests failed, at most {rate:.1%} may"
    ttft_ms, limit_ms = numbers.ttft_p99_ms, promise.ttft_p99_ms
    if ttft_ms is not None and limit_ms is not None and ttft_ms > limit_ms:
        yield f"TTFT P99 {ttft_ms:.0f} ms, limit {limit_ms:g} ms"
    yield from _broken_recovery(numbers, promise, observed_s)
    if numbers.bad_after:
        yield f"{numbers.bad_after} requests failed or were slow after the recovery"


def _broken_recovery(numbers: WindowNumbers, promise: Promise, observed_s: float) -> Iterator[str]:
    limit_s, taken_s = promise.recovery_s, numbers.recovery_s
    if limit_s is None:
        return
    if taken_s is None and numbers.last_bad_s is not None and numbers.last_bad_s > limit_s:
        yield f"not recovered {observed_s:.1f} s after the start, limit {limit_s:g} s"
    elif taken_s is not None and taken_s > limit_s * (1 + _ROUNDING):
        yield f"recovered after {taken_s:.1f} s, limit {limit_s:g} s"


def describe_kinds(numbers: WindowNumbers) -> str:
    """The failures by kind: ``connection 12, truncated 1``."""
    return ", ".join(f"{kind} {count}" for kind, count in numbers.kinds.items()) or "none"


def _describe(numbers: WindowNumbers) -> str:
    if numbers.first_bad_s is None:
        return f"none of {numbers.requests} requests failed or was slow"
    return (
        f"{numbers.failed} of {numbers.requests} requests failed ({describe_kinds(numbers)}), recovered after "
        f"{numbers.recovery_s:.1f} s"
    )

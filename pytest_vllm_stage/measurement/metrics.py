"""From samples to metrics: one function, used by everything that shows or judges a number.

Percentiles are nearest rank over all requests: a failed request, or one that ran into its time limit, counts as +inf
wherever it gave no answer. Means and rates are over what was answered. Token gaps are pooled; their confidence comes
from the number of requests, since the gaps of one answer are not independent.

A request that was abandoned (see `samples.ABANDONED`) has waited at least so long: its TTFT and end-to-end latency are
censored. A percentile that depends on how long they would have been is only known to be at least its value; it is
marked, and is not among the plain numbers, nor are mean and maximum. TPOT and token gaps are those of whole answers.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.stalls import find_stalls
from pytest_vllm_stage.measurement.statistics import deviation, interval_needs, interval_ranks, nearest_rank, rank_of
from pytest_vllm_stage.measurement.steady_throughput import find_steady_throughput
from pytest_vllm_stage.measurement.step import LoadStep

PERCENTS = (50, 90, 95, 99)
#: Raised when a field changes its meaning or goes; adding one does not raise it.
SCHEMA_VERSION = 1
#: The latencies, with the factor from seconds to the unit in their names.
LATENCIES = {"ttft": ("ms", 1000.0), "itl": ("ms", 1000.0), "tpot": ("ms", 1000.0), "e2e_latency": ("s", 1.0)}
#: The latencies that a single request has, and that decide whether it counts into the goodput.
GOODPUT_LATENCIES = ("ttft", "tpot", "e2e_latency")


@dataclass(frozen=True)
class Percentile:
    """A percentile with what is known about it.

    Attributes:
        percent: 50, 90, 95 or 99.
        value: Nearest rank; +inf where so many requests failed.
        at_least: Requests were abandoned, and the percentile is at least the value.
        n: The number of requests behind it.
        effective_n: The number of independent requests that they are equivalent to.
        low: Lower end of the two-sided 95 % interval; None where ``effective_n`` is too small.
        high: Upper end.
        needs: The smallest n that has an interval, at this effective share of it.
    """

    percent: int
    value: float
    n: int
    effective_n: int
    low: float | None
    high: float | None
    needs: int
    at_least: bool = False

    def interval_text(self, digits: int = 1) -> str:
        """The interval for people, or ``n/a (needs N)``."""
        if self.low is None or self.high is None:
            return f"n/a (needs {self.needs})"
        return f"{self.low:.{digits}f} to {self.high:.{digits}f}"


@dataclass(frozen=True)
class Distribution:
    """A latency over a step, in the unit of its name.

    Attributes:
        name: ``ttft``, ``itl``, ``tpot`` or ``e2e_latency``.
        unit: ``ms`` or ``s``.
        n: Requests behind it, failed ones included.
        failed: Requests that count as +inf.
        percentiles: By percent.
        maximum: The largest value of the requests that were answered; None if none was, or where values are censored.
        mean: Over the requests that were answered; None if none was, or where values are censored.
    """

    name: str
    unit: str
    n: int
    failed: int
    percentiles: Mapping[int, Percentile]
    maximum: float | None
    mean: float | None


@dataclass(frozen=True)
class Metrics:
    """What a step's samples say.

    Attributes:
        step: Id of the step.
        requests: Samples.
        failed: Samples that failed, by kind.
        abandoned: Samples that the driver gave up when the step ended early.
        vacuous: Not one token came: no number below means anything.
        latencies: By name: ``ttft``, ``itl``, ``tpot``, ``e2e_latency``; empty where nothing was answered.
        sent_s: Seconds from the first scheduled request to the end of the sending.
        span_s: Seconds from the first scheduled request to the last answer.
        output_tokens_per_s: Generated tokens over the span, those of abandoned requests included.
        steady_output_tokens_per_s: Generated tokens per second while every user of a closed loop was busy; see
            `steady_throughput`. None for open loops, whose backlog after the last send belongs to the overload.
        total_tokens_per_s: Prompt and generated tokens over the span.
        requests_per_s: Right answers over the span; of an abandoned one the share of its tokens that had come.
        goodput_requests_per_s: Right answers within every latency limit over the span; None without limits.
        error_rate: Share of the samples that failed, among those that were not abandoned.
        achieved_over_offered: Rate at which requests were really sent over the planned rate; None for closed loops.
        lag_p99_ms: How late requests were sent, P99.
        arrival_cv: Coefficient of variation of the gaps between sends: 0 constant, 1 Poisson; None for closed loops.
        stalls: Number of stalls of the server; see `stalls`. None where not every token's time is known.
        longest_stall_s: The longest one; 0 without any, None where stalls are not known.
        stalled_at_s: When each began.
        tokens_per_event: Tokens in one event of the stream; above 1 the gaps are of events, not of tokens.
    """

    step: str
    requests: int
    failed: Mapping[str, int]
    abandoned: int
    vacuous: bool
    latencies: Mapping[str, Distribution]
    sent_s: float
    span_s: float
    output_tokens_per_s: float
    steady_output_tokens_per_s: float | None
    total_tokens_per_s: float
    requests_per_s: float
    goodput_requests_per_s: float | None
    error_rate: float
    achieved_over_offered: float | None
    lag_p99_ms: float | None
    arrival_cv: float | None
    stalls: int | None
    longest_stall_s: float | None
    stalled_at_s: tuple[float, ...]
    tokens_per_event: float | None

    def flat(self) -> dict[str, float | None]:
        """Every number by its full name, for example ``ttft_p99_ms``; None where it is not known."""
        numbers: dict[str, float | None] = {"requests": self.requests, "failed": sum(self.failed.values())}
        for name, (unit, _) in LATENCIES.items():
            latency = self.latencies.get(name)
            for percent in PERCENTS:
                found = latency.percentiles[percent] if latency else None
                numbers[f"{name}_p{percent}_{unit}"] = None if found is None or found.at_least else found.value
            numbers[f"{name}_max_{unit}"] = latency.maximum if latency else None
            numbers[f"{name}_mean_{unit}"] = latency.mean if latency else None
        plain = [name for name in self.__dataclass_fields__ if name not in _NOT_FLAT]
        return numbers | {name: getattr(self, name) for name in plain}

    def to_json(self) -> dict[str, Any]:
        """Plain data; +inf is the text ``inf``, since JSON has no such number."""
        percentiles = {
            f"{name}_p{percent}_{latency.unit}": {
                "value": json_number(found.value),
                "n": found.n,
                "effective_n": found.effective_n,
                "ci95": None if found.low is None else [json_number(found.low), json_number(found.high)],
                "needs": found.needs,
                **({"at_least": True} if found.at_least else {}),
            }
            for name, latency in self.latencies.items()
            for percent, found in latency.percentiles.items()
        }
        return {
            "schema_version": SCHEMA_VERSION,
            "step": self.step,
            "vacuous": self.vacuous,
            "failures": dict(self.failed),
            "stalled_at_s": [round(at, 3) for at in self.stalled_at_s],
            "percentiles": percentiles,
            "metrics": {name: json_number(value) for name, value in self.flat().items()},
        }


_NOT_FLAT = ("step", "requests", "failed", "vacuous", "latencies", "stalled_at_s")


def json_number(value: float | None) -> float | str | None:
    """A number that JSON can hold, to six digits; +inf as the text ``inf``."""
    if value is None or isinstance(value, int):
        return value
    return "inf" if math.isinf(value) else float(f"{value:.6g}")


def summarise(samples: Sequence[Sample], step: LoadStep, *, limits_s: Mapping[str, float] | None = None) -> Metrics:
    """Every metric of a step.

    Args:
        samples: One row a request, in the schedule's order.
        step: The plan they carried out.
        limits_s: Latency name out of `GOODPUT_LATENCIES` to its limit in seconds; None leaves the goodput out.
    """
    right = [sample for sample in samples if sample.failure is None]
    start_s = min((sample.scheduled_s for sample in samples), default=0.0)
    span_s = max((sample.end_s for sample in samples), default=0.0) - start_s
    begun = [sample for sample in samples if sample.abandoned and sample.token_times_s]
    output = sum(sample.tokens for sample in (*right, *begun))
    prompt = sum(sample.prompt_tokens or sample.expected_prompt_tokens for sample in (*right, *begun))
    partly = sum(min(1.0, sample.tokens / sample.expected_output_tokens) for sample in begun)
    abandoned = sum(sample.abandoned for sample in samples)
    failed = _failures(samples)
    all_timed = all(sample.every_token_timed for sample in samples)
    stalls = find_stalls(samples) if all_timed else ()
    events = sum(len(sample.token_times_s) for sample in right) if all_timed else 0
    return Metrics(
        step=step.id,
        requests=len(samples),
        failed=failed,
        abandoned=abandoned,
        vacuous=not any(sample.token_times_s for sample in samples),
        latencies={name: latency for name in LATENCIES if (latency := _distribution(name, samples)) is not None},
        sent_s=max((s.sent_s for s in samples if s.sent_s is not None), default=start_s) - start_s,
        span_s=span_s,
        output_tokens_per_s=_per(output, span_s),
        steady_output_tokens_per_s=find_steady_throughput(samples, step),
        total_tokens_per_s=_per(output + prompt, span_s),
        requests_per_s=_per(len(right) + partly, span_s),
        goodput_requests_per_s=_per(sum(_within(sample, limits_s) for sample in right), span_s) if limits_s else None,
        error_rate=_per(sum(failed.values()), len(samples) - abandoned),
        achieved_over_offered=achieved_over_offered(samples, step),
        lag_p99_ms=_lag_p99_ms(samples),
        arrival_cv=_arrival_cv(samples) if step.open_loop else None,
        stalls=len(stalls) if all_timed else None,
        longest_stall_s=max((stall.duration_s for stall in stalls), default=0.0) if all_timed else None,
        stalled_at_s=tuple(stall.start_s for stall in stalls),
        tokens_per_event=_per(output, events) if events else None,
    )


def with_effective_sizes(metrics: Metrics, samples: Sequence[Sample], effective_n: Mapping[str, int]) -> Metrics:
    """The metrics with the confidence intervals of effective sample sizes.

    Args:
        metrics: The samples' metrics.
        samples: The samples.
        effective_n: By the percentile's full name; others count every request.
    """
    found = {name: _distribution(name, samples, effective_n) for name in metrics.latencies}
    return replace(metrics, latencies={name: latency for name, latency in found.items() if latency is not None})


def latency_s(name: str, sample: Sample) -> float | None:
    """One request's latency in seconds; +inf where it failed, None where it has none (a TPOT of one token).

    Of an abandoned request it is +inf where it had not ended yet, as if no answer had ever come: the upper bound. The
    lower one is that of `as_if_ended`. Without a whole answer there is no TPOT.
    """
    if sample.abandoned and name == "ttft" and sample.first_token_s is not None:
        return sample.first_token_s - sample.scheduled_s
    if sample.abandoned and name == "tpot":
        return None
    if sample.failure is not None:
        return math.inf
    first_s = sample.first_token_s
    if first_s is None:
        return math.inf
    if name == "ttft":
        return first_s - sample.scheduled_s
    if name == "e2e_latency":
        return sample.end_s - sample.scheduled_s
    if sample.tokens < 2:
        return None
    return (sample.token_times_s[-1] - first_s) / (sample.tokens - 1)


def as_if_ended(samples: Sequence[Sample]) -> list[Sample]:
    """The samples with the abandoned ones as if their answers had come just then: the least that can have been."""
    return [
        replace(sample, failure=None, token_times_s=sample.token_times_s or (sample.end_s,))
        if sample.abandoned
        else sample
        for sample in samples
    ]


def gaps_s(sample: Sample) -> list[float]:
    """The gaps between the tokens of one answer, none where they are not known; of a failed one all are +inf."""
    if sample.abandoned or not sample.every_token_timed:
        return []
    if sample.failure is not None:
        return [math.inf] * max(1, sample.expected_output_tokens - 1)
    times = sample.token_times_s
    return [b - a for a, b in pairwise(times)]


def _distribution(
    name: str, samples: Sequence[Sample], effective_n: Mapping[str, int] | None = None
) -> Distribution | None:
    unit, factor = LATENCIES[name]
    if name == "itl":
        groups = [group for sample in samples if (group := gaps_s(sample))]
        values = sorted(gap for group in groups for gap in group)
        n = len(groups)
    else:
        values = sorted(value for sample in samples if (value := latency_s(name, sample)) is not None)
        n = len(values)
    finite = [value for value in values if value < math.inf]
    if not finite:
        return None
    least = _least_values(name, samples, values)
    return Distribution(
        name=name,
        unit=unit,
        n=n,
        failed=sum(sample.failed for sample in samples),
        percentiles={
            percent: _percentile(
                values, least, n, (effective_n or {}).get(f"{name}_p{percent}_{unit}", n), percent, factor
            )
            for percent in PERCENTS
        },
        maximum=finite[-1] * factor if least == values else None,
        mean=statistics.fmean(finite) * factor if least == values else None,
    )


def _least_values(name: str, samples: Sequence[Sample], values: list[float]) -> list[float]:
    """The values, with those of abandoned requests as small as they can have been."""
    if name not in ("ttft", "e2e_latency") or not any(sample.abandoned for sample in samples):
        return values
    return sorted(value for sample in as_if_ended(samples) if (value := latency_s(name, sample)) is not None)


def _percentile(
    values: Sequence[float], least: Sequence[float], n: int, effective_n: int, percent: int, factor: float
) -> Percentile:
    """The percentile; the ranks of so many independent requests are stretched over all values.

    Args:
        values: Ascending; infinite where a request has no answer.
        least: The same, with the least that those of abandoned requests can have been.
        n: Requests behind the values.
        effective_n: The number of independent requests that they are equivalent to.
        percent: Which percentile.
        factor: From seconds to the unit.
    """
    ranks = interval_ranks(effective_n, percent)
    low = high = None
    if ranks is not None:
        low = least[_stretched(ranks[0] - 1, effective_n, len(least))] * factor
        high = values[_stretched(ranks[1], effective_n, len(values)) - 1] * factor
    needs = math.ceil(interval_needs(percent) * n / max(1, effective_n))
    value = nearest_rank(least, percent)
    at_least = value != nearest_rank(values, percent)
    return Percentile(percent, value * factor, n, effective_n, low, high, needs, at_least)


def _stretched(rank: int, n: int, values: int) -> int:
    return rank * values // n


def _failures(samples: Sequence[Sample]) -> dict[str, int]:
    counted: dict[str, int] = {}
    for sample in samples:
        if sample.failure is not None and not sample.abandoned:
            counted[sample.failure.kind] = counted.get(sample.failure.kind, 0) + 1
    return dict(sorted(counted.items(), key=lambda item: -item[1]))


def _within(sample: Sample, limits_s: Mapping[str, float]) -> bool:
    values = ((latency_s(name, sample), limit_s) for name, limit_s in limits_s.items() if name in GOODPUT_LATENCIES)
    return all(value is None or value <= limit_s for value, limit_s in values)


def _per(amount: float, of: float) -> float:
    return amount / of if of > 0 else 0.0


def achieved_over_offered(samples: Sequence[Sample], step: LoadStep) -> float | None:
    """How much of the planned rate was really sent, 0 to 1; a refused connection was still an attempt.

    None for closed loops, and where nothing could be sent at all.
    """
    sent = [sample.sent_s for sample in samples if sample.sent_s is not None]
    if not step.open_loop or not sent:
        return None
    planned_s = max(sample.scheduled_s for sample in samples if sample.sent_s is not None) - samples[0].scheduled_s
    really_s = max(sent) - samples[0].scheduled_s
    return min(1.0, planned_s / really_s) if really_s > 0 else 1.0


def _lag_p99_ms(samples: Sequence[Sample]) -> float | None:
    lags = sorted(lag for sample in samples if (lag := sample.lag_s) is not None)
    return lags[rank_of(99, len(lags)) - 1] * 1000 if lags else None


def _arrival_cv(samples: Sequence[Sample]) -> float | None:
    sent = sorted(sample.sent_s for sample in samples if sample.sent_s is not None)
    gaps = [b - a for a, b in pairwise(sent)]
    centre = statistics.fmean(gaps) if len(gaps) > 1 else 0.0
    return deviation(gaps) / centre if centre > 0 else None

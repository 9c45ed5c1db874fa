"""A measurement as a report of GuideLLM 0.8.1, which its own library and what was built on it can read.

Percentiles are those of the answered requests, as GuideLLM's are, and they equal ours where no request failed. As
everywhere here, and unlike in GuideLLM, latencies count from the schedule: ``request_start`` is the scheduled time, so
that rows and metrics say the same. When a request was really sent is in the field `SENT`. What is not known has a
count of 0, as in GuideLLM's own reports.
"""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.files import write_atomically
from pytest_vllm_stage.load.guidellm.distribution import breakdown, steady, summary
from pytest_vllm_stage.load.guidellm.reading import SENT, VERSION
from pytest_vllm_stage.load.guidellm.scenario import profile_of
from pytest_vllm_stage.measurement.metrics import Metrics, gaps_s
from pytest_vllm_stage.measurement.samples import Measurement, Sample
from pytest_vllm_stage.measurement.step import LoadStep

#: The library whose schema this is.
GUIDELLM_VERSION = "0.8.1"
_NOWHERE = "unknown"
#: What GuideLLM counts of each kind of content, and we do not.
_KINDS_OF_CONTENT = {
    "text": ("tokens", "words", "characters"),
    "image": ("tokens", "images", "pixels", "bytes"),
    "video": ("tokens", "frames", "seconds", "bytes"),
    "audio": ("tokens", "samples", "seconds", "bytes"),
    "tool_call": ("tokens", "mixed_tokens", "count"),
}


def write_report(measurement: Measurement, path: Path, metrics: Metrics) -> None:
    """Write the JSON report, whole or not at all.

    Args:
        measurement: What was measured, with any driver; its name is a label of the report.
        path: Should end in ``.json``: by that GuideLLM knows the format.
        metrics: The measurement's.
    """
    write_atomically(path, json.dumps(report_of(measurement, metrics), allow_nan=False))


def report_of(measurement: Measurement, metrics: Metrics) -> dict[str, Any]:
    """The report as plain data."""
    return {
        "metadata": {
            "version": VERSION,
            "guidellm_version": GUIDELLM_VERSION,
            "python_version": platform.python_version(),
            "platform": platform.platform(),
        },
        "config": {
            "metadata": {"labels": {"driver": measurement.client.driver, "step": measurement.step.id}},
            "spec": {
                "backend": {"kind": "openai_http", "target": _NOWHERE, "model": measurement.step.model},
                "profile": profile_of(measurement.step),
                "data": [{"kind": "json_file", "path": _NOWHERE}],
            },
        },
        "benchmarks": [_benchmark(measurement, metrics)],
        "conclusions": [],
    }


def _benchmark(measurement: Measurement, metrics: Metrics) -> dict[str, Any]:
    step, samples = measurement.step, measurement.samples
    groups = {
        "successful": [sample for sample in samples if sample.failure is None],
        "errored": [sample for sample in samples if sample.failed],
        "incomplete": [sample for sample in samples if sample.abandoned],
    }
    totals = {**{status: len(group) for status, group in groups.items()}, "total": len(samples)}
    start, end = measurement.started_at, measurement.started_at + max((s.end_s for s in samples), default=0.0)
    rows = {status: [_row(sample, start) for sample in group] for status, group in groups.items()} | {"total": None}
    return {
        "type_": "generative_benchmark",
        "config": _config(step),
        "scheduler_state": _state(totals, start, end),
        "scheduler_metrics": _scheduler(samples, totals, start, end),
        "metrics": _metrics(metrics, groups, totals),
        "requests": rows,
        "warnings": [],
        "start_time": start,
        "end_time": end,
        "duration": end - start,
        "warmup_duration": 0.0,
        "cooldown_duration": 0.0,
    }


def _config(step: LoadStep) -> dict[str, Any]:
    strategy = {"type_": step.arrivals, "rate": step.request_rate}
    if not step.open_loop:
        strategy = {"type_": "concurrent", "streams": step.concurrency}
    return {
        "run_id": step.id,
        "run_index": 0,
        "strategy": strategy,
        "constraints": {},
        "profile": profile_of(step),
        "requests": {},
        "backend": {"model": step.model},
        "environment": {},
    }


def _state(totals: dict[str, int], start: float, end: float) -> dict[str, Any]:
    return {
        "start_time": start,
        "end_time": end,
        "start_requests_time": start,
        "end_requests_time": end,
        "created_requests": totals["total"],
        "processed_requests": totals["total"],
        "successful_requests": totals["successful"],
        "errored_requests": totals["errored"],
    }


def _scheduler(samples: Sequence[Sample], totals: dict[str, int], start: float, end: float) -> dict[str, Any]:
    """GuideLLM's own delays: this driver has no queue between two processes, so that most of them do not exist."""
    absent = ("queued_time_avg", "resolve_start_delay_avg", "resolve_end_delay_avg", "finalized_delay_avg")
    late_s = summary([lag for sample in samples if (lag := sample.lag_s) is not None])["mean"]
    took_s = summary([sample.end_s - sample.scheduled_s for sample in samples])["mean"]
    return {
        **dict.fromkeys((*absent, "processed_delay_avg"), 0.0),
        "start_time": start,
        "request_start_time": start,
        "measure_start_time": start,
        "measure_end_time": end,
        "request_end_time": end,
        "end_time": end,
        "requests_made": totals,
        "resolve_targeted_start_delay_avg": late_s,
        "request_start_delay_avg": late_s,
        "request_targeted_start_delay_avg": late_s,
        "request_time_avg": took_s,
        "resolve_time_avg": took_s,
    }


def _metrics(metrics: Metrics, groups: Mapping[str, Sequence[Sample]], totals: dict[str, int]) -> dict[str, Any]:
    def by(values_of: Any) -> dict[str, Any]:
        return breakdown(values_of, groups)

    latencies_s = sum(sample.end_s - sample.scheduled_s for sample in groups["successful"])
    lag = by(lambda sample: _known(sample.lag_s))
    absent = ("time_to_first_output_token_ms", "time_to_last_round_trip_ms", "avg_round_trip_time_ms")
    return {
        **{name: by(lambda _sample: ()) for name in absent},
        "request_totals": totals,
        "requests_per_second": steady(metrics.requests_per_s),
        "request_concurrency": steady(latencies_s / metrics.span_s if metrics.span_s else 0.0),
        "request_latency": by(_e2e_s),
        "request_dispatch_delay": lag,
        "request_scheduled_latency": by(_e2e_s),
        "request_streaming_iterations_count": by(_events),
        "prompt_token_count": by(lambda sample: _known(sample.prompt_tokens)),
        "output_token_count": by(lambda sample: (sample.tokens,)),
        "total_token_count": by(lambda sample: (sample.tokens + (sample.prompt_tokens or 0),)),
        "time_to_first_token_ms": by(_ttft_ms),
        "time_per_output_token_ms": by(_per_token_ms),
        "inter_token_latency_ms": by(_gaps_ms),
        "prompt_tokens_per_second": steady(metrics.total_tokens_per_s - metrics.output_tokens_per_s),
        "output_tokens_per_second": steady(metrics.output_tokens_per_s),
        "tokens_per_second": steady(metrics.total_tokens_per_s),
        "output_tokens_per_iteration": by(lambda sample: [sample.tokens / n for n in _events(sample) if n]),
        "iter_tokens_per_iteration": by(lambda one: [(one.tokens - 1) / (n - 1) for n in _events(one) if n > 1]),
        **{kind: dict.fromkeys(names) for kind, names in _KINDS_OF_CONTENT.items()},
    }


def _known(value: float | None) -> Iterable[float]:
    return () if value is None else (value,)


def _e2e_s(sample: Sample) -> Iterable[float]:
    return () if sample.failure else (sample.end_s - sample.scheduled_s,)


def _ttft_ms(sample: Sample) -> Iterable[float]:
    return [(at_s - sample.scheduled_s) * 1000 for at_s in sample.token_times_s[:1]]


def _per_token_ms(sample: Sample) -> Iterable[float]:
    """GuideLLM's TPOT counts the first token too, and counts once a token."""
    if not sample.token_times_s or not sample.tokens:
        return ()
    return [(sample.token_times_s[-1] - sample.scheduled_s) * 1000 / sample.tokens] * sample.tokens


def _gaps_ms(sample: Sample) -> Iterable[float]:
    """Every gap where it is known; else GuideLLM's way, each gap as long as the answer's mean one."""
    if sample.failure is None and sample.every_token_timed:
        return [gap_s * 1000 for gap_s in gaps_s(sample)]
    if len(sample.token_times_s) < 2 or sample.tokens < 2:
        return ()
    gaps = sample.tokens - 1
    return [(sample.token_times_s[-1] - sample.token_times_s[0]) * 1000 / gaps] * gaps


def _events(sample: Sample) -> Iterable[int]:
    return (len(sample.token_times_s),) if sample.every_token_timed else ()


def _row(sample: Sample, start: float) -> dict[str, Any]:
    failure = sample.failure
    identity = f"{sample.step}-{sample.index}"
    return {
        "type_": "generative_request_stats",
        "request_id": identity,
        "response_id": sample.response_id or None,
        "request_args": None,
        "output": None,
        "info": {
            "request_id": identity,
            "status": "cancelled" if sample.abandoned else "errored" if failure else "completed",
            "scheduler_start_time": start,
            "timings": _timings(sample, start),
            "error": f"{failure.kind}: {failure.text}" if failure else None,
        },
        "input_metrics": _usage(sample.prompt_tokens) | {"cached_tokens": sample.cached_tokens},
        "output_metrics": _usage(sample.output_tokens),
    }


def _usage(tokens: int | None) -> dict[str, int | None]:
    return {"text_tokens": tokens, "total_tokens": tokens}


def _timings(sample: Sample, start: float) -> dict[str, Any]:
    scheduled, end = start + sample.scheduled_s, start + sample.end_s
    tokens: list[float | None] = [start + at_s for at_s in sample.token_times_s]
    tokens = tokens or [None]
    return {
        "targeted_start": scheduled,
        "scheduled_at": scheduled,
        "resolve_start": scheduled,
        "request_start": scheduled,
        SENT: None if sample.sent_s is None else start + sample.sent_s,
        "first_token_iteration": tokens[0],
        "last_token_iteration": tokens[-1],
        "token_iterations": len(sample.token_times_s) if sample.every_token_timed else sample.tokens,
        "request_end": None if sample.failure else end,
        "resolve_end": end,
    }

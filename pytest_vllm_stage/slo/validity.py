"""Findings about a measurement: those that make it invalid, whatever its numbers are, and those that are only noted."""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_vllm_stage.measurement.metrics import Metrics
from pytest_vllm_stage.measurement.samples import (
    LOAD_WORKERS,
    LOST_ROWS,
    MEASURED_AGAIN,
    PORT_FORWARD,
    SEVERAL_ENGINES,
    Measurement,
    Sample,
    are_too_many_lost,
)
from pytest_vllm_stage.slo.objectives import Objective

#: A request is sent late beyond this lag; 5 % of the TTFT objective where that is more.
LAG_LIMIT_MS = 10.0
LAG_SHARE_OF_TTFT = 0.05
#: With a larger share of late requests the step was not the planned one: the P99 of the lag is above the limit.
LATE_SHARE = 0.01
#: In a short step so many late ones are an accident, whose time is charged to the server's latency like any other: one
#: of 60 is already 1.7 %. They are at most one of so many requests: no verdict rests on them, as a P50 that passes with
#: one miss has 8 requests, and a P90 that passes with two has 61.
LATE_ACCIDENTS = 2
REQUESTS_PER_ACCIDENT = 8
#: With less of the planned rate than this the step was not the planned one.
SENT_SHARE = 0.99
#: With more unplanned prompts than this the step was not the planned one.
WRONG_SHARE = 0.01
#: No engine generates tokens for one request faster than this; faster tokens come from a cache.
BURST_GAP_S = 0.0002
#: A small model may give many senseless prompts the same answer, but hardly nearly all of them.
SAME_SHARE = 0.9
#: The highest rate at which a step through a port-forward is judged. Each connection is relayed token by token by the
#: API server, the kubelet and a thread of this process. Measured (docs/access.md): the medians stay the server's up to
#: 10 requests/s; the P99 of TTFT grows by 20 ms at 1 request/s, by 70 to 370 ms at 3, and by 130 to 380 ms above.
MAX_FORWARDED_REQUESTS_PER_S = 3.0
#: Prompt tokens that a chat template may put in front of every prompt, and that the prefix cache may thus hold.
TEMPLATE_TOKENS = 48


@dataclass(frozen=True)
class Finding:
    """A finding about a measurement.

    Attributes:
        name: Its identifier, for programs.
        text: Its description with the numbers, for people.
        invalidates: The measurement allows no verdict on the server.
    """

    name: str
    text: str
    invalidates: bool


def findings(measurement: Measurement, metrics: Metrics, objectives: Sequence[Objective]) -> tuple[Finding, ...]:
    """Everything that is wrong or unexpected in a measurement, the invalidating findings first."""
    found = [
        *_measured_twice(measurement),
        *_workers(measurement, objectives),
        *_client(measurement, metrics, objectives),
        *_port_forward(measurement, metrics),
        *_prompts(measurement),
        *_cache(measurement),
        *_prefix_cache(measurement),
        *_engine(measurement),
        *_stalls(metrics),
        *_abandoned(metrics),
    ]
    return tuple(sorted(found, key=lambda finding: not finding.invalidates))


def lag_limit_ms(objectives: Sequence[Objective]) -> float:
    """The largest lag of a request that is not late."""
    ttft_ms = min((objective.limit_s * 1000 for objective in objectives if objective.latency == "ttft"), default=0.0)
    return max(LAG_LIMIT_MS, LAG_SHARE_OF_TTFT * ttft_ms)


def _client(measurement: Measurement, metrics: Metrics, objectives: Sequence[Objective]) -> Iterator[Finding]:
    limit_ms = lag_limit_ms(objectives)
    client = measurement.client
    busy = f"; its process used {100 * client.cpu_s / client.wall_s:.0f} % of a core" if client.wall_s > 0 else ""
    if not measurement.samples:
        yield Finding("no_samples", "no request was sent", True)
    late, fell_behind = _late_requests(measurement.samples, limit_ms)
    if metrics.lag_p99_ms is not None and fell_behind:
        text = f"the client was overloaded: P99 send lag {metrics.lag_p99_ms:.1f} ms, limit {limit_ms:g} ms{busy}"
        yield Finding("client_late", text, True)
    elif len(late) > LATE_SHARE * len(measurement.samples):
        text = f"{len(late)} of {len(measurement.samples)} requests were sent up to {max(late):.1f} ms late"
        yield Finding("sent_late", text, False)
    if client.loop_lag_p99_ms is not None and client.loop_lag_p99_ms > limit_ms:
        text = f"the client was overloaded: it noticed events up to {client.loop_lag_p99_ms:.1f} ms late (P99){busy}"
        yield Finding("client_slow", text, True)
    achieved = metrics.achieved_over_offered
    if achieved is not None and achieved < SENT_SHARE and fell_behind:
        sent, least = f"{100 * achieved:.1f} %", f"{100 * SENT_SHARE:g} %"
        text = f"the client sent {sent} of the planned rate, expected at least {least}{busy}"
        yield Finding("rate_not_sent", text, True)


def _measured_twice(measurement: Measurement) -> Iterator[Finding]:
    if first := measurement.first_outcome:
        text = f"measured twice, the second time for {measurement.step.duration_s:g} s: {first} at first"
        yield Finding("measured_twice", text, False)


def _workers(measurement: Measurement, objectives: Sequence[Objective]) -> Iterator[Finding]:
    """What is wrong with a step that several load workers shared: it is one step only if each did its part in time."""
    workers = measurement.facts.get(LOAD_WORKERS)
    if not isinstance(workers, Mapping):
        return
    for lost in workers.get("lost") or ():
        text = f"load worker {lost['worker']} of {workers['count']} ({lost['name']}) has no result: {lost['reason']}"
        yield Finding("worker_lost", text, True)
    limit_ms, uncertain_ms = lag_limit_ms(objectives), workers.get("clock_uncertainty_ms") or 0.0
    if uncertain_ms > limit_ms:
        text = f"the load workers' common start is only known within {uncertain_ms:.1f} ms, limit {limit_ms:g} ms"
        yield Finding("clocks_uncertain", text, True)


def _late_requests(samples: Sequence[Sample], limit_ms: float) -> tuple[list[float], bool]:
    """The lags of the late requests in milliseconds, and whether they are more than accidents."""
    late = [1000 * lag for sample in samples if (lag := sample.lag_s) is not None and 1000 * lag > limit_ms]
    accidents = min(LATE_ACCIDENTS, len(samples) // REQUESTS_PER_ACCIDENT)
    return late, len(late) > max(accidents, LATE_SHARE * len(samples))


def _port_forward(measurement: Measurement, metrics: Metrics) -> Iterator[Finding]:
    forward = measurement.facts.get(PORT_FORWARD)
    if not forward:
        return
    if forward["broken"]:
        yield Finding("port_forward_broken", f"{forward['broken']}; the failures on the way are not the model's", True)
    sent_per_s = len(measurement.samples) / metrics.sent_s if metrics.sent_s > 0 else 0.0
    rate = max(measurement.step.request_rate or 0.0, sent_per_s)
    through = f"the requests went through a port-forward to {forward['service']}"
    if rate > MAX_FORWARDED_REQUESTS_PER_S:
        text = (
            f"{through}, which is not measured above {MAX_FORWARDED_REQUESTS_PER_S:g} requests/s, and these were "
            f"{rate:.3g}; measure in a pod of the cluster (--stage-cluster=in-cluster), or through a Route or Ingress"
        )
        yield Finding("port_forward_load", text, True)
    else:
        yield Finding("port_forward", f"{through}: the latencies include it", False)


def _prompts(measurement: Measurement) -> Iterator[Finding]:
    samples = measurement.samples
    wrong = [s for s in samples if s.prompt_tokens is not None and s.prompt_tokens != s.expected_prompt_tokens]
    if len(wrong) > WRONG_SHARE * len(samples):
        worst = Counter(sample.prompt_tokens for sample in wrong).most_common(1)[0][0]
        text = (
            f"{len(wrong)} of {len(samples)} prompts did not have the planned length: expected "
            f"{wrong[0].expected_prompt_tokens} tokens, the server counted {worst} in most of them"
        )
        yield Finding("prompt_tokens", text, True)
    digests = Counter(sample.prompt_digest for sample in samples if sample.prompt_digest)
    repeated = sum(count - 1 for count in digests.values())
    if repeated > WRONG_SHARE * len(samples):
        text = f"{repeated} of {len(samples)} prompts had been sent before in the step"
        yield Finding("repeated_prompts", text, True)
    yield from _lost_rows(measurement)
    if measurement.facts.get("prompts_ran_out"):
        yield Finding("prompts_ran_out", f"the prompts ran out after {len(samples)} requests: the step was cut", True)
    answered = [sample for sample in samples if sample.failure is None]
    if answered and all(sample.prompt_tokens is None for sample in answered):
        yield Finding("no_usage", "the server reports no usage: token counts are not verified", False)


def _lost_rows(measurement: Measurement) -> Iterator[Finding]:
    """What GuideLLM's report lacks, now and in an attempt before."""
    if lacked := measurement.facts.get(MEASURED_AGAIN):
        yield Finding("measured_again", f"the step was measured again: {lacked}", False)
    lost, rows = measurement.facts.get(LOST_ROWS) or 0, len(measurement.samples)
    if lost:
        text = f"GuideLLM's report has no row of {lost} of {rows + lost} requests, which were sent"
        yield Finding("lost_rows", text, are_too_many_lost(lost, rows + lost))


def _cache(measurement: Measurement) -> Iterator[Finding]:
    right = [sample for sample in measurement.samples if sample.failure is None]
    evidence = [text for text in (_same_ids(right), _not_generated(measurement, right), _too_fast(right)) if text]
    if evidence:
        text = f"answers came from a cache, not from the engine: {'; '.join(evidence)}"
        yield Finding("served_from_cache", text, True)
        return
    bursts = [sample for sample in right if _is_burst(sample)]
    if len(bursts) > len(right) / 2:
        text = f"{len(bursts)} of {len(right)} answers arrived in one piece: a proxy or the server buffers the stream"
        yield Finding("buffered", text, False)
    same = max(Counter(sample.output_digest for sample in right if sample.output_digest).values(), default=0)
    if same > max(1, SAME_SHARE * len(right)):
        yield Finding("same_answers", f"{same} of {len(right)} different prompts got the same answer", False)


def _repeated(samples: Sequence[Sample]) -> int:
    same = Counter(sample.output_digest for sample in samples if sample.output_digest)
    return sum(count for count in same.values() if count > 1)


def _same_ids(samples: Sequence[Sample]) -> str:
    ids = Counter(sample.response_id for sample in samples if sample.response_id)
    repeated = sum(count for count in ids.values() if count > 1)
    return f"{repeated} of {len(samples)} answers share their id with another one" if repeated else ""


def lacks_generated_tokens(measurement: Measurement) -> bool:
    """Whether the engine's counters account for fewer tokens than came: a cache, or another engine, sent the others."""
    return bool(_not_generated(measurement, [one for one in measurement.samples if one.failure is None]))


def _not_generated(measurement: Measurement, right: Sequence[Sample]) -> str:
    counts = [reading.generation_tokens for reading in measurement.server if reading.generation_tokens is not None]
    received = sum(sample.tokens for sample in right)
    if len(counts) < 2 or _count_falls(counts) or measurement.facts.get(SEVERAL_ENGINES):
        return ""
    generated = counts[-1] - counts[0]
    if generated >= 0.9 * received:
        return ""
    return f"{received} tokens were received and the engine generated {generated:.0f}"


def _too_fast(right: Sequence[Sample]) -> str:
    """Answers in one piece that are the same for different prompts, or far faster than the generated ones."""
    bursts = [sample for sample in right if _is_burst(sample)]
    few = max(2, WRONG_SHARE * len(right))
    repeated = _repeated(bursts)
    if repeated >= few:
        return f"{repeated} of {len(right)} different prompts got the same answer at once"
    generated = [sample.end_s - sample.scheduled_s for sample in right if not _is_burst(sample)]
    median_s = statistics.median(generated) if generated else 0.0
    # A busy client takes what came before a queue in one piece, too, but no sooner than it came.
    limit_s = min(median_s / 4, min(generated, default=0.0) / 2)
    quick = [sample for sample in bursts if sample.end_s - sample.scheduled_s < limit_s]
    if len(quick) >= few:
        quickly = f"complete in under {limit_s:.2f} s; the median is {median_s:.2f} s"
        return f"{len(quick)} of {len(right)} answers were {quickly}"
    return ""


def _is_burst(sample: Sample) -> bool:
    times = sample.token_times_s
    return len(times) >= 4 and (times[-1] - times[0]) / (len(times) - 1) < BURST_GAP_S


def _prefix_cache(measurement: Measurement) -> Iterator[Finding]:
    step = measurement.step
    shared = (step.shared_prefix_tokens + TEMPLATE_TOKENS) / step.prompt_tokens
    readings = [r for r in measurement.server if r.prefix_cache_hits is not None and r.prefix_cache_queries is not None]
    if len(readings) < 2:
        return
    first, last = readings[0], readings[-1]
    if _count_falls([reading.prefix_cache_queries or 0.0 for reading in readings]):
        return
    hits = (last.prefix_cache_hits or 0) - (first.prefix_cache_hits or 0)
    queries = (last.prefix_cache_queries or 0) - (first.prefix_cache_queries or 0)
    if queries > 0 and hits / queries < step.shared_prefix_tokens / step.prompt_tokens / 2:
        text = (
            f"the prefix cache was cold: it held {100 * hits / queries:.0f} % of the prompt tokens, "
            f"and the plan shares {step.shared_prefix_tokens} of {step.prompt_tokens}"
        )
        yield Finding("prefix_cache_cold", text, False)
    if queries > 0 and hits / queries > shared + 0.1:
        text = (
            f"the prefix cache lowers TTFT: it held {100 * hits / queries:.0f} % of the prompt tokens, "
            f"and the plan shares {step.shared_prefix_tokens} of {step.prompt_tokens}"
        )
        yield Finding("prefix_cache", text, True)


def _engine(measurement: Measurement) -> Iterator[Finding]:
    if not any(reading.running is not None for reading in measurement.server):
        yield Finding("no_server_metrics", "the engine's metrics could not be read during the step", False)
        return
    counts = [reading.generation_tokens for reading in measurement.server if reading.generation_tokens is not None]
    falls = _count_falls(counts)
    if falls > 1 and _comes_back(counts):
        text = f"the engine's counters fell {falls} times during the step: the readings are of several servers"
        yield Finding("several_servers", text, False)
    elif falls:
        yield Finding("engine_restarted", "the engine's counters fell during the step: it restarted", False)
    elif measurement.facts.get(SEVERAL_ENGINES):
        text = "several servers answer at the address: the engine's readings are of one of them"
        yield Finding("several_servers", text, False)
    preemptions = [reading.preemptions for reading in measurement.server if reading.preemptions is not None]
    if len(preemptions) > 1 and preemptions[-1] > preemptions[0]:
        preempted = preemptions[-1] - preemptions[0]
        yield Finding("preemptions", f"the engine preempted {preempted:.0f} requests: its KV cache was full", False)


def _count_falls(counts: Sequence[float]) -> int:
    """How often a counter fell; what it says of a step is then unknown."""
    return sum(after < before for before, after in pairwise(counts))


def _comes_back(counts: Sequence[float]) -> bool:
    """Whether a counter is as high as before its first fall again before its last one: it counted on elsewhere."""
    falls = [place for place, (before, after) in enumerate(pairwise(counts)) if after < before]
    return max(counts[falls[0] + 1 : falls[-1] + 1]) >= counts[falls[0]]


def _abandoned(metrics: Metrics) -> Iterator[Finding]:
    if metrics.abandoned:
        text = (
            f"{metrics.abandoned} of {metrics.requests} requests were abandoned, unanswered, once past capacity was "
            "certain: latencies that depend on them are only known to be at least so long"
        )
        yield Finding("abandoned", text, False)


def _stalls(metrics: Metrics) -> Iterator[Finding]:
    if not metrics.stalls or metrics.longest_stall_s is None:
        return
    starts = metrics.stalled_at_s
    every = [b - a for a, b in pairwise(starts)]
    rhythm = f", about every {statistics.median(every):.1f} s" if len(every) > 1 else ""
    text = f"{metrics.stalls} stalls of up to {metrics.longest_stall_s:.1f} s{rhythm}, the first at {starts[0]:.1f} s"
    yield Finding("stalls", text, False)

"""What stands between client and engine costs: its share of the latency, and requests that it holds back or refuses.

The engine's own counters are the measure, so that no promise and no earlier run is needed. They give its mean exactly.
Clients' mean or median is compared with it, whichever is lower, so that a gateway's share is not overstated: a few slow
requests raise the mean alone, and where most requests wait for a place in a full batch, the median alone is high.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from pytest_vllm_stage.measurement.metrics import Metrics, gaps_s
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.server_metrics import increase
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.gates import GateVerdict
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.validity import Finding

#: Names of this module's findings.
GATEWAY_FINDINGS = ("gateway_ttft", "gateway_gaps", "gateway_limit", "gateway_refusals")
#: The engine's counters are of this step where they counted its requests, give or take this share.
COUNTED_WITHIN = 0.1
#: Less than this is the way through the network and the client.
LEAST_ADDED_MS = 50.0
#: Added to the time to first token: a finding from this share of the engine's own.
ADDED_SHARE = 0.5
#: Gaps between tokens that are longer than the engine's by this factor, and by so much.
GAP_FACTOR, LEAST_GAP_MS = 1.5, 10.0
#: So many requests that are open and unknown to the engine, and this share of the open ones, are held back, since a
#: busy server has a few on their way; they are a finding in this share of so many readings.
LEAST_HELD, HELD_OF_OPEN, HELD_SHARE, LEAST_READINGS = 2, 0.25, 0.6, 5
#: In an open loop more are held back in the last third than in the first, by this factor.
GROWTH_FACTOR = 1.5
#: Fewer requests allow no statement.
LEAST_REQUESTS = 10


@dataclass(frozen=True)
class EngineLatencies:
    """What the engine measured of itself during a step; None where its counters do not say it.

    Attributes:
        ttft_ms: Mean time to first token.
        token_gap_ms: Mean time between two tokens.
    """

    ttft_ms: float | None
    token_gap_ms: float | None


@dataclass(frozen=True)
class ClientWait:
    """How long clients wait for the first token.

    Attributes:
        median_ms: The median.
        mean_ms: The mean.
    """

    median_ms: float
    mean_ms: float

    @property
    def ms(self) -> float:
        """The lower one."""
        return min(self.median_ms, self.mean_ms)

    def __str__(self) -> str:
        return f"{self.ms:.0f} ms {'at P50' if self.median_ms <= self.mean_ms else 'on average'}"


def find_engine_latencies(measurement: Measurement) -> EngineLatencies:
    """The means over the step, where no other client's requests are among them."""
    answered = sum(sample.first_token_s is not None for sample in measurement.samples)
    readings = measurement.server
    count = increase([reading.ttft_count for reading in readings])
    if not count or answered < LEAST_REQUESTS or abs(count - answered) > COUNTED_WITHIN * answered:
        return EngineLatencies(None, None)
    return EngineLatencies(
        _mean_ms([one.ttft_sum_s for one in readings], [one.ttft_count for one in readings]),
        _mean_ms([one.token_gap_sum_s for one in readings], [one.token_gap_count for one in readings]),
    )


def find_gateway_findings(measurement: Measurement, metrics: Metrics) -> Iterator[Finding]:
    """What a gateway adds, holds back and refuses; none of it decides."""
    engine = find_engine_latencies(measurement)
    yield from _added_ttft(measurement, metrics, engine)
    yield from _longer_gaps(measurement, metrics, engine)
    yield from _held_back(measurement, metrics, engine)
    yield from _refused(measurement)


def judge_gateway_gate(measurement: Measurement, metrics: Metrics, objective: Objective) -> GateVerdict:
    """Judge the time that gateways may add to the time to first token, by the median's confidence interval."""
    n = len(measurement.samples)
    engine_ms = find_engine_latencies(measurement).ttft_ms
    ttft = metrics.latencies.get("ttft")
    median = ttft.percentiles[50] if ttft else None
    waited = _find_wait(metrics)
    if engine_ms is None or waited is None or median is None or median.low is None or median.high is None:
        why = f"{objective.text()}: no value; the engine's own TTFT is not known, or too few requests were answered"
        return GateVerdict(objective, Outcome.INCONCLUSIVE, None, n, n, 0.0, 1.0, None, None, why)
    added_ms = max(0.0, waited.ms - engine_ms)
    outcome, p_broken = Outcome.INCONCLUSIVE, 1.0
    # Both means are of the same requests, so that their difference has no interval.
    if min(median.low, waited.mean_ms) - engine_ms > objective.limit:
        outcome, p_broken = Outcome.FAIL, 0.0
    elif min(median.high, waited.mean_ms) - engine_ms <= objective.limit:
        outcome = Outcome.PASS
    why = f"{objective.text()}: {added_ms:.0f}, clients wait {waited}, the engine takes {engine_ms:.0f} ms"
    return GateVerdict(objective, outcome, added_ms, n, n, 0.0, p_broken, None, None, why)


def _find_wait(metrics: Metrics) -> ClientWait | None:
    ttft = metrics.latencies.get("ttft")
    return None if ttft is None or ttft.mean is None else ClientWait(ttft.percentiles[50].value, ttft.mean)


def _mean_ms(sums: Sequence[float | None], counts: Sequence[float | None]) -> float | None:
    total, count = increase(sums), increase(counts)
    return None if total is None or not count else 1000 * total / count


def _added_ttft(measurement: Measurement, metrics: Metrics, engine: EngineLatencies) -> Iterator[Finding]:
    waited = _find_wait(metrics)
    if waited is None or engine.ttft_ms is None or not _adds_ttft(measurement, metrics, engine):
        return
    text = (
        f"the way to the engine adds {waited.ms - engine.ttft_ms:.0f} ms to TTFT: clients wait {waited}, the engine "
        f"takes {engine.ttft_ms:.0f} ms"
    )
    yield Finding("gateway_ttft", text, False)


def _adds_ttft(measurement: Measurement, metrics: Metrics, engine: EngineLatencies) -> bool:
    waited = _find_wait(metrics)
    if waited is None or engine.ttft_ms is None:
        return False
    # What the client itself may have added, on a machine that other work keeps busy.
    own_ms = (metrics.lag_p99_ms or 0.0) + (measurement.client.loop_lag_p99_ms or 0.0)
    added_ms = waited.ms - engine.ttft_ms
    return added_ms > max(LEAST_ADDED_MS + own_ms, ADDED_SHARE * engine.ttft_ms)


def _longer_gaps(measurement: Measurement, metrics: Metrics, engine: EngineLatencies) -> Iterator[Finding]:
    gaps = [gap for sample in measurement.samples if sample.failure is None for gap in gaps_s(sample)]
    # Where an event carries several tokens, its gaps are not those between tokens.
    if not gaps or engine.token_gap_ms is None or (metrics.tokens_per_event or 1.0) > 1 + COUNTED_WITHIN:
        return
    seen_ms, own_ms = 1000 * statistics.fmean(gaps), measurement.client.loop_lag_p99_ms or 0.0
    if seen_ms > GAP_FACTOR * engine.token_gap_ms and seen_ms - engine.token_gap_ms > LEAST_GAP_MS + own_ms:
        text = (
            f"tokens reach clients {seen_ms:.0f} ms apart on average, the engine takes {engine.token_gap_ms:.0f} ms "
            "for each"
        )
        yield Finding("gateway_gaps", text, False)


def _held_back(measurement: Measurement, metrics: Metrics, engine: EngineLatencies) -> Iterator[Finding]:
    """Requests that are open for the client, and neither run nor wait in the engine.

    In an open loop their number has to grow: a constant one is a delay, which shows in the time to first token. An
    engine's gauges alone prove nothing: those of fast answers are read between two of them, so clients have to wait
    longer than the engine says, too.
    """
    if not _adds_ttft(measurement, metrics, engine):
        return
    spans = [(sample.sent_s, sample.end_s) for sample in measurement.samples if sample.sent_s is not None]
    until_s = max((sent for sent, _ in spans), default=0.0)
    readings = [one for one in measurement.server if one.running is not None and 0 < one.at_s <= until_s]
    if len(readings) < LEAST_READINGS or statistics.fmean(one.waiting or 0.0 for one in readings) >= 1:
        return
    opened = [sum(sent <= one.at_s < end for sent, end in spans) for one in readings]
    held = [count - (one.running or 0) - (one.waiting or 0) for count, one in zip(opened, readings, strict=True)]
    many = sum(count >= max(LEAST_HELD, HELD_OF_OPEN * among) for count, among in zip(held, opened, strict=True))
    if many < HELD_SHARE * len(held) or (measurement.step.open_loop and not _grows(held)):
        return
    running = statistics.median(one.running or 0.0 for one in readings)
    text = (
        f"requests are held back in front of the engine: {statistics.median(held):.0f} at a time are open for clients "
        f"and unknown to it, while it runs {running:.0f} and none wait: a limit on rate or concurrency, or a delay"
    )
    yield Finding("gateway_limit", text, False)


def _grows(held: Sequence[float]) -> bool:
    third = max(1, len(held) // 3)
    return statistics.fmean(held[-third:]) > GROWTH_FACTOR * statistics.fmean(held[:third]) + 1


def _refused(measurement: Measurement) -> Iterator[Finding]:
    refused = sum(sample.status == 429 for sample in measurement.samples)
    if refused:
        text = f"{refused} of {len(measurement.samples)} requests were refused with 429: a limit in front of the engine"
        yield Finding("gateway_refusals", text, False)

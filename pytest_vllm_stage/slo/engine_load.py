"""How full the engine was during a step: its batch, its queue, and the rate that the two allow."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from pytest_vllm_stage.measurement.samples import Measurement, ServerReading

#: A batch is full from this share of the largest batch observed.
_FULL = 0.9
#: From this usage on, the KV cache takes no further request: blocks of running ones still grow.
_KV_CACHE_FULL = 0.95
#: This share of the readings counts as "always": a reading may fall between two batches.
ALWAYS_SHARE = 0.75
#: Both the ceiling and the capacity are measured to about this factor.
_MEASURED_WITHIN = 1.05
#: The engine's own limit, where the run knows it.
MAX_NUM_SEQS = "max_num_seqs"


@dataclass(frozen=True)
class EngineLoad:
    """The engine's load during a step, by its readings after the first requests were answered.

    Attributes:
        running: Requests in the batch, median; None without readings.
        most_running: The engine's limit where the run knows it, else the largest batch observed.
        batch: The batch that the engine reaches: smaller than its limit where something else keeps requests waiting.
        waiting: Requests in the queue, median.
        waiting_share: Share of the readings in which requests waited.
        kv_cache_full: The KV cache was full nearly all the time.
        always_full: The batch was as large as it ever was, and requests waited, nearly all the time.
        queue_growth_per_s: Slope of the queue's length; None without readings.
        capacity_requests_per_s: The rate that the server reached in the second half; its capacity if it was full.
        ceiling_requests_per_s: The rate that the batch limit allows, `most_running` divided by the time per answer;
            None where the limit is unknown: no request waited, and no configuration names it; or where the server
            reached more, so that the readings missed the full batch.
        answer_s: Median time per answer in the batch: the quickest first token, and the rest of the answer.
    """

    running: float | None = None
    most_running: float | None = None
    batch: float | None = None
    waiting: float | None = None
    waiting_share: float = 0.0
    kv_cache_full: bool = False
    always_full: bool = False
    queue_growth_per_s: float | None = None
    capacity_requests_per_s: float | None = None
    ceiling_requests_per_s: float | None = None
    answer_s: float | None = None

    @property
    def ever_waited(self) -> bool:
        """Whether requests waited in any reading."""
        return self.waiting_share > 0

    def limit_text(self) -> str:
        """How many requests the engine runs at a time, as a clause of a message."""
        runs = f"the engine runs {self.batch:g} at a time"
        if self.batch == self.most_running:
            return runs
        return (
            f"{runs}: its KV cache is full" if self.kv_cache_full else f"{runs}, not the declared {self.most_running:g}"
        )

    def exceeded_by(self, rate: float | None) -> bool:
        """Whether a rate is certainly above the ceiling."""
        ceiling = self.ceiling_requests_per_s
        return rate is not None and ceiling is not None and rate > _MEASURED_WITHIN * ceiling

    def ceiling_text(self) -> str:
        """The ceiling as a clause of a message."""
        return (
            f"a batch of {self.batch:g} with {self.answer_s:.2g} s per answer allows "
            f"{self.ceiling_requests_per_s:.2g} requests/s at most"
        )


def find_engine_load(measurement: Measurement) -> EngineLoad:
    """Derive the load from the engine's readings and the samples."""
    answer_s = _answer_s(measurement)
    until_s = max((sample.scheduled_s for sample in measurement.samples), default=0.0)
    start_s = min(answer_s or 0.0, until_s / 2)
    seen = [
        reading
        for reading in measurement.server
        if reading.running is not None and reading.waiting is not None and start_s < reading.at_s <= until_s
    ]
    declared = measurement.facts.get(MAX_NUM_SEQS)
    capacity = _capacity(measurement, until_s)
    if not seen:
        return EngineLoad(capacity_requests_per_s=capacity, answer_s=answer_s)
    running = [reading.running or 0.0 for reading in seen]
    waiting = [reading.waiting or 0.0 for reading in seen]
    waited = sum(count >= 1 for count in waiting) / len(seen)
    # Replicas, or ranks of data parallelism, have the declared limit each.
    most = max(float(declared or 0), *running)
    # A full KV cache, or another limit than the declared one, keeps a batch below it.
    full = sum(count >= _FULL * max(running) for count in running) / len(seen)
    always_full = min(full, waited) >= ALWAYS_SHARE
    batch = max(running) if always_full and max(running) < _FULL * most else most
    kv_cache = sum((reading.kv_cache_usage or 0.0) >= _KV_CACHE_FULL for reading in seen) / len(seen)
    limited = bool(declared) or waited > 0
    return EngineLoad(
        running=statistics.median(running),
        most_running=most,
        batch=batch,
        waiting=statistics.median(waiting),
        waiting_share=waited,
        kv_cache_full=kv_cache >= ALWAYS_SHARE,
        always_full=always_full,
        queue_growth_per_s=_slope(seen),
        capacity_requests_per_s=capacity,
        ceiling_requests_per_s=_ceiling(batch / answer_s, capacity) if limited and answer_s else None,
        answer_s=answer_s,
    )


def _answer_s(measurement: Measurement) -> float | None:
    """The time per answer in the batch.

    Of a first token only the quickest of the step counts: past capacity nearly every other one has waited.
    """
    rows = [
        (sample.first_token_s - sample.scheduled_s, sample.end_s - sample.scheduled_s)
        for sample in measurement.samples
        if sample.failure is None and sample.first_token_s is not None
    ]
    if not rows:
        return None
    return min(ttft for ttft, _ in rows) + statistics.median(e2e - ttft for ttft, e2e in rows)


def _ceiling(allowed: float, reached: float | None) -> float | None:
    """The rate that the batch allows, never below the rate that the server reached."""
    if reached is None or reached <= allowed:
        return allowed
    return reached if reached <= _MEASURED_WITHIN * allowed else None


def _slope(seen: Sequence[ServerReading]) -> float | None:
    """The slope of the queue's length over time, by least squares."""
    if len(seen) < 4:
        return None
    times, lengths = [reading.at_s for reading in seen], [reading.waiting or 0.0 for reading in seen]
    return statistics.linear_regression(times, lengths).slope


def _capacity(measurement: Measurement, until_s: float) -> float | None:
    """The tokens of the second half, as requests per second; smoother than counting finished requests."""
    half_s = until_s / 2
    tokens = sum(
        sample.tokens / len(sample.token_times_s)
        for sample in measurement.samples
        for at in sample.token_times_s
        if half_s < at <= until_s
    )
    return tokens / half_s / measurement.step.output_tokens if half_s > 0 else None

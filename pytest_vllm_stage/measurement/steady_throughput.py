"""The throughput of a closed loop while every user was busy.

When a closed loop stops sending, its last answers are completed by fewer and fewer users, so that the throughput over
the whole span is too low: the more, the shorter the step and the longer an answer. From the first to the last send no
user is idle.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence

from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.step import LoadStep


def find_steady_throughput(samples: Sequence[Sample], step: LoadStep) -> float | None:
    """Output tokens per second from the first scheduled request to the last send, by the times of the tokens.

    Of an answer that was in progress at the last send its tokens until then count, so at most the time to its first
    token is missing. Failed requests give no tokens.

    Returns:
        None for an open loop, and where no user sent a second request.
    """
    sent = [sample.sent_s for sample in samples if sample.sent_s is not None]
    if step.open_loop or not sent or len(samples) <= (step.concurrency or 0):
        return None
    end_s = max(sent)
    busy_s = end_s - min(sample.scheduled_s for sample in samples)
    if busy_s <= 0:
        return None
    return sum(_tokens_until(sample, end_s) for sample in samples if not sample.failed) / busy_s


def _tokens_until(sample: Sample, at_s: float) -> float:
    """Tokens that had arrived at a time; evenly between the first and the last one where only these are timed."""
    times = sample.token_times_s
    if not times or times[0] > at_s:
        return 0.0
    if times[-1] <= at_s:
        return float(sample.tokens)
    if sample.every_token_timed:
        return sample.tokens * bisect_right(times, at_s) / len(times)
    return 1 + (sample.tokens - 1) * (at_s - times[0]) / (times[-1] - times[0])

"""Stalls: times without any token although answers had begun, or although only requests of common length waited."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_vllm_stage.measurement.samples import Sample

#: Shorter gaps are not a stall, whatever the median gap is.
SHORTEST_STALL_S = 0.5
#: A stall is this many times longer than the median gap between two tokens.
TIMES_MEDIAN_GAP = 10.0
#: Silence before first tokens is a stall only when it lasts this many times longer than the median TTFT.
TIMES_MEDIAN_TTFT = 3.0


@dataclass(frozen=True, slots=True)
class LatencyStall:
    """One stall; gaps of several requests that overlap are the same one.

    Attributes:
        start_s: When it began, from the step's start.
        end_s: When it ended.
    """

    start_s: float
    end_s: float

    @property
    def duration_s(self) -> float:
        return self.end_s - self.start_s


def find_stalls(samples: Sequence[Sample]) -> tuple[LatencyStall, ...]:
    """Every stall of a step, in order.

    There are two signs: a gap between two tokens of one answer, and a silence of all answers while requests wait. The
    second finds stalls between answers, which occur in an open loop and do not show as a gap between tokens.
    """
    gaps = [gap for sample in samples for gap in _gaps(sample)]
    median_gap_s = statistics.median(end - start for start, end in gaps) if gaps else 0.0
    ttfts = [sample.first_token_s - sample.scheduled_s for sample in samples if sample.first_token_s is not None]
    median_ttft_s = statistics.median(ttfts) if ttfts else 0.0
    long_gap_s = max(SHORTEST_STALL_S, TIMES_MEDIAN_GAP * median_gap_s)
    long_silence_s = max(long_gap_s, TIMES_MEDIAN_TTFT * median_ttft_s)
    found = [LatencyStall(start, end) for start, end in gaps if end - start > long_gap_s]
    found += [silence for silence in _silences(samples) if silence.duration_s > long_silence_s]
    return _merged(found)


def _gaps(sample: Sample) -> list[tuple[float, float]]:
    times = sample.token_times_s
    return list(pairwise(times))


def _silences(samples: Sequence[Sample]) -> Iterable[LatencyStall]:
    """Times without any token or end while at least one request was open."""
    marks: list[tuple[float, int]] = []
    for sample in samples:
        if sample.sent_s is not None:
            marks.append((sample.sent_s, 1))
            marks.append((sample.end_s, -1))
            marks.extend((at, 0) for at in sample.token_times_s)
    open_requests, quiet_since = 0, 0.0
    for at, change in sorted(marks):
        if open_requests and change <= 0:
            yield LatencyStall(quiet_since, at)
        if change <= 0 or not open_requests:
            quiet_since = at
        open_requests += change


def _merged(stalls: list[LatencyStall]) -> tuple[LatencyStall, ...]:
    merged: list[LatencyStall] = []
    for stall in sorted(stalls, key=lambda stall: stall.start_s):
        if merged and stall.start_s <= merged[-1].end_s:
            merged[-1] = LatencyStall(merged[-1].start_s, max(merged[-1].end_s, stall.end_s))
        else:
            merged.append(stall)
    return tuple(merged)

"""Stalls of the server: times without any token, although answers had begun or only requests of common length waited.

One answer alone also pauses in a healthy server: its engine computes the prompts of other requests, or preempts it
while the batch is full. So a pause counts where the server as a whole seems to stand still:

- no answer gets a token, and the pause is longer than the prompts that were computed in it explain, or
- answers pause in a regular rhythm while others go on: one of several replicas stops again and again, for example for
  a garbage collection.
"""

from __future__ import annotations

import statistics
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.measurement.statistics import deviation

#: Shorter gaps are not a stall, whatever the median gap is.
SHORTEST_STALL_S = 0.5
#: A stall is this many times longer than the median gap between two tokens.
TIMES_MEDIAN_GAP = 10.0
#: Silence before first tokens is a stall only when it lasts this many times longer than the median TTFT.
TIMES_MEDIAN_TTFT = 3.0
#: The first tokens that end a silence explain so many times the quickest TTFT each.
TIMES_QUICKEST_TTFT = 3.0
#: The tokens of one engine step reach the client within this time, or within two median gaps.
SAME_STEP_S = 0.05
#: So many pauses of single answers, with intervals that vary less than this, are a rhythm.
LEAST_PERIODS = 4
REGULAR_CV = 0.25


@dataclass(frozen=True, slots=True)
class LatencyStall:
    """One stall; pauses of several requests that overlap are the same one.

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
    """Every stall of the server in a step, in order."""
    gaps = [LatencyStall(*gap) for sample in samples for gap in pairwise(sample.token_times_s)]
    median_gap_s = statistics.median(gap.duration_s for gap in gaps) if gaps else 0.0
    long_gap_s = max(SHORTEST_STALL_S, TIMES_MEDIAN_GAP * median_gap_s)
    same_step_s = max(SAME_STEP_S, 2 * median_gap_s)
    ttfts = [sample.first_token_s - sample.scheduled_s for sample in samples if sample.first_token_s is not None]
    median_ttft_s, quickest_s = (statistics.median(ttfts), min(ttfts)) if ttfts else (0.0, 0.0)

    def is_stall(silence: LatencyStall, begun: int) -> bool:
        if silence.duration_s <= long_gap_s:
            return False
        if not begun:
            return silence.duration_s > TIMES_MEDIAN_TTFT * median_ttft_s
        return silence.duration_s > TIMES_QUICKEST_TTFT * quickest_s * _prompts_in(silence, samples, same_step_s)

    found = [silence for silence, begun in _silences(samples) if is_stall(silence, begun)]
    long_gaps = [gap for gap in gaps if gap.duration_s > long_gap_s]
    pauses = _merged(_while_others_go_on(long_gaps, samples, same_step_s)) if long_gaps else ()
    return _merged([*found, *(pauses if _is_regular(pauses) else ())])


def _silences(samples: Sequence[Sample]) -> Iterator[tuple[LatencyStall, int]]:
    """Times without any token or end while a request was open, and how many of the open answers had begun."""
    marks: list[tuple[float, int, int]] = []
    for sample in samples:
        if sample.sent_s is not None:
            marks.append((sample.sent_s, 1, 0))
            marks.append((sample.end_s, -1, -1 if sample.token_times_s else 0))
            marks.extend((at, 0, int(i == 0)) for i, at in enumerate(sample.token_times_s))
    open_requests, begun, quiet_since = 0, 0, 0.0
    for at, opened, began in sorted(marks, key=lambda mark: (mark[0], -mark[2], mark[1])):
        if open_requests and opened <= 0:
            yield LatencyStall(quiet_since, at), begun
        if opened <= 0 or not open_requests:
            quiet_since = at
        open_requests += opened
        begun += began


def _prompts_in(silence: LatencyStall, samples: Sequence[Sample], same_step_s: float) -> int:
    """How many prompts the engine computed in a silence: those that waited when it began, answered when it ended.

    A server that stands still answers the requests sent meanwhile at its end, too; these explain nothing.
    """
    return sum(
        sample.scheduled_s <= silence.start_s + same_step_s
        and sample.first_token_s is not None
        and 0 <= sample.first_token_s - silence.end_s <= same_step_s
        for sample in samples
    )


def _while_others_go_on(
    gaps: Sequence[LatencyStall], samples: Sequence[Sample], same_step_s: float
) -> list[LatencyStall]:
    """The gaps of one answer in which another one got a token."""
    tokens_s = sorted(at_s for sample in samples for at_s in sample.token_times_s)
    return [
        gap
        for gap in gaps
        if bisect_left(tokens_s, gap.end_s - same_step_s) > bisect_right(tokens_s, gap.start_s + same_step_s)
    ]


def _is_regular(stalls: Sequence[LatencyStall]) -> bool:
    every = [later.start_s - earlier.start_s for earlier, later in pairwise(stalls)]
    return len(every) >= LEAST_PERIODS and deviation(every) < REGULAR_CV * statistics.fmean(every)


def _merged(stalls: list[LatencyStall]) -> tuple[LatencyStall, ...]:
    merged: list[LatencyStall] = []
    for stall in sorted(stalls, key=lambda stall: stall.start_s):
        if merged and stall.start_s <= merged[-1].end_s:
            merged[-1] = LatencyStall(merged[-1].start_s, max(merged[-1].end_s, stall.end_s))
        else:
            merged.append(stall)
    return tuple(merged)

"""Whether a stream came while it was generated, judged by the server's own pace and by no clock of ours."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from pytest_vllm_stage.core.busy import read_waited_s
from pytest_vllm_stage.serving.answers import StreamedAnswer

#: A stream of so few pieces of text is one piece cut up: nothing can be said for it.
LEAST_DELTAS = 4
#: Of the whole time from sending to the end, the pieces must cover at least this share; a healthy server covers over
#: 0.8 of it, a buffering hop a thousandth.
LEAST_SHARE = 0.25
#: Gaps under this part of the mean gap are inside one burst.
BURST_GAP = 0.1
#: Where a process waited for a processor in more than this share of a stream, the machine was busy: it may have held
#: server and reader up again and again, each time for a few time slices, which are shorter than `LEAST_BLOCK_S`.
BUSY_SHARE = 0.25
LEAST_BLOCK_S = 0.1
#: A stream whose bursts are fewer than this part of its pieces was collected and passed on in blocks.
LEAST_BURSTS = 0.2


@dataclass(frozen=True)
class Pace:
    """When the pieces of text of one stream arrived; seconds count from the sending of the request.

    Attributes:
        deltas: Pieces of text that are not empty.
        starts: Of each group of pieces that arrived together, which piece was its first.
        first_s: Arrival of the first piece.
        spread_s: From the first piece to the last.
        duration_s: Arrival of the last event; the response may stay open after it, which its pace leaves out.
        busy: Processes of this machine waited for a processor meanwhile.
    """

    deltas: int
    starts: tuple[int, ...]
    first_s: float
    spread_s: float
    duration_s: float
    busy: bool = False

    @property
    def incremental(self) -> bool:
        """The answer came piece by piece."""
        return not self.symptom

    @property
    def is_short(self) -> bool:
        """Too few pieces of text to judge: each has many tokens, or all came as one."""
        return self.deltas < LEAST_DELTAS

    @property
    def symptom(self) -> str:
        """What is wrong with the pace; empty where nothing is."""
        if self.is_short:
            return f"the stream was no stream: its text came in {self.deltas} pieces"
        if self.spread_s < LEAST_SHARE * self.duration_s:
            return (
                f"the stream was buffered: all {self.deltas} deltas arrived within {_span(self.spread_s)} "
                f"after {self.first_s:.2g} s"
            )
        if len(self.starts) < LEAST_BURSTS * self.deltas:
            return (
                f"the stream was buffered in blocks: {self.deltas} deltas arrived in {len(self.starts)} bursts "
                f"over {_span(self.spread_s)}"
            )
        return ""

    @property
    def may_be_time_slices(self) -> bool:
        """The blocks are so short that a busy machine's scheduler may have made them."""
        return self.busy and LEAST_SHARE * self.duration_s <= self.spread_s < LEAST_BLOCK_S * (len(self.starts) - 1)


def are_time_slices(paces: Sequence[Pace]) -> bool:
    """Whether a busy machine explains the blocks of equal streams: what buffers makes the same ones each time."""
    same = set.intersection(*(set(pace.starts[1:]) for pace in paces))
    return not same and all(pace.may_be_time_slices for pace in paces)


def read_pace(ask: Callable[[], StreamedAnswer]) -> Pace:
    """The pace of the stream that a request gets, next to how busy this machine was meanwhile."""
    before_s = read_waited_s()
    answer = ask()
    after_s = read_waited_s()
    return pace_of(answer, after_s - before_s if before_s is not None and after_s is not None else 0.0)


def pace_of(answer: StreamedAnswer, waited_s: float = 0.0) -> Pace:
    """The pace of a stream that was read to its end.

    Args:
        answer: The stream.
        waited_s: For how long meanwhile processes of this machine waited for a processor; see `core.busy`.
    """
    arrivals = [delta.arrived_at for delta in answer.deltas]
    duration_s = (answer.events[-1].arrived_at if answer.events else answer.ended_at) - answer.sent_at
    if not arrivals:
        return Pace(0, (), duration_s, 0.0, duration_s)
    spread_s = arrivals[-1] - arrivals[0]
    least_gap_s = BURST_GAP * spread_s / max(len(arrivals) - 1, 1)
    later = [place for place, (one, next_one) in enumerate(pairwise(arrivals), 1) if next_one - one > least_gap_s]
    busy = waited_s > BUSY_SHARE * duration_s
    return Pace(len(arrivals), (0, *later), arrivals[0] - answer.sent_at, spread_s, duration_s, busy)


def _span(seconds: float) -> str:
    return f"{seconds * 1000:.2g} ms" if seconds < 1 else f"{seconds:.2g} s"

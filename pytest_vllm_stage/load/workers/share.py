"""A worker's share of a step: which of its requests, and which of its users, are the worker's own.

The requests of a step are dealt out to lanes in turn, and the lanes to the workers. An open loop has one lane per
worker; a closed loop has one per user, so that a worker with more users gets more requests. The shares are disjoint,
and together they are exactly what a single driver sends.
"""

from __future__ import annotations

from dataclasses import dataclass

from pytest_vllm_stage.measurement.step import LoadStep


@dataclass(frozen=True)
class Share:
    """One worker's part of every step.

    Attributes:
        worker: The worker's number, from 0.
        workers: How many there are.
    """

    worker: int = 0
    workers: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.worker < self.workers:
            raise ValueError(f"worker {self.worker} of {self.workers}")

    def users(self, step: LoadStep) -> int | None:
        """The worker's users of a closed loop; None for an open loop."""
        if step.concurrency is None:
            return None
        return len(range(self.worker, step.concurrency, self.workers))

    def place(self, step: LoadStep, number: int) -> int:
        """The place in the whole step of the worker's request ``number``, both from 0."""
        lanes = step.concurrency or self.workers
        own = len(range(self.worker, lanes, self.workers))
        turn, lane = divmod(number, own)
        return turn * lanes + self.worker + lane * self.workers

    def places(self, step: LoadStep, requests: int) -> list[int]:
        """The places of all of the worker's requests, ascending, where the whole step has this many."""
        lanes = step.concurrency or self.workers
        return [place for place in range(requests) if place % lanes % self.workers == self.worker]


#: A driver that sends the whole step.
WHOLE = Share()


def count_workers(step: LoadStep, wanted: int) -> int:
    """How many workers have something to send: at most one per user, and one per request."""
    return max(1, min(wanted, step.concurrency or step.planned_requests or 1))

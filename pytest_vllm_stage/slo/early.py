"""Watches a running step and reports when its verdict is certain, by the same boundaries that judge it afterwards."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from itertools import pairwise

from pytest_vllm_stage.measurement.samples import PAST_CAPACITY, Sample
from pytest_vllm_stage.measurement.step import POISSON, LoadStep
from pytest_vllm_stage.slo.decision import ALPHA, Outcome, decide
from pytest_vllm_stage.slo.dependence import find_dependence
from pytest_vllm_stage.slo.gates import PASS_NOT_BEFORE, Risks, SequentialGate, is_sequential, misses_of, values_of
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.steadiness import find_closed_trends, find_trends

#: A step that does not look steady is looked at again after this share of the plan.
LOOK_AGAIN_SHARE = 0.05
#: An error rate of 0 is kept early only from so many requests on: without a failure among n, the true share is below
#: 3 / n (rule of three, confidence 95 %), here below a tenth.
LEAST_WITHOUT_FAILURE = 30
#: Shares of a closed loop's duration at which it may end, and the share of alpha that both looks together may add.
CLOSED_LOOKS = (PASS_NOT_BEFORE, 0.75)
CLOSED_SHARE_OF_ALPHA = 0.02


class EarlyDecision:
    """A watcher for the driver; see `load.driver.Watcher`.

    A step ends early when one objective is broken, or, in its second half, when all are kept and neither the latency
    nor the number of requests in the engine seems to rise. Objectives on an output rate can only be kept over the whole
    step: with one of these a step never passes early. An error rate of 0 is broken by one failure and kept early by
    `LEAST_WITHOUT_FAILURE` requests without any. An observation, of which nothing is promised, also ends when it is
    past capacity: more of it would only lengthen the queue. This may be certain only after the last request was sent.

    Args:
        step: The plan.
        objectives: The step's objectives.
        alpha: The same value as for `judge`.
        gates: The same value as for `judge`.
        observation: Nothing is promised of the step.
    """

    def __init__(
        self,
        step: LoadStep,
        objectives: Sequence[Objective],
        *,
        alpha: float = ALPHA,
        gates: int | None = None,
        observation: bool = False,
    ) -> None:
        risks = Risks.shared(alpha, gates or len(objectives))
        # What a gateway adds is known at the end.
        objectives = [one for one in objectives if one.is_floor or one.is_of_requests]
        planned = step.planned_requests or 1
        self._step = step
        self._objectives = objectives
        self._planned = planned
        self._waiting: dict[int, Sample] = {}
        self._next = 0
        self._taken: list[Sample] = []
        self._look_at = 0
        self._gates = [
            SequentialGate(one, planned, risks, step.arrivals == POISSON)
            for one in objectives
            if is_sequential(step, one)
        ]
        self._strict = [one for one in objectives if not one.is_floor and one.allowed_share <= 0]
        self._has_floor = any(one.is_floor for one in objectives)
        self._enabled = step.decide_early and bool(objectives)
        self._broken = False
        self._least_for_pass = max(PASS_NOT_BEFORE * planned, LEAST_WITHOUT_FAILURE if self._strict else 0)
        self._looks_s = [share * step.duration_s for share in CLOSED_LOOKS]
        self._closed_alpha = CLOSED_SHARE_OF_ALPHA * alpha / len(CLOSED_LOOKS)
        self._backlog = _Backlog(step) if observation and step.open_loop else None

    def __call__(self, sample: Sample) -> str | None:
        """Add a sample, in any order; return what is certain, ``fail``, ``pass`` or ``past capacity``, or None."""
        if not self._enabled:
            return None
        certain = self._find_certain(sample)
        if certain and self._backlog is not None:
            self._backlog.sending_ends(sample.end_s)
        return certain

    def _find_certain(self, sample: Sample) -> str | None:
        self._waiting[sample.index] = sample
        while self._next in self._waiting:
            self._take(self._waiting.pop(self._next))
            self._next += 1
        if not self._step.open_loop:
            return self._certain_in_closed_loop(sample.end_s)
        if self._backlog is not None and self._backlog.grows(sample):
            return PAST_CAPACITY
        return self._certain()

    def _take(self, sample: Sample) -> None:
        self._taken.append(sample)
        for gate in self._gates:
            gate.take(sample)
        self._broken = self._broken or any(sum(misses_of(one, [sample])) > 0 for one in self._strict)

    def _certain(self) -> str | None:
        certain = [gate.outcome for gate in self._gates if gate.certain]
        if self._broken or Outcome.FAIL in certain:
            return Outcome.FAIL.value
        kept = not self._has_floor and len(certain) == len(self._gates) and self._next >= self._least_for_pass
        return Outcome.PASS.value if kept and self._steady() else None

    def _steady(self) -> bool:
        """Whether no trend is likely; checked only now and then, since tokens are being timed meanwhile."""
        if self._next < self._look_at:
            return False
        self._look_at = self._next + max(1, round(LOOK_AGAIN_SHARE * self._planned))
        return not find_trends(self._taken).doubtful

    def _certain_in_closed_loop(self, now_s: float) -> str | None:
        """A closed loop has no planned number of requests to spend alpha over, so it is looked at twice, strictly."""
        if self._broken:
            return Outcome.FAIL.value
        if not self._looks_s or now_s < self._looks_s[0] or self._has_floor:
            return None
        while self._looks_s and now_s >= self._looks_s[0]:
            self._looks_s.pop(0)
        kept = all(map(self._is_kept_in_closed_loop, self._objectives))
        return Outcome.PASS.value if kept and not find_closed_trends(self._taken).rising else None

    def _is_kept_in_closed_loop(self, objective: Objective) -> bool:
        misses, allowed = misses_of(objective, self._taken), objective.allowed_share
        if allowed <= 0:
            return len(misses) >= LEAST_WITHOUT_FAILURE and not any(misses)
        tied = find_dependence(self._taken, open_loop=False)
        effects = tied.design_effects(values_of(objective, self._taken), misses, allowed)
        kept = decide(len(misses), math.fsum(misses), allowed, alpha_pass=self._closed_alpha, design_effects=effects)
        return kept.outcome is Outcome.PASS


class _Backlog:
    """Whether far fewer requests end than arrive, and that is neither a stall nor an engine that still fills.

    While requests are sent, a third of all that arrived is still open, more than arrive in two answers' time. In the
    third and in the fourth quarter of the time so far, clearly fewer requests ended than arrived, although half of the
    time is enough for two answers. Once all are sent, those that are open would have ended within an answer's time;
    after more than that many are open, and in both halves of the time since fewer ended than had arrived before. In
    neither time was there a pause between two ends that explains it; pauses of about one length, time and again, do
    not: an engine that computes large batches ends many requests at once.

    An answer's time is that without the queue, the longest of those that ended: the quickest first token and the rest
    of the answer. A first token may take twice as long once the engine is filled.
    """

    LEAST_S = 3.0
    LEAST_ANSWER_TIMES = 4.0
    MOST_ENDED_SHARE = 0.8
    LEAST_ARRIVED = 10
    LEAST_OPEN_SHARE = 1 / 3
    OPEN_ANSWER_TIMES = 2.0
    LEFT_ANSWER_TIMES = 1.25
    LEAST_SINCE_S = 2.0
    LONGEST_PAUSE_SHARE = 0.2
    ALIKE_SHARE = 2 / 3
    PAUSES_OF_BATCHES = 3

    def __init__(self, step: LoadStep) -> None:
        self._schedule_s = step.schedule_s()
        self._rate = step.request_rate or 0.0
        self._sent_until_s = step.duration_s
        self._ends_s: list[float] = []
        self._quickest_s = math.inf
        self._rest_s = 0.0

    def sending_ends(self, at_s: float) -> None:
        """No request is sent any more."""
        self._sent_until_s = min(self._sent_until_s, at_s)

    def grows(self, sample: Sample) -> bool:
        """Add a sample when it ends; whether the backlog grows, or grew while requests were sent."""
        now_s, first_s = sample.end_s, sample.first_token_s
        self._ends_s.append(now_s)
        if first_s is not None and sample.failure is None:
            self._quickest_s = min(self._quickest_s, first_s - sample.scheduled_s)
            self._rest_s = max(self._rest_s, now_s - first_s)
        answer_s = 2 * self._quickest_s + self._rest_s
        if now_s <= self._sent_until_s:
            return self._grows_while_sending(now_s, answer_s)
        return self._is_left_after_sending(now_s, answer_s)

    def _grows_while_sending(self, now_s: float, answer_s: float) -> bool:
        if now_s < max(self.LEAST_S, self.LEAST_ANSWER_TIMES * answer_s):
            return False
        arrived = bisect_right(self._schedule_s, now_s)
        least = max(self.LEAST_OPEN_SHARE * arrived, self.OPEN_ANSWER_TIMES * self._rate * answer_s)
        return (
            arrived - len(self._ends_s) > least
            and self._falls_behind(now_s / 2, 0.75 * now_s)
            and self._falls_behind(0.75 * now_s, now_s)
            and not self._stood_still(now_s / 2, now_s, self.LONGEST_PAUSE_SHARE * now_s)
        )

    def _falls_behind(self, from_s: float, until_s: float) -> bool:
        arrived, ended = (_count_between(times, from_s, until_s) for times in (self._schedule_s, self._ends_s))
        return arrived >= self.LEAST_ARRIVED and ended < self.MOST_ENDED_SHARE * arrived

    def _is_left_after_sending(self, now_s: float, answer_s: float) -> bool:
        from_s = self._sent_until_s
        since_s = now_s - from_s
        left = bisect_right(self._schedule_s, from_s) - len(self._ends_s)
        if left < self.LEAST_ARRIVED or since_s < max(self.LEAST_SINCE_S, self.LEFT_ANSWER_TIMES * answer_s):
            return False
        middle_s, most = now_s - since_s / 2, self.MOST_ENDED_SHARE * self._rate * since_s / 2
        return (
            _count_between(self._ends_s, from_s, middle_s) < most
            and _count_between(self._ends_s, middle_s, now_s) < most
            and not self._stood_still(from_s, now_s, self.LONGEST_PAUSE_SHARE * since_s)
        )

    def _stood_still(self, from_s: float, until_s: float, most_s: float) -> bool:
        """Whether no request ended for longer than that, and not because all end in batches."""
        ends_s = self._ends_s[bisect_right(self._ends_s, from_s) : bisect_right(self._ends_s, until_s)]
        longest_s = max(b - a for a, b in pairwise((from_s, *ends_s, until_s)))
        if longest_s <= most_s:
            return False
        alike = sum(b - a >= self.ALIKE_SHARE * longest_s for a, b in pairwise(self._ends_s))
        return alike < self.PAUSES_OF_BATCHES


def _count_between(times_s: Sequence[float], from_s: float, until_s: float) -> int:
    return bisect_right(times_s, until_s) - bisect_right(times_s, from_s)

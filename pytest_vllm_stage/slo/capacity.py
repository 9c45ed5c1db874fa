"""The highest request rate that meets the objectives: a search over short steps, as a state machine without any I/O.

The search doubles or halves the start rate until one rate holds and a higher one does not, then bisects
(geometrically) until the two are close. Each step is judged with alpha divided by the maximum number of steps, so that
the whole bracket is right with probability 1 - alpha: no rate up to `Capacity.holds` passed wrongly, and none from
`Capacity.breaks` on failed wrongly.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from pytest_vllm_stage.slo.decision import ALPHA, Outcome, smallest_pass
from pytest_vllm_stage.slo.objectives import Objective

#: A bracket is close enough when its ends differ by this factor.
RESOLUTION = 1.1
MOST_STEPS = 10
SHORTEST_STEP_S = 20.0
#: The capacity that an overloaded step shows is above the rate that meets a latency: the next rate is this share of it.
_BELOW_SHOWN = 0.9


@dataclass(frozen=True)
class Capacity:
    """What a search found.

    Attributes:
        holds: The highest rate whose objectives were shown kept; None if there was none.
        breaks: The lowest rate whose objectives were shown broken, or that stayed undecided; None if there was none.
        undecided: ``breaks`` is a rate that stayed undecided, not one that was shown broken.
        shown_broken: The lowest rate whose objectives were shown broken; None if there was none.
        confidence: Confidence in the whole bracket.
        steps: Number of steps that were run.
        ended: Why the search ended.
    """

    holds: float | None
    breaks: float | None
    undecided: bool
    shown_broken: float | None
    confidence: float
    steps: int
    ended: str

    def text(self, promise: float | None = None) -> str:
        """One line, with the profile's promised rate where there is one."""
        promised = f"; the profile promises {promise:g}" if promise is not None else ""
        above = f", {self.shown_broken:.3g} breaks the SLO" if self.shown_broken is not None else ""
        how = f"is undecided{above}" if self.undecided else "breaks the SLO"
        upper = f", {self.breaks:.3g} {how}" if self.breaks is not None else ", no upper limit was found"
        lower = "no rate was shown to hold" if self.holds is None else f"{self.holds:.3g} requests/s hold"
        return f"capacity: {lower}{upper} ({100 * self.confidence:g} % confidence, {self.steps} steps){promised}"


@dataclass
class CapacitySearch:
    """Call `next_rate`, run a step at that rate and `record` its outcome, until there is no next rate.

    Attributes:
        start: The first rate, in requests per second; the profile's limit is a good one.
        resolution: The search ends when the bracket's ends differ by no more than this factor.
        most_steps: The search also ends after this many steps.
        alpha: Probability that the bracket is wrong.
    """

    start: float
    resolution: float = RESOLUTION
    most_steps: int = MOST_STEPS
    alpha: float = ALPHA
    _holds: float | None = None
    _breaks: float | None = None
    _undecided: bool = False
    _shown_broken: float | None = None
    _hint: float | None = None
    _retry: float | None = None
    _retried: set[float] = field(default_factory=set)
    _steps: int = 0
    _ended: str = ""

    @property
    def step_alpha(self) -> float:
        """The alpha for judging each step."""
        return self.alpha / self.most_steps

    def step_duration_s(self, rate: float, objectives: Sequence[Objective]) -> float:
        """The shortest step that can pass with one miss."""
        shares = [o.allowed_share for o in objectives if o.is_of_requests and o.allowed_share > 0]
        needs = max((smallest_pass(share, 1, self.step_alpha) for share in shares), default=1)
        return max(SHORTEST_STEP_S, math.ceil(needs / rate))

    def next_rate(self) -> float | None:
        """The rate to try; None when the search has ended."""
        if self._steps >= self.most_steps and not self._ended:
            self._ended = f"the limit of {self.most_steps} steps was reached"
        if self._ended:
            return None
        retry, self._retry = self._retry, None
        if retry is not None:
            return retry
        if self._holds is None and self._breaks is None:
            return self.start
        if self._breaks is None:
            return (self._holds or self.start) * 2
        if self._holds is None:
            return self._hinted(0.0) or self._breaks / 2
        if self._breaks / self._holds <= self.resolution:
            self._ended = "the bracket is close enough"
            return None
        return self._hinted(self._holds) or math.sqrt(self._holds * self._breaks)

    def _hinted(self, above: float) -> float | None:
        """The rate that an overloaded step suggested, once, if it is well inside the bracket."""
        hint, self._hint = self._hint, None
        inside = hint is not None and above * self.resolution < hint < (self._breaks or math.inf) / self.resolution
        return hint if inside else None

    def record(self, rate: float, outcome: Outcome, shown_capacity: float | None = None) -> None:
        """Record a step's outcome.

        Args:
            rate: The step's rate.
            outcome: Its verdict. Undecided and invalid steps are retried once; then an undecided rate counts as not
                holding, and an invalid one ends the search.
            shown_capacity: The capacity that an overloaded step showed; see `saturation.Saturation`.
        """
        self._steps += 1
        if outcome is Outcome.PASS:
            self._holds = max(rate, self._holds or 0.0)
            return
        if outcome is not Outcome.FAIL and rate not in self._retried:
            self._retried.add(rate)
            self._retry = rate
            return
        if outcome is Outcome.INVALID:
            self._ended = f"{rate:g} requests/s could not be measured"
            return
        if outcome is Outcome.FAIL:
            self._shown_broken = min(rate, self._shown_broken or math.inf)
        if self._breaks is None or rate < self._breaks:
            self._breaks, self._undecided = rate, outcome is Outcome.INCONCLUSIVE
        self._hint = shown_capacity * _BELOW_SHOWN if shown_capacity else None

    def result(self) -> Capacity:
        """What is known so far; also valid when the search was aborted."""
        ended = self._ended or "the search was aborted"
        return Capacity(
            self._holds, self._breaks, self._undecided, self._shown_broken, 1 - self.alpha, self._steps, ended
        )

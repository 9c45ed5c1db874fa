"""An undecided step is measured once more: for how long, and at what risk.

A shared machine that pauses for a second can leave a healthy step undecided, and a strict run fails for that. The
second measurement starts afresh, with other prompts, and is judged by itself; the first is kept and not counted. It is
a second chance to be wrong, so it gets a part of the first one's alpha on top: by the union bound both together pass a
broken objective, and fail a healthy run, with probability at most (1 + `SECOND_SHARE_OF_ALPHA`) alpha. An invalid
measurement decides nothing, and has spent nothing.

Not measured again is what would stay undecided: a step whose plan has too few requests for any pass, of which
`benchmark.undecidable` reports beforehand, and one without a miss that needs more requests than the longest has.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from pytest_vllm_stage.measurement.samples import UNDECIDED_BEFORE
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.slo.decision import ALPHA, SECOND_SHARE_OF_ALPHA, Outcome, smallest_pass
from pytest_vllm_stage.slo.gates import GateVerdict
from pytest_vllm_stage.slo.verdict import StepVerdict

#: What makes a measurement invalid by no fault of the plan or the server: this machine was busy for a moment.
_CLIENT_FINDINGS = frozenset({"client_late", "client_slow", "rate_not_sent"})
#: How many times as long as planned it is measured then: among more requests a late one weighs less.
_TIMES_IF_LATE = 2.0


def find_second_duration_s(step: LoadStep, verdict: StepVerdict, longest_s: float) -> float | None:
    """Seconds for which an undecided step is measured once more; None where it is decided, or would stay undecided.

    Args:
        step: The step as it was planned.
        verdict: The first verdict.
        longest_s: The most seconds of a second measurement; less than the planned duration forbids one.
    """
    if longest_s < step.duration_s:
        return None
    if verdict.outcome is Outcome.INVALID:
        wrong = {finding.name for finding in verdict.findings if finding.invalidates}
        return min(longest_s, _TIMES_IF_LATE * step.duration_s) if wrong <= _CLIENT_FINDINGS else None
    undecided = [gate for gate in verdict.gates if gate.outcome is Outcome.INCONCLUSIVE]
    if verdict.outcome is not Outcome.INCONCLUSIVE or not verdict.gates:
        return None
    if any(_stays(step, gate, longest_s) for gate in undecided):
        return None
    times = max((_times(gate) for gate in undecided), default=math.inf)
    return min(longest_s, max(1.0, times) * step.duration_s)


def second_alpha(first: StepVerdict) -> float:
    """The alpha of the second measurement."""
    return ALPHA if first.outcome is Outcome.INVALID else SECOND_SHARE_OF_ALPHA * ALPHA


def note_second(first: StepVerdict) -> Mapping[str, Any]:
    """The fact of a second measurement: that it is one, and what the first one was."""
    return {UNDECIDED_BEFORE: {"outcome": first.outcome.value, "why": first.why}}


def _stays(step: LoadStep, gate: GateVerdict, longest_s: float) -> bool:
    """A second measurement would not decide it, since there is no value, or there are too few requests in any case."""
    if gate.observed is None:
        return True
    if not _is_counted(gate):
        return False
    planned = step.planned_requests
    too_few = planned is not None and planned < smallest_pass(gate.objective.allowed_share)
    return too_few or (not gate.misses and _times(gate, misses=0) * step.duration_s > longest_s)


def _times(gate: GateVerdict, *, misses: int = 1) -> float:
    """How many times the first measurement's requests decide with so many misses; infinite where no number would."""
    if gate.needs is None or not _is_counted(gate):
        return math.inf
    design_effect = gate.n / max(1, gate.effective_n)
    least = smallest_pass(gate.objective.allowed_share, misses, SECOND_SHARE_OF_ALPHA * ALPHA)
    return max(gate.needs, design_effect * least) / gate.n


def _is_counted(gate: GateVerdict) -> bool:
    """Misses are counted, and some are allowed."""
    return gate.objective.is_of_requests and gate.objective.allowed_share > 0

"""The regression gate: a tenth slower than the baseline, and still so when measured twice more.

A run is suspicious when a metric is 1.10 times worse than the median of the last ten accepted runs; it is a regression
when the mean of two reruns is too. With 5 % noise between runs this flags 1 % of the healthy builds and finds four in
five of those that are 20 % slower; a comparison with the last run would flag every second healthy one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from pytest_vllm_stage.measurement.statistics import readable_number

WORSE = 1.10
HISTORY = 10
#: With fewer accepted runs the median is too uncertain.
LEAST_HISTORY = 3
RERUNS = 2


class State(StrEnum):
    """The gate's state of a metric or a run."""

    OK = "ok"
    IMPROVED = "improved"
    SUSPICIOUS = "suspicious"
    REGRESSION = "regression"
    NO_BASELINE = "no-baseline"
    INVALID = "invalid"


@dataclass(frozen=True)
class RegressionGate:
    """The gate's result for one metric.

    Attributes:
        metric: Its name.
        state: Its state.
        fails: It fails the run: a regression, or a gated metric that is missing.
        value: The judged value; the reruns' mean where there were reruns. None where it is missing.
        baseline: Median of the last accepted runs; None where there are too few.
        why: The numbers in a sentence.
    """

    metric: str
    state: State
    fails: bool
    value: float | None
    baseline: float | None
    why: str


def higher_is_better(metric: str) -> bool:
    """Whether the metric is an output rate; all other metrics are better when lower."""
    return metric.endswith("_per_s")


def how_much_worse(metric: str, value: float, baseline: float) -> float:
    """Above 1 where the value is worse than the baseline: 1.10 for a tenth."""
    if higher_is_better(metric):
        return math.inf if value <= 0 else baseline / value
    return value / baseline if baseline > 0 else (math.inf if value > 0 else 1.0)


def gate(
    metric: str,
    value: float | None,
    history: Sequence[float],
    *,
    reruns: Sequence[float] = (),
    valid: bool = True,
    worse: float = WORSE,
) -> RegressionGate:
    """Judge one metric of a run.

    Args:
        metric: Its name, as in `Metrics.flat`.
        value: This run's value; None where it is missing.
        history: The values of the accepted comparable runs, oldest first.
        reruns: The values of the reruns that were made because this run was suspicious.
        valid: The measurement is valid.
        worse: The factor from which a value is too much worse.
    """
    if not valid:
        return RegressionGate(metric, State.INVALID, False, value, None, f"{metric}: the measurement is invalid")
    if value is None:
        return RegressionGate(metric, State.INVALID, True, None, None, f"{metric}: the gated metric is missing")
    last = list(history)[-HISTORY:]
    if len(last) < LEAST_HISTORY:
        why = f"{metric}: {readable_number(value)}; {len(last)} of {LEAST_HISTORY} accepted comparable runs"
        return RegressionGate(metric, State.NO_BASELINE, False, value, None, why)
    baseline = statistics.median(last)
    judged = statistics.fmean(reruns) if len(reruns) >= RERUNS else value
    ratio = how_much_worse(metric, judged, baseline)
    state = _state(how_much_worse(metric, value, baseline), ratio, len(reruns) >= RERUNS, worse)
    runs = f"the mean of {len(reruns)} reruns after {readable_number(value)}" if len(reruns) >= RERUNS else "this run"
    why = (
        f"{metric}: {readable_number(judged)} ({runs}), "
        f"baseline {readable_number(baseline)} (median of {len(last)}): {ratio:.2f} times as bad"
    )
    return RegressionGate(metric, state, state is State.REGRESSION, judged, baseline, why)


def _state(first: float, judged: float, rerun: bool, worse: float) -> State:
    if first > worse and not rerun:
        return State.SUSPICIOUS
    if first > worse and judged > worse:
        return State.REGRESSION
    return State.IMPROVED if judged < 1 / worse else State.OK


def gate_all(
    metrics: Mapping[str, float | None],
    gated: Sequence[str],
    history: Sequence[Mapping[str, float]],
    *,
    reruns: Sequence[Mapping[str, float | None]] = (),
    valid: bool = True,
    worse: float = WORSE,
) -> tuple[RegressionGate, ...]:
    """Judge every gated metric of a run; runs of the history that lack a metric are left out for it."""
    gates = []
    for name in gated:
        past = [run[name] for run in history if name in run]
        again = [value for run in reruns if (value := run.get(name)) is not None]
        gates.append(gate(name, metrics.get(name), past, reruns=again, valid=valid, worse=worse))
    return tuple(gates)


def worst(gates: Sequence[RegressionGate]) -> State:
    """The most serious state."""
    order = (State.REGRESSION, State.INVALID, State.SUSPICIOUS, State.NO_BASELINE, State.IMPROVED, State.OK)
    return min((gate.state for gate in gates), key=order.index, default=State.NO_BASELINE)


def accepts(gates: Sequence[RegressionGate]) -> bool:
    """Whether later runs may be compared with this one."""
    return all(gate.state in (State.OK, State.IMPROVED, State.NO_BASELINE) for gate in gates)

"""Waiting: a named condition, a timeout, the last observed state, and an early end where nothing can heal."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from pytest_vllm_stage.core.errors import StageError, WaitFailed
from pytest_vllm_stage.core.journal import Journal


@dataclass(frozen=True)
class Observation:
    """The result of one observation of the awaited condition.

    Attributes:
        done: The condition holds.
        state: The state in a few words, for progress and for the error.
        fatal: Why the condition can no longer be reached without outside help; None while it can.
    """

    done: bool
    state: str
    fatal: str | None = None


def wait_until(
    what: str,
    look: Callable[[], Observation],
    *,
    timeout_s: float,
    journal: Journal,
    interval_s: float = 1.0,
    error: type[StageError] = WaitFailed,
    hint: str = "",
) -> float:
    """Observe until the condition holds; return the seconds it took, which the journal records too.

    Args:
        what: The condition in kubectl's words, for example ``inferenceservice/smollm2 condition=Ready``.
        look: One observation; it must not block for long, and raises only for errors that waiting cannot fix.
        timeout_s: Seconds until the wait fails.
        journal: Records the wait's duration and reports progress.
        interval_s: Seconds between two observations.
        error: The type raised on failure: `WaitFailed` for the stage, `EnvironmentUnusable` for its environment.
        hint: What to run next, for the error.

    Raises:
        StageError: of type ``error``, when an observation is fatal or the deadline passes; it names the last state.
    """
    with journal.activity(f"waiting for {what}", total_s=timeout_s, limit=True) as activity:
        while True:
            seen = look()
            waited_s = activity.elapsed_s
            if seen.done:
                journal.event("wait", what, duration_s=round(waited_s, 3), outcome="done", state=seen.state)
                return waited_s
            if seen.fatal or waited_s >= timeout_s:
                outcome = "fatal" if seen.fatal else "timeout"
                journal.event("wait", what, duration_s=round(waited_s, 3), outcome=outcome, state=seen.state)
                reason = seen.fatal or f"not reached within {timeout_s:g} s"
                raise error(f"{what}: {reason}\n  last state after {waited_s:.1f} s: {seen.state}", hint=hint)
            activity.update(seen.state, announce=True)
            time.sleep(min(interval_s, max(timeout_s - waited_s, 0.01)))

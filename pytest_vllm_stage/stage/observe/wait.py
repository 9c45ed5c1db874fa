"""The one way to wait for a set of conditions: each in its own time, and all at an end where one cannot heal."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pytest_vllm_stage.cluster.api_errors import ApiServerUnreachable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.observe import diagnose, runbook
from pytest_vllm_stage.stage.observe.reader import Condition, ConditionStatus, StageReader
from pytest_vllm_stage.stage.observe.trouble import Trouble

#: Seconds between looks; a shared API server is asked less often than one of the run's own.
LOOK_INTERVAL_S = {"local": 0.5, "kubeconfig": 2.0}
#: Looks at an API server that does not answer before that is the answer.
UNANSWERED_LOOKS = 20


def wait_for_all(view: StageReader, conditions: Sequence[Condition], journal: Journal) -> None:
    """Wait until every condition holds; each one's duration goes into the journal under its own name.

    Raises:
        WaitFailed: a condition cannot be reached, or was not in its own time; the first line names cause and object.
    """
    if conditions:
        group = _Group(view, conditions, journal)
        longest = max(condition.timeout_s for condition in conditions)
        wait_until(
            f"namespace/{view.namespace}",
            group.look,
            timeout_s=longest + 30,
            journal=journal,
            interval_s=LOOK_INTERVAL_S[view.cluster.kind],
            hint=f"{view.cluster.kubectl_for(view.namespace)} get pods,events",
        )


class _Group:
    """The look that `wait_until` takes at several conditions at once."""

    def __init__(self, view: StageReader, conditions: Sequence[Condition], journal: Journal) -> None:
        self._view, self._conditions, self._journal = view, conditions, journal
        self._started = time.monotonic()
        self._done: set[str] = set()
        self._seen: dict[str, tuple[str, int]] = {}
        self._unanswered = 0

    def look(self) -> Observation:
        """See what is not done yet; the first condition that cannot come true ends it."""
        try:
            self._view.events = self._view.listed("Event")
            states = [self._look_at(condition) for condition in self._conditions if condition.what not in self._done]
        except ApiServerUnreachable as error:
            self._unanswered += 1
            fatal = str(error) if self._unanswered >= UNANSWERED_LOOKS else None
            return Observation(False, error.message, fatal)
        self._unanswered = 0
        fatal = next((state.fatal for state in states if state.fatal), None)
        said = "; ".join(state.state for state in states if not state.done) or "all reached"
        return Observation(all(state.done for state in states), said, fatal)

    def _look_at(self, condition: Condition) -> Observation:
        sight = condition.look(self._view)
        waited_s = time.monotonic() - self._started
        if sight.done:
            self._done.add(condition.what)
            self._record(condition, waited_s, "done", sight.state)
            return Observation(True, sight.state)
        expired = waited_s >= condition.timeout_s
        fatal = self._fatal(condition, sight, expired)
        if fatal:
            self._record(condition, waited_s, "timeout" if expired else "fatal", sight.state)
        return Observation(False, f"{condition.what.partition(' ')[0]}: {sight.state}", fatal)

    def _fatal(self, condition: Condition, sight: ConditionStatus, expired: bool) -> str | None:
        cause = sight.trouble.cause if sight.trouble else ""
        before, looks = self._seen.get(condition.what, ("", 0))
        looks = looks + 1 if cause and before == cause else 1
        self._seen[condition.what] = (cause, looks)
        if not expired and (sight.trouble is None or looks < sight.trouble.looks):
            return None
        found = sight.trouble or _too_late(condition, sight)
        warnings = diagnose.warnings_about(sight.about, self._view.events)
        return f"{condition.failing}: {diagnose.explain(found, self._view.logs, warnings)}"

    def _record(self, condition: Condition, waited_s: float, outcome: str, state: str) -> None:
        self._journal.event("wait", condition.what, duration_s=round(waited_s, 3), outcome=outcome, state=state)


def _too_late(condition: Condition, sight: ConditionStatus) -> Trouble:
    """Nothing is known to be wrong, but the time is up: the log of what is not Ready says how far it came."""
    cause = f"not within {condition.timeout_s:g} s: {sight.state}{_last_condition(sight)}"
    for pod in sight.about:
        for container in (pod.get("status") or {}).get("containerStatuses") or [] if pod.get("kind") == "Pod" else []:
            if not container.get("ready") and "running" in (container.get("state") or {}):
                return Trouble(cause, objects.name_of(pod), container["name"])
    return Trouble(cause)


def _last_condition(sight: ConditionStatus) -> str:
    """The condition of the object itself that says why it is not there yet."""
    for entry in (sight.about[0].get("status") or {}).get("conditions") or [] if sight.about else []:
        if entry.get("status") == "False" and entry.get("message"):
            return f"; {entry.get('type')}: {entry.get('reason', '')}: {runbook.cut(str(entry['message']))}"
    return ""

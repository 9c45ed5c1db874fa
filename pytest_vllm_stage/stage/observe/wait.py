"""Waits for a set of conditions, each with its own timeout; stops early where one can no longer be reached."""

from __future__ import annotations

import time
from collections.abc import Sequence

from pytest_vllm_stage.cluster.api_errors import ApiServerUnreachable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.drift import SERVING_CONTAINER
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import diagnose, messages, runbook
from pytest_vllm_stage.stage.observe.reader import Condition, ConditionStatus, StageReader
from pytest_vllm_stage.stage.observe.trouble import Trouble

#: Seconds between observations; a shared API server is polled less often than the run's own.
OWN_INTERVAL_S, SHARED_INTERVAL_S = 0.5, 2.0
#: Observations of an unresponsive API server before the wait fails.
MOST_UNANSWERED = 20


def wait_for_all(reader: StageReader, conditions: Sequence[Condition], journal: Journal) -> None:
    """Wait until every condition holds; the journal records each one's duration under its own name.

    Raises:
        WaitFailed: a condition cannot be reached, or was not in its own time; the first line names cause and object.
    """
    if conditions:
        group = _Group(reader, conditions, journal)
        longest = max(condition.timeout_s for condition in conditions)
        wait_until(
            f"namespace/{reader.namespace}",
            group.observe,
            timeout_s=longest + 30,
            journal=journal,
            interval_s=OWN_INTERVAL_S if reader.cluster.owned else SHARED_INTERVAL_S,
            hint=f"{reader.cluster.kubectl_for(reader.namespace)} get pods,events",
        )


class _Group:
    """Observes several conditions at once for `wait_until`."""

    def __init__(self, reader: StageReader, conditions: Sequence[Condition], journal: Journal) -> None:
        self._reader, self._conditions, self._journal = reader, conditions, journal
        self._started = time.monotonic()
        self._done: set[str] = set()
        self._seen: dict[str, tuple[str, int]] = {}
        self._unanswered = 0

    def observe(self) -> Observation:
        """Observe what is not done yet; the first condition that can no longer be reached ends the wait."""
        try:
            self._reader.events = self._reader.listed("Event")
            states = [
                self._observe_one(condition) for condition in self._conditions if condition.what not in self._done
            ]
        except ApiServerUnreachable as error:
            self._unanswered += 1
            fatal = str(error) if self._unanswered >= MOST_UNANSWERED else None
            return Observation(False, error.message, fatal)
        self._unanswered = 0
        fatal = next((state.fatal for state in states if state.fatal), None)
        said = "; ".join(state.state for state in states if not state.done) or "all reached"
        return Observation(all(state.done for state in states), said, fatal)

    def _observe_one(self, condition: Condition) -> Observation:
        status = condition.observe(self._reader)
        waited_s = time.monotonic() - self._started
        if status.done:
            self._done.add(condition.what)
            self._record(condition, waited_s, "done", status.state)
            return Observation(True, status.state)
        expired = waited_s >= condition.timeout_s
        fatal = self._fatal(condition, status, expired)
        if fatal:
            self._record(condition, waited_s, "timeout" if expired else "fatal", status.state)
        return Observation(False, f"{condition.what.partition(' ')[0]}: {status.state}", fatal)

    def _fatal(self, condition: Condition, status: ConditionStatus, expired: bool) -> str | None:
        cause = status.trouble.cause if status.trouble else ""
        before, observations = self._seen.get(condition.what, ("", 0))
        observations = observations + 1 if cause and before == cause else 1
        self._seen[condition.what] = (cause, observations)
        if not expired and (status.trouble is None or observations < status.trouble.times):
            return None
        warnings = diagnose.warnings_about(status.subjects, self._reader.events)
        found = status.trouble or _explain_timeout(condition, status, warnings, self._reader.logs)
        return f"{condition.failing}: {diagnose.explain(found, self._reader.logs, warnings)}"

    def _record(self, condition: Condition, waited_s: float, outcome: str, state: str) -> None:
        self._journal.event("wait", condition.what, duration_s=round(waited_s, 3), outcome=outcome, state=state)


def _explain_timeout(
    condition: Condition, status: ConditionStatus, warnings: Sequence[Object], logs: diagnose.Logs
) -> Trouble:
    """The timeout expired without a known cause: the last condition, event and log line that are about the object."""
    cause = f"not within {condition.timeout_s:g} s: {status.state}{_last_condition(status)}"
    events = diagnose.event_lines(warnings)
    cause += f"; last event: {events[-1]}" if events else ""
    for pod in status.subjects:
        found = _find_unready_container(pod) if pod.get("kind") == "Pod" else None
        if found:
            lines = logs(objects.name_of(pod), found, False)
            last = messages.last_error(lines) or next(iter(runbook.informative_lines(lines, 1)), "")
            cause += f"; last log line of container {found}: {last}" if last else f"; container {found} logs nothing"
            return Trouble(cause, objects.name_of(pod), found)
    return Trouble(cause)


def _find_unready_container(pod: Object) -> str | None:
    """A container that runs and is not Ready: one that initialises the pod, the serving one, or another one."""
    status = pod.get("status") or {}
    containers = sorted(status.get("containerStatuses") or [], key=lambda one: one.get("name") != SERVING_CONTAINER)
    for container in [*(status.get("initContainerStatuses") or []), *containers]:
        if not container.get("ready") and "running" in (container.get("state") or {}):
            return str(container["name"])
    return None


def _last_condition(status: ConditionStatus) -> str:
    """The object's own condition that explains why it is not ready yet."""
    for entry in (status.subjects[0].get("status") or {}).get("conditions") or [] if status.subjects else []:
        if entry.get("status") == "False" and entry.get("message"):
            return f"; {entry.get('type')}: {entry.get('reason', '')}: {runbook.cut(str(entry['message']))}"
    return ""

"""Waits for a cluster's programs and its node, and explains why one does not get ready."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path

from pytest_vllm_stage.cluster.local import record as records
from pytest_vllm_stage.cluster.local import removal, status
from pytest_vllm_stage.cluster.local.api import CALL_FAILED, BootstrapApi, BootstrapCallRejected
from pytest_vllm_stage.cluster.local.layout import Layout
from pytest_vllm_stage.cluster.local.pki import NODE_NAME
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until

_INTERVAL_S = 0.1
_LOG_LINES = 12


class Watch:
    """Observes one cluster while it starts.

    Args:
        layout: The cluster's layout.
        journal: Records the waits.
    """

    def __init__(self, layout: Layout, journal: Journal) -> None:
        self._layout = layout
        self._journal = journal

    def programs(self, *names: str, timeout_s: float) -> None:
        """Wait until the named programs, or all where none is named, are ready at the same time.

        Raises:
            EnvironmentUnusable: one ended too often, or was not ready in time; with the last lines of its log.
        """
        what = f"{', '.join(names) or 'all programs'} ready"
        self._wait(
            what, lambda: self._observe_programs(names), lambda: (*self._late(names), "supervisor")[0], timeout_s
        )

    def node(self, api: BootstrapApi, timeout_s: float) -> None:
        """Wait until the node is Ready.

        Raises:
            EnvironmentUnusable: it was not; with the last lines of the kubelet's log.
        """
        what = f"node/{NODE_NAME} condition=Ready"
        self._wait(what, lambda: self._observe_node(api), lambda: "kubelet", timeout_s)

    def bootstrap(self, task: Callable[[], None]) -> None:
        """Run a task that calls the API server.

        Raises:
            EnvironmentUnusable: a call failed; with why the cluster ended, or the last lines of the API server's log.
        """
        try:
            task()
        except (BootstrapCallRejected, *CALL_FAILED) as error:
            why = self._fatal(status.read(self._layout.programs)) or f"{error!r}{self._tail('kube-apiserver')}"
            raise EnvironmentUnusable(f"local cluster: a call to its API server failed: {why}") from error

    def record_times(self) -> None:
        """Record when each program was started and ready, in seconds since the first was started."""
        states = status.read(self._layout.programs)
        started = [state.started_at for state in states.values() if state.started_at]
        for name, state in states.items():
            if state.started_at and state.ready_at:
                self._journal.event(
                    "component",
                    name,
                    started_s=round(state.started_at - min(started), 3),
                    ready_s=round(state.ready_at - min(started), 3),
                    starts=state.starts,
                )

    def _wait(self, what: str, look: Callable[[], Observation], whose: Callable[[], str], timeout_s: float) -> None:
        """Wait; an error shows the log that its reason names, or the one that ``whose`` names after a timeout."""
        try:
            wait_until(
                what,
                look,
                timeout_s=timeout_s,
                journal=self._journal,
                interval_s=_INTERVAL_S,
                error=EnvironmentUnusable,
            )
        except EnvironmentUnusable as error:
            tail = "" if "\n  log: " in error.message else self._tail(whose())
            raise EnvironmentUnusable(f"local cluster: {error.message}{tail}", hint=error.hint) from None

    def _observe_programs(self, names: tuple[str, ...]) -> Observation:
        states = status.read(self._layout.programs)
        late = self._late(names)
        described = ", ".join(f"{name} {states.get(name, status.ProgramState()).describe()}" for name in late)
        return Observation(bool(states) and not late, described or "ready", self._fatal(states))

    def _late(self, names: tuple[str, ...]) -> list[str]:
        states = status.read(self._layout.programs)
        ready = {name for name, state in states.items() if state.ready_at is not None}
        return [name for name in names or states if name not in ready]

    def _observe_node(self, api: BootstrapApi) -> Observation:
        fatal = self._fatal(status.read(self._layout.programs))
        try:
            node = api.get(f"/api/v1/nodes/{NODE_NAME}")
        except BootstrapCallRejected as error:
            return Observation(False, "not registered" if error.status == 404 else error.message, fatal)
        except CALL_FAILED as error:
            return Observation(False, f"no answer from the API server: {error!r}", fatal)
        ready = next(item for item in node["status"]["conditions"] if item["type"] == "Ready")
        return Observation(ready["status"] == "True", str(ready["message"]), fatal)

    def _fatal(self, states: dict[str, status.ProgramState]) -> str | None:
        """Why waiting cannot succeed: a program failed permanently, or the cluster ended."""
        for name, state in states.items():
            if state.failed:
                return f"{name} {state.describe()}{self._tail(name)}"
        record = records.load(self._layout.state_dir)
        if record is None or record.phase == "ending" or not (record.supervisor and record.supervisor.alive()):
            reason = record.reason if record and record.reason else "see its log"
            return f"the cluster ended: {reason}{self._tail('supervisor')}"
        return None

    def _tail(self, name: str) -> str:
        log = removal.log_of(self._layout.state_dir, name)
        return "".join(f"\n    {line}" for line in last_lines(log, _LOG_LINES)) + f"\n  log: {log}"


def last_lines(path: Path, count: int) -> list[str]:
    """The end of a text file, each line cut to a readable length; empty where there is none."""
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            return [line.rstrip()[:300] for line in deque(file, count)]
    except FileNotFoundError:
        return []

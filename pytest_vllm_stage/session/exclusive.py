"""Whose turn it is: load steps have the endpoints to themselves, everything else may run side by side.

A readers/writer lock of the machine is held around each test that reaches the stage, in whichever xdist worker: shared
by ordinary tests, alone by load steps. Who held it, and when, goes into the journal, so that the record can prove that
nothing ran beside a step.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_vllm_stage.core.errors import ENVIRONMENT_EXIT_CODE, ConfigError
from pytest_vllm_stage.core.paths import cache_dir
from pytest_vllm_stage.run.context import Run

#: Marks a load step: it runs alone, and after everything that is no load.
LOAD = "load"
#: Marks what reads the results of the load steps: it runs after all of them.
AFTER_LOAD = "after_load"
#: As long as a run may take; whoever waits longer says for whom.
WAIT_S = 4 * 3600.0
#: A run whose journal says nothing for so long has no load steps to come: a worker was stopped (``-x``) or died.
IDLE_S = 1800.0
_POLL_S = 0.05
_TELL_EVERY_S = 30.0


class ExclusiveAccess:
    """Registered in controller and workers alike."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loads: list[str] = []

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put load steps after everything else, and what reads their results after them."""
        items.sort(key=_place)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember which load steps this run has."""
        self._loads = [item.nodeid for item in session.items if _place(item) == 1]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Hold the lock while a test that reaches the stage is set up, called and torn down."""
        place = _place(item)
        if "stage_run" not in getattr(item, "fixturenames", ()):
            return (yield)
        if place == 2:
            self._wait_for_loads()
        with self._turn(item.nodeid, alone=place == 1):
            return (yield)

    @contextmanager
    def _turn(self, nodeid: str, *, alone: bool) -> Iterator[None]:
        path = _lock_path(self._run)
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            self._lock(descriptor, nodeid, alone=alone)
            began = time.time()
            try:
                yield
            finally:
                self._note(nodeid, began, alone=alone)
        finally:
            os.close(descriptor)

    def _lock(self, descriptor: int, nodeid: str, *, alone: bool) -> None:
        kind = fcntl.LOCK_EX if alone else fcntl.LOCK_SH
        started = told = time.monotonic()
        while not _taken(descriptor, kind):
            now = time.monotonic()
            if now - started > WAIT_S:
                _give_up(f"{nodeid} waited for its turn; tests that hold it: fuser {_lock_path(self._run)}", WAIT_S)
            if now - told > _TELL_EVERY_S and self._run.active:
                told = now
                self._run.journal.say(f"{nodeid} waits for its turn: other tests are at the endpoints")
            time.sleep(_POLL_S)

    def _note(self, nodeid: str, began: float, *, alone: bool) -> None:
        # A load step's turn is noted in any case: others wait for it.
        if alone or self._run.active:
            self._run.journal.event("turn", nodeid, alone=alone, began_at=began, ended_at=time.time())

    def _wait_for_loads(self) -> None:
        """Wait, before taking the lock, until every load step of the run had its turn, in any worker."""
        from pytest_vllm_stage.core.journal import read_events

        started, path = time.time(), self._run.journal_path
        while self._loads:
            events = read_events(path)
            had = {event["name"] for event in events if event["kind"] == "turn" and event["alone"]}
            missing = [nodeid for nodeid in self._loads if nodeid not in had]
            if not missing:
                return
            heard = max(started, path.stat().st_mtime) if path.exists() else started
            if time.time() - heard > IDLE_S:
                _give_up(f"{len(missing)} load steps never had their turn, the first of them {missing[0]}", IDLE_S)
            time.sleep(1.0)


def _place(item: pytest.Item) -> int:
    """0 ordinary, 1 load step, 2 what reads their results."""
    if item.get_closest_marker(AFTER_LOAD):
        return 2
    return 1 if item.get_closest_marker(LOAD) else 0


def _taken(descriptor: int, kind: int) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _give_up(why: str, waited_s: float) -> None:
    pytest.exit(f"{why} (after {waited_s / 60:g} minutes)", ENVIRONMENT_EXIT_CODE)


def _lock_path(run: Run) -> Path:
    """One file for all runs of this user that reach the same endpoints: a second run on a stage waits its turn."""
    name = hashlib.sha256(_endpoints_of(run).encode()).hexdigest()[:16]
    return cache_dir() / "turns" / f"{name}.lock"


def _endpoints_of(run: Run) -> str:
    config = run.config
    if config.endpoint:
        return config.endpoint.rstrip("/")
    if config.get("reuse"):
        from pytest_vllm_stage.session import kept

        try:
            return kept.find(config.text("reuse")).run_id
        except ConfigError:
            return run.run_id  # the test that asks for the stage says what is wrong
    # A local cluster is the run's own.
    return run.run_id if config.cluster_kind == "local" else f"{config.get('context')}/{config.namespace}"

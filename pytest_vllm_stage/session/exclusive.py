"""Serialises load tests: each has exclusive access to the endpoints, all other tests may run concurrently.

A readers/writer lock of the machine is held around each test that uses the stage, in any xdist worker: shared by
ordinary tests, exclusive for load tests. The journal records each access with its time, so that the record can prove
that no other test ran during a load step. Simulated engines answer at times that are declared, however busy the machine
is: there each model has a lock of its own, and load tests of different models run side by side.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.core.paths import cache_dir
from pytest_vllm_stage.run.context import Run
from pytest_vllm_stage.session.access_lock import remove_unused, try_lock
from pytest_vllm_stage.session.lanes import find_role

#: Marks a load test: it runs exclusively, after all other tests.
LOAD = "load"
#: Marks a test that reads the results of the load tests: it runs after all of them.
AFTER_LOAD = "after_load"
#: Marks a test that disrupts the stage: it runs exclusively, after everything else.
DISRUPTIVE = "disruptive"
#: The longest that a test may wait for the lock.
WAIT_S = 4 * 3600.0
#: After so long without an event in the journal no load test will follow: a worker was stopped (``-x``) or died.
IDLE_S = 1800.0
_POLL_S = 0.05
_REPORT_EVERY_S = 30.0


class ExclusiveAccess:
    """Registered in the controller and in the workers."""

    def __init__(self, run: Run) -> None:
        self._run = run
        self._loads: list[str] = []
        self._before_disruptions: list[str] = []
        self._denied: EnvironmentUnusable | None = None

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Put load tests after all others, then the tests that read their results, then those that disrupt."""
        items.sort(key=_place)

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Remember which load tests this run has, and what runs before the first disruption."""
        places = [(item, _place(item)) for item in session.items]
        self._loads = [item.nodeid for item, place in places if place == 1]
        if any(place == 3 and _disrupts(item) for item, place in places):
            self._before_disruptions = [item.nodeid for item, place in places if place < 3 and uses_stage(item)]

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        """Hold the lock during set-up, call and teardown of a test that uses the stage."""
        place = _place(item)
        if self._denied or not uses_stage(item) or (place == 3 and not _disrupts(item)):
            return (yield)
        exclusive = place in (1, 3)
        try:
            if place == 2:
                self._wait_for(self._loads, "load tests")
            elif place == 3:
                self._wait_for(self._before_disruptions, "tests before the disruptions")
            role = self._load_role(item)
            descriptors = self._acquire(item.nodeid, role, exclusive=exclusive)
        except EnvironmentUnusable as error:
            self._denied = error
            return (yield)
        with self._recorded(descriptors, item.nodeid, role, exclusive=exclusive):
            return (yield)

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_setup(self, item: pytest.Item) -> None:
        """Fail the test that did not get the lock, and all later ones that need it."""
        if self._denied and uses_stage(item):
            raise self._denied

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Remove the lock's file, and those that killed runs left."""
        if self._run.active and not hasattr(session.config, "workerinput"):
            remove_unused(_locks())

    def _load_role(self, item: pytest.Item) -> str:
        """The only model that the test uses exclusively; empty where it needs all of them."""
        if not self._run.config.simulated or _place(item) != 1:
            return ""
        return find_role(item.nodeid, self._run.config.roles)

    def _acquire(self, nodeid: str, role: str, *, exclusive: bool) -> list[int]:
        paths = _lock_paths(self._run, role)
        started = reported = time.monotonic()
        while (descriptors := _try_locks(paths, exclusive=exclusive)) is None:
            now = time.monotonic()
            if now - started > WAIT_S:
                raise EnvironmentUnusable(
                    f"{nodeid} did not get access to the endpoints within {WAIT_S / 60:g} minutes: other tests hold it",
                    hint=f"fuser -v {shlex.join(map(str, paths))} # the processes that hold it",
                )
            if now - reported > _REPORT_EVERY_S and self._run.active:
                reported = now
                self._run.journal.say(f"{nodeid} waits: other tests are using the endpoints")
            time.sleep(_POLL_S)
        return descriptors

    @contextmanager
    def _recorded(self, descriptors: list[int], nodeid: str, role: str, *, exclusive: bool) -> Iterator[None]:
        began = time.time()
        try:
            yield
        finally:
            # What others wait for is recorded in any case.
            if exclusive or self._before_disruptions or self._run.active:
                ended = time.time()
                only = {"role": role} if role else {}
                self._run.journal.event("access", nodeid, exclusive=exclusive, began_at=began, ended_at=ended, **only)
            _release(descriptors)

    def _wait_for(self, earlier: list[str], what: str) -> None:
        """Wait, before taking the lock, until each of the earlier tests has had access, in any worker."""
        from pytest_vllm_stage.core.journal import read_events

        started, path = time.time(), self._run.journal_path
        while earlier:
            done = {event["name"] for event in read_events(path) if event["kind"] == "access"}
            missing = [nodeid for nodeid in earlier if nodeid not in done]
            if not missing:
                return
            last_event = max(started, path.stat().st_mtime) if path.exists() else started
            if time.time() - last_event > IDLE_S:
                raise EnvironmentUnusable(
                    f"{len(missing)} {what} never ran, the first of them {missing[0]}: "
                    f"the run recorded nothing for {IDLE_S / 60:g} minutes",
                    hint="look for a worker that crashed or was stopped in the output above, and run again",
                )
            time.sleep(1.0)


def _place(item: pytest.Item) -> int:
    """0 for an ordinary test, 1 for a load test, 2 for a test that reads their results, 3 for one that disrupts."""
    if item.get_closest_marker(DISRUPTIVE):
        return 3
    if item.get_closest_marker(AFTER_LOAD):
        return 2
    return 1 if item.get_closest_marker(LOAD) else 0


def uses_stage(item: pytest.Item) -> bool:
    """Whether a fixture of the item needs the run's stage or endpoint."""
    return "stage_run" in getattr(item, "fixturenames", ())


def _disrupts(item: pytest.Item) -> bool:
    """Whether it does something: without --stage-disrupt the suite is a single skipped test."""
    return _place(item) == 3 and not item.get_closest_marker("skip")


def _lock_paths(run: Run, role: str) -> list[Path]:
    """One file for all runs of this user with the same endpoints: a second run on a stage waits for the first.

    A simulated stage has one for each model, of which a test of one role takes only that role's.
    """
    name = hashlib.sha256(_endpoints_of(run).encode()).hexdigest()[:16]
    models = ([role] if role else sorted(run.config.roles)) if run.config.simulated else []
    return [_locks() / f"{name}-{model}.lock" for model in models] or [_locks() / f"{name}.lock"]


def _try_locks(paths: list[Path], *, exclusive: bool) -> list[int] | None:
    """The descriptors that hold all locks; None, and nothing is held, where others hold one."""
    held: list[int] = []
    for path in paths:
        descriptor = try_lock(path, exclusive=exclusive)
        if descriptor is None:
            _release(held)
            return None
        held.append(descriptor)
    return held


def _release(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _locks() -> Path:
    return cache_dir() / "access"


def _endpoints_of(run: Run) -> str:
    config = run.config
    if config.endpoint:
        return config.endpoint.rstrip("/")
    if config.reuse:
        from pytest_vllm_stage.session import kept

        try:
            return kept.find(config.reuse).run_id
        except ConfigError:
            return run.run_id  # the fixture `stage` raises it
    if config.creates_cluster:  # it belongs to one run
        return run.run_id
    return f"{config.context or config.cluster_kind}/{config.namespace}"

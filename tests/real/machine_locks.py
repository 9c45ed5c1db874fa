"""Readers/writer locks of this machine, which the workers of all test runs share."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from pytest_vllm_stage.cluster.local.locking import SLOTS_VARIABLE
from pytest_vllm_stage.core.paths import cache_dir

#: More than the workers of a test run ever have.
CLUSTERS_AT_MOST = "16"


@contextmanager
def lock_machine(name: str, *, exclusive: bool) -> Iterator[None]:
    """Hold a lock, alone or with others."""
    folder = cache_dir() / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / f"{name}-queue.lock").open("w") as queue, (folder / f"{name}.lock").open("w") as lock:
        # The queue is held while waiting for the lock, so that readers cannot overtake a waiting writer.
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(lock, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


@contextmanager
def starting_cluster() -> Iterator[None]:
    """Held while a cluster starts, which takes both cores: the waits for two that start together end too early."""
    with lock_machine("cluster-start", exclusive=True):
        yield


class ClusterPermit:
    """This process's permission to have local clusters, next to those of other workers or alone on this machine.

    It outlives the test that acquires it, since clusters do; the end of the process releases it.
    """

    def __init__(self) -> None:
        self._held = ExitStack()
        self._exclusive: bool | None = None

    def acquire(self, *, exclusive: bool) -> None:
        """Wait until no other process has clusters, or until none needs to be alone."""
        if self._exclusive is exclusive:
            return
        self.release()
        self._held.enter_context(lock_machine("clusters", exclusive=exclusive))
        self._exclusive = exclusive
        if exclusive:
            os.environ.pop(SLOTS_VARIABLE, None)
        else:
            os.environ[SLOTS_VARIABLE] = CLUSTERS_AT_MOST

    def release(self) -> None:
        """Let others have clusters."""
        self._held.close()
        self._exclusive = None

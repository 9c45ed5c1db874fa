"""Distributes the tests of tests/real to xdist's workers: one worker runs all that need a local cluster.

One cluster at a time is what a machine is meant to have, and its tests look at the whole machine; the tests of
MinIO, the registry's stand-in, GuideLLM, a browser and a real engine run meanwhile in the other worker.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]
CLUSTER = "cluster"
#: How a file of tests comes to have a cluster: it starts one, or uses the shared one.
_HAS_CLUSTER = re.compile(r"^from pytest_vllm_stage\.cluster import .*\blocal\b|\bsimulated_cluster\b", re.M)


class LanesScheduling(LoadScopeScheduling):  # type: ignore[misc] # xdist has no type hints
    """xdist's load distribution with lanes in place of classes; lanes start in the order of their first tests."""

    def _split_scope(self, nodeid: str) -> str:
        return find_lane(nodeid)


def find_lane(nodeid: str) -> str:
    """The lane of a test: the cluster's, its file in tests/real, or itself alone."""
    file = nodeid.partition("::")[0]
    if not file.startswith("tests/real/"):
        return nodeid
    return CLUSTER if needs_cluster(ROOT / file) else file


@functools.cache
def needs_cluster(file: Path) -> bool:
    """Whether a file of tests has a local cluster."""
    return bool(_HAS_CLUSTER.search(file.read_text(encoding="utf-8")))


def make_scheduler(config: pytest.Config, log: Producer) -> LanesScheduling | None:
    """The distribution for a run that may include tests of tests/real; None leaves xdist's own."""
    if "not real" in (config.getoption("-m") or ""):
        return None
    config.option.loadscopereorder = False
    return LanesScheduling(config, log)


def find_place(item: pytest.Item) -> int:
    """Where a test runs: the cluster's lane, which takes longest, starts first and ends with those that share one."""
    if item.get_closest_marker("real") is None:
        return 0
    if not needs_cluster(item.path):
        return 3
    return 2 if "simulated_cluster" in getattr(item, "fixturenames", ()) else 1

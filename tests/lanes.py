"""Distributes the tests of tests/real to xdist's workers by lanes: the tests of a lane run in one worker, in order.

Some tests look at the whole machine, and no cluster of another test may exist meanwhile: their lane is the first one,
and the other workers begin with files that have no cluster. The clusters that follow run side by side.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.workermanage import WorkerController

ROOT = Path(__file__).parents[1]
REAL = "tests/real/"
MACHINE = "machine"
#: The lanes with clusters, the longest first after the machine's, and their files in the order in which they run. Files
#: of one lane share the fixture `simulated_cluster`; `kind_standin` takes KServe away from it, and is its last one.
CLUSTER_LANES = {
    MACHINE: ("cluster_local", "cluster_local_ends"),
    "kept": ("stage_simulated",),
    "shared": ("access_roles", "forward_tls", "lookalike", "planted_drift", "registry_standin_deployed"),
    "shared too": ("probe_faults", "resilience_faults", "unschedulable", "kind_standin"),
    "tekton": ("tekton",),
    "faults": ("stage_faults",),
}
#: Files without a cluster that take longest; one test of GuideLLM waits until no other one runs.
LONG = ("guidellm", "publication", "gateway_defects", "registry_faults", "report_browser", "workbench")
#: How a file of tests comes to have a cluster: it starts one, or uses the shared one.
_HAS_CLUSTER = re.compile(r"^from pytest_vllm_stage\.cluster import .*\blocal\b|\bsimulated_cluster\b", re.M)


class LanesScheduling(LoadScopeScheduling):  # type: ignore[misc] # xdist has no type hints
    """xdist's load distribution with lanes in place of classes; lanes start in the order of their first tests."""

    def _split_scope(self, nodeid: str) -> str:
        return find_lane(nodeid)

    def _assign_work_unit(self, node: WorkerController) -> None:
        """Assign the next lane, or while the machine's lane runs the next one without a cluster."""
        if any(False in lanes.get(MACHINE, {}).values() for lanes in self.assigned_work.values()):
            apart = next((lane for lane in self.workqueue if not has_clusters(lane)), None)
            if apart is not None:
                self.workqueue.move_to_end(apart, last=False)
        super()._assign_work_unit(node)


def has_clusters(lane: str) -> bool:
    """Whether the tests of a lane have clusters."""
    return lane in CLUSTER_LANES or (lane.startswith(REAL) and needs_cluster(ROOT / lane))


def find_lane(nodeid: str) -> str:
    """The lane of a test: its cluster's, its file in tests/real, or itself alone."""
    file = nodeid.partition("::")[0]
    if not file.startswith(REAL):
        return nodeid
    return find_cluster_lane(Path(file)) or file


def find_cluster_lane(file: Path) -> str:
    """The lane of a file with clusters; empty where it has none, or is not planned."""
    return next((lane for lane, names in CLUSTER_LANES.items() if _name_of(file) in names), "")


def _name_of(file: Path) -> str:
    return file.stem.removeprefix("test_")


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


def find_place(file: Path) -> tuple[int, int]:
    """Where the tests of a file in tests/real run: lanes with clusters, then the longest files, then the others."""
    name, planned = _name_of(file), [name for names in CLUSTER_LANES.values() for name in names]
    if name in planned:
        return 0, planned.index(name)
    if needs_cluster(file):
        return 1, 0
    return (2, LONG.index(name)) if name in LONG else (3, 0)

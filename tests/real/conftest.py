"""Servers for tests of publishing, which start when a test asks for them; and the machine alone, for what is timed."""

from __future__ import annotations

from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.publication.links import RegisteredNames
from pytest_vllm_stage.publication.publishing import PublicationTarget
from pytest_vllm_stage.publication.registry.client import RegistryClient
from tests import lanes
from tests.real import live_stage, servers
from tests.real.machine_locks import ClusterPermit, lock_machine
from tests.real.publishing import LABELS
from tests.unit.made_objects import service as made_service
from tests.unit.made_results import SERVICE

CLUSTERS = ClusterPermit()


@pytest.fixture(scope="session")
def simulated_cluster() -> Iterator[ClusterFacts]:
    """A worker's local cluster for stages with the simulated engine; each file deploys to a namespace of its own."""
    with live_stage.running_simulated_cluster("shared") as cluster:
        yield cluster


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the real tests after the others, in the order of their lanes."""
    items.sort(key=lambda item: lanes.find_place(item.path) if item.get_closest_marker("real") else (-1, 0))


@pytest.fixture
def undisturbed() -> None:
    """No test of another xdist worker runs during a test that uses this; it is for tests that compare times."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Generator[None, object, object]:
    """Hold this machine's locks: that of clusters, and from set-up to teardown that of tests that compare times."""
    if lanes.needs_cluster(item.path):
        CLUSTERS.acquire(exclusive=is_alone(item))
    with lock_machine("machine", exclusive="undisturbed" in getattr(item, "fixturenames", ())):
        result = yield
    if is_alone(item) and not is_alone(nextitem):
        CLUSTERS.release()
    return result


def is_alone(item: pytest.Item | None) -> bool:
    """Whether a test looks at the whole machine, so that no other test may have a cluster."""
    return item is not None and lanes.find_cluster_lane(item.path) == lanes.MACHINE


@pytest.fixture(scope="module")
def minio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.MinioServer]:
    with servers.minio(tmp_path_factory.mktemp("minio")) as server:
        yield server


@pytest.fixture(scope="module")
def standin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.Standin]:
    with servers.standin(tmp_path_factory.mktemp("standin")) as server:
        yield server


@pytest.fixture
def journal(tmp_path: Path) -> Journal:
    return Journal(tmp_path / "journal.jsonl")


@pytest.fixture
def place(minio: servers.MinioServer, standin: servers.Standin, journal: Journal) -> Iterator[PublicationTarget]:
    standin.reset()
    registry = RegistryClient(standin.url, journal, patience_s=3.0)
    yield PublicationTarget(
        registry, minio.new_bucket(), RegisteredNames(SERVICE, "w4a16"), made_service(SERVICE, labels=LABELS), journal
    )
    registry.close()

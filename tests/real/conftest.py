"""Servers for tests of publishing, which start when a test asks for them; and the machine alone, for what is timed."""

from __future__ import annotations

import fcntl
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import cache_dir
from pytest_vllm_stage.publication.links import RegisteredNames
from pytest_vllm_stage.publication.publishing import PublicationTarget
from pytest_vllm_stage.publication.registry.client import RegistryClient
from tests import lanes
from tests.real import live_stage, servers
from tests.real.publishing import LABELS
from tests.unit.made_objects import service as made_service
from tests.unit.made_results import SERVICE


@pytest.fixture(scope="session")
def simulated_cluster() -> Iterator[ClusterFacts]:
    """A local cluster for stages with the simulated engine; each file of tests deploys to a namespace of its own."""
    with live_stage.running_simulated_cluster("shared") as cluster:
        yield cluster


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that share a cluster after those that start one: one cluster is there at a time."""
    items.sort(key=lanes.find_place)


@pytest.fixture
def undisturbed() -> None:
    """No test of another xdist worker runs during a test that uses this; it is for tests that compare times."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    """Hold a readers/writer lock of the machine from set-up to teardown, as a writer for `undisturbed`."""
    with _machine_lock(exclusive="undisturbed" in getattr(item, "fixturenames", ())):
        return (yield)


@contextmanager
def _machine_lock(*, exclusive: bool) -> Iterator[None]:
    folder = cache_dir() / "tests"
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "queue.lock").open("w") as queue, (folder / "machine.lock").open("w") as machine:
        # The queue is held while waiting for the machine, so that readers cannot overtake a waiting writer.
        fcntl.flock(queue, fcntl.LOCK_EX)
        fcntl.flock(machine, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH)
        fcntl.flock(queue, fcntl.LOCK_UN)
        yield


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
    registry = RegistryClient(standin.url, journal, patience_s=1.0)
    yield PublicationTarget(
        registry, minio.new_bucket(), RegisteredNames(SERVICE, "w4a16"), made_service(SERVICE, labels=LABELS), journal
    )
    registry.close()

"""Servers for tests of publishing; they start when a test asks for them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.publication.links import RegisteredNames
from pytest_vllm_stage.publication.publishing import PublicationTarget
from pytest_vllm_stage.publication.registry.client import RegistryClient
from tests.real import servers
from tests.real.publishing import LABELS
from tests.unit.made_objects import service as made_service
from tests.unit.made_results import SERVICE


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

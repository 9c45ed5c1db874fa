"""A model's entries in the registry and the bucket, read again for each test: a check judges the present state."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage import StageFailure
from pytest_vllm_stage.run.context import RUN

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

    from pytest_vllm_stage import Bucket, ClusterFacts, Publication, RegistryClient, Run, StageConfig, StageFacts
    from pytest_vllm_stage.publication.bucket.stored import StoredRun
    from pytest_vllm_stage.publication.document import Results
    from pytest_vllm_stage.publication.links import RegisteredNames
    from pytest_vllm_stage.publication.registry.client import Entity
    from pytest_vllm_stage.stage.revision import Revision

    Object = dict[str, Any]


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Do not collect the checks of this run's own publication where it publishes nothing."""
    if collection_path.name != "test_publishing.py":
        return None
    return not config.stash[RUN].config.publishes or None


@dataclass(frozen=True)
class Filed:
    """A model and its version in the registry, as they are now.

    Attributes:
        model: The registered model.
        version: Its version.
        properties: The version's custom properties.
    """

    model: Entity
    version: Entity
    properties: dict[str, Any]


@pytest.fixture
def service(kube: DynamicClient, stage: StageFacts, stage_config: StageConfig, model_role: str) -> Object:
    """The model's InferenceService."""
    from pytest_vllm_stage.stage import objects

    name = stage_config.profile.models[model_role].inference_service
    found = objects.get(kube, "InferenceService", name, stage.namespace)
    assert found is not None, f"InferenceService {name} does not exist in namespace {stage.namespace}"
    return found


@pytest.fixture
def names(stage_run: Run, service: Object, model_role: str) -> RegisteredNames:
    """Model and version under which its results are filed."""
    from pytest_vllm_stage.publication.publish_run import resolve_names

    return resolve_names(stage_run, model_role, service)


@pytest.fixture
def filed(
    publication: Publication, registry_client: RegistryClient, names: RegisteredNames, stage: StageFacts
) -> Filed:
    """Model and version by their exact names.

    Skips where the stage is this run's own and has neither, since nothing was measured: an existing one must have them.
    """
    from pytest_vllm_stage.publication.registry import entities

    model = entities.find_model(registry_client, names.model)
    version = entities.find_version(registry_client, model, names.version) if model else None
    others = [entity["name"] for entity in entities.list_versions(registry_client, model)] if model else []
    if model is None or version is None:
        missing = f"model {names.model}" if model is None else f"version {names.version} of model {names.model}"
        text = f"{missing} is not registered; existing versions: {', '.join(others) or 'none'}"
        if publication.own is None and stage.owned and not others:
            pytest.skip(f"{text}: {publication.skipped}")
        raise StageFailure(text, hint=f"curl {registry_client.models_url}")
    return Filed(model, version, dict(version.get("customProperties") or {}))


@pytest.fixture
def results_run(filed: Filed, publication: Publication) -> str:
    """The run whose results the version carries; skips where no run has published any."""
    from pytest_vllm_stage.publication import properties
    from pytest_vllm_stage.publication.registry.values import text_of

    run = text_of(filed.properties, properties.RUN)
    ours = sorted(properties.ours(filed.properties))
    if not ours and publication.own is None:
        pytest.skip(f"version {filed.version['name']} carries no results: {publication.skipped}")
    assert run, (
        f"version {filed.version['name']} of model {filed.model['name']} has no string property {properties.RUN}; its "
        f"result properties: {', '.join(ours) or 'none'}"
    )
    return run


@pytest.fixture
def stored(filed: Filed, results_run: str, results_bucket: Bucket) -> StoredRun:
    """The files under the artifact URI of the version's results."""
    from pytest_vllm_stage.publication import properties
    from pytest_vllm_stage.publication.bucket.stored import read_run
    from pytest_vllm_stage.publication.registry.values import text_of

    uri = text_of(filed.properties, properties.URI)
    assert uri, f"the results of run {results_run} have no string property {properties.URI}"
    return read_run(results_bucket, uri)


@pytest.fixture
def document(stored: StoredRun) -> Results:
    """The results' document in the artifact."""
    from pytest_vllm_stage.publication.publishing import read_document

    try:
        return read_document(stored)
    except StageFailure as error:
        raise StageFailure("\n  ".join([error.message, *stored.findings]), hint=error.hint) from None


@pytest.fixture
def running(cluster: ClusterFacts, kube: DynamicClient, stage: StageFacts, service: Object) -> Revision:
    """The running revision of the service."""
    from pytest_vllm_stage import StageReader
    from pytest_vllm_stage.stage import revision

    return revision.running(StageReader(kube, cluster, stage.namespace), service)

"""The objects that the deployment checks read, fetched again for each test: a check judges the current state."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage import does_not_apply

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

    from pytest_vllm_stage import ClusterFacts, StageConfig, StageFacts, StageReader

    Object = dict[str, Any]


@pytest.fixture
def reader(kube: DynamicClient, cluster: ClusterFacts, stage: StageFacts) -> StageReader:
    """The stage's namespace in its current state, with its events."""
    from pytest_vllm_stage import StageReader

    seen = StageReader(kube, cluster, stage.namespace)
    seen.events = seen.listed("Event")
    return seen


@pytest.fixture
def kubectl(cluster: ClusterFacts, stage: StageFacts, stage_config: StageConfig) -> str:
    """The start of a command that a person can run against this stage, also when the run is over."""
    if stage.owned and stage_config.keep == "never":  # the run removes it, and a local cluster with it
        return f"with --stage-keep=on-failure, kubectl -n {stage.namespace}"
    return cluster.kubectl_for(stage.namespace)


@pytest.fixture
def declared_service(declared: list[Object], stage_config: StageConfig, model_role: str) -> Object:
    """The model's InferenceService as its manifest declares it."""
    from pytest_vllm_stage.stage.deploy import render

    name = stage_config.profile.models[model_role].inference_service
    found = render.named(declared, "InferenceService", name)
    assert found is not None, f"overlay {stage_config.profile.overlay.name} declares no InferenceService {name}"
    return found


@pytest.fixture
def declared_runtime(declared: list[Object], declared_service: Object) -> Object:
    """The ServingRuntime that the model's manifest names."""
    from pytest_vllm_stage.stage import drift
    from pytest_vllm_stage.stage.deploy import render

    name = drift.runtime_name(declared_service)
    found = render.named(declared, "ServingRuntime", name)
    assert found is not None, f"the manifests name ServingRuntime {name or '(none)'} but do not declare it"
    return found


@pytest.fixture
def service(reader: StageReader, declared_service: Object, kubectl: str) -> Object:
    """The model's live InferenceService."""
    name = declared_service["metadata"]["name"]
    found = reader.get("InferenceService", name)
    assert found is not None, f"InferenceService {name} does not exist\n  next: {kubectl} get inferenceservices"
    return found


@pytest.fixture
def pods(reader: StageReader, service: Object) -> list[Object]:
    """The model's live pods."""
    return reader.listed("Pod", {"serving.kserve.io/inferenceservice": service["metadata"]["name"]})


@pytest.fixture
def serving_pods(reader: StageReader, declared: list[Object], kubectl: str) -> list[Object]:
    """The live pods of the declared Deployments and models."""
    from pytest_vllm_stage.checks.stage import members

    found = members.select_pods(reader.listed("Pod"), declared)
    assert found, f"no pod of the stage runs\n  next: {kubectl} get pods"
    return found


@pytest.fixture
def download(declared: list[Object], declared_service: Object) -> Object:
    """The declared Job that fills the model's volume; a model that KServe fetches itself has none."""
    from pytest_vllm_stage.stage import drift

    if drift.claim_name(declared_service) is None:
        does_not_apply(f"the model of {declared_service['metadata']['name']} is on no volume of the stage (storageUri)")
    jobs = [item for item in drift.find_model_objects(declared, declared_service) if item["kind"] == "Job"]
    assert len(jobs) == 1, (
        f"volume of {declared_service['metadata']['name']}: expected 1 Job that mounts it, got {len(jobs)}"
    )
    return jobs[0]

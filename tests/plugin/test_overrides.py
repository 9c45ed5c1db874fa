"""A user's own conftest and suite: each link of the fixtures' chain can be overridden, with public names only."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin.forked_runs import run_pytest
from tests.plugin.test_plugin import records, words

PROFILE = """
import pytest

@pytest.fixture(scope="session")
def stage_profile(stage_profile):
    return stage_profile.model_copy(update={"namespace": "mine"})
"""
CLUSTER = """
import pytest
from pytest_vllm_stage import ClusterFacts

@pytest.fixture(scope="session")
def cluster(stage_config):
    return ClusterFacts("kubeconfig", "/mine", "mine", "v1.34.4", "kubectl", reaches_services=True, owned=False)
"""
STAGE = """
import pytest
from pytest_vllm_stage import StageFacts, TargetFacts

@pytest.fixture(scope="session")
def stage():
    targets = [TargetFacts(role, f"my-{role}", "http://127.0.0.1:9", 512) for role in ("quantized", "full")]
    return StageFacts("mine", "", owned=False, targets=tuple(targets))
"""
CLIENTS = """
import types
from pytest_vllm_stage.stage import client, object_store

class Kube:
    client = types.SimpleNamespace(close=lambda: None)
    resources = types.SimpleNamespace(get=lambda **kind: types.SimpleNamespace(get=lambda **where: [kind, where]))

class Store:
    def client(self):
        return types.SimpleNamespace(list_buckets=lambda: {"Buckets": [{"Name": "models"}]}, close=lambda: None)

client.connect = lambda cluster, namespace: Kube()
object_store.find_object_store = lambda stage, kube, **options: Store()
"""
WHOLE_SUITE = """
from kubernetes.dynamic import DynamicClient
from pytest_vllm_stage import EndpointClient, StageFacts

def test_the_stage_answers_and_has_its_models(
    endpoint: EndpointClient, stage: StageFacts, kube: DynamicClient, minio
) -> None:
    assert endpoint.target.role in [target.role for target in stage.targets]
    pods = kube.resources.get(api_version="v1", kind="Pod").get(namespace=stage.namespace)
    assert pods == [{"api_version": "v1", "kind": "Pod"}, {"namespace": stage.namespace}]
    assert "models" in [bucket["Name"] for bucket in minio.list_buckets()["Buckets"]]
"""
OWN_SUITE = """
from pytest_vllm_stage import EndpointClient, StageFacts

def test_what_a_user_checks(endpoint: EndpointClient, stage: StageFacts) -> None:
    assert endpoint.target.model in [target.inference_service for target in stage.targets]
    assert endpoint.target.base_url == stage.targets[0].base_url
"""


@pytest.fixture
def own(place: pytest.Pytester) -> pytest.Pytester:
    """A folder of a user's own below the one with the fakes."""
    (place.path / "own").mkdir()
    return place


def run(own: pytest.Pytester, conftest: str, suite: str, *options: str) -> pytest.RunResult:
    (own.path / "own" / "conftest.py").write_text(conftest)
    (own.path / "own" / "test_own.py").write_text(suite)
    return run_pytest(own, "own", *options)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_overridden_profile_is_the_one_deployed(own: pytest.Pytester, calls: Path, workers: str) -> None:
    suite = """
def test_it(stage, stage_config, endpoint):
    assert stage.namespace == stage_config.namespace == stage_config.profile.namespace == "mine"
"""
    run(own, PROFILE, suite, "-n", workers).assert_outcomes(passed=2)
    assert words(calls) == {"cluster": 1, "stage": 1, "end": 1}
    namespace = next((own.path / "reports").glob("*/facts/namespace.json"))
    assert namespace.read_text() == "mine", "the controller removes the namespace that was deployed"


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_overridden_cluster_carries_the_stage_and_is_only_read(
    own: pytest.Pytester, calls: Path, workers: str
) -> None:
    suite = """
def test_it(cluster, stage):
    assert cluster.context == "mine"
    assert stage.targets
"""
    run(own, CLUSTER, suite, "-n", workers).assert_outcomes(passed=1)
    # Neither created nor removed; --stage-deploy was not given, so nothing in it is removed either.
    assert words(calls) == {"stage": 1}
    assert '"context": "mine"' in next((own.path / "reports").glob("*/facts/cluster.json")).read_text()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_an_overridden_stage_is_the_one_validated(own: pytest.Pytester, calls: Path, workers: str) -> None:
    run(own, STAGE, OWN_SUITE, "-n", workers).assert_outcomes(passed=2)
    assert not calls.exists(), "neither a cluster nor a stage was asked for"
    assert len(records(own)) <= 1


def test_a_suite_of_a_users_own_needs_public_names_only(own: pytest.Pytester, calls: Path) -> None:
    run(own, CLIENTS, WHOLE_SUITE).assert_outcomes(passed=2)
    assert words(calls) == {"cluster": 1, "stage": 1, "end": 1}

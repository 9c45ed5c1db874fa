"""The fixtures, each a noun, in a chain.

A user's conftest can override any of these, and those that follow use it:

    stage_profile -> stage_config -> cluster -> stage -> targets -> endpoint
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage.run.context import RUN, Run

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient
    from model_registry import ModelRegistry
    from mypy_boto3_s3 import S3Client

    from pytest_vllm_stage.benchmark.cluster_load import ClusterLoad
    from pytest_vllm_stage.benchmark.find_capacity import FoundCapacity
    from pytest_vllm_stage.benchmark.jobs import BenchmarkJob
    from pytest_vllm_stage.benchmark.plans import PlannedStep
    from pytest_vllm_stage.benchmark.regressions import Comparison
    from pytest_vllm_stage.benchmark.steps import StepResult
    from pytest_vllm_stage.cluster.facts import ClusterFacts
    from pytest_vllm_stage.load.prompts import PromptMaker
    from pytest_vllm_stage.measurement.samples import Measurement
    from pytest_vllm_stage.publication.bucket.bucket import Bucket
    from pytest_vllm_stage.publication.publish_run import Publication
    from pytest_vllm_stage.publication.registry.client import RegistryClient
    from pytest_vllm_stage.resilience.carry_out import DisruptionResult
    from pytest_vllm_stage.serving.client import EndpointClient
    from pytest_vllm_stage.serving.target import Target
    from pytest_vllm_stage.settings.config import StageConfig
    from pytest_vllm_stage.settings.profile import Profile
    from pytest_vllm_stage.stage.facts import StageFacts
    from pytest_vllm_stage.stage.s3 import ObjectStore


@pytest.fixture(scope="session")
def stage_run(pytestconfig: pytest.Config) -> Run:
    """This run: id, directory, journal."""
    return pytestconfig.stash[RUN]


@pytest.fixture(scope="session")
def stage_profile(stage_run: Run) -> Profile:
    """The profile; tests are parametrized with the roles and load steps of --stage-profile in any case."""
    return stage_run.config.profile


@pytest.fixture(scope="session")
def stage_config(stage_run: Run, stage_profile: Profile) -> StageConfig:
    """Every setting with its source, and the profile."""
    return stage_run.use_profile(stage_profile)


@pytest.fixture(scope="session")
def cluster(stage_run: Run, stage_config: StageConfig) -> ClusterFacts:
    """The stage's cluster, created or attached to on first use; skips with --stage-endpoint."""
    if stage_config.endpoint:
        pytest.skip("needs a cluster, and --stage-endpoint validates only a server")
    if stage_config.results:
        pytest.skip("needs a stage, and --stage-results judges only saved samples")
    from pytest_vllm_stage.session.lifecycle import cluster_of

    return cluster_of(stage_run)


@pytest.fixture(scope="session")
def stage(stage_run: Run, stage_config: StageConfig, cluster: ClusterFacts) -> StageFacts:
    """The stage, deployed or attached to on first use."""
    del stage_config  # a profile that was overridden is in use before the stage is
    from pytest_vllm_stage.session.lifecycle import stage_of

    return stage_of(stage_run, cluster)


@pytest.fixture(scope="session")
def kube(cluster: ClusterFacts, stage_config: StageConfig) -> Iterator[DynamicClient]:
    """The official Kubernetes client (`kubernetes.dynamic.DynamicClient`) for the stage's cluster.

    ``kube.resources.get(api_version="v1", kind="Pod").get(namespace=stage.namespace)`` lists the stage's pods.
    """
    from pytest_vllm_stage.stage.client import connect

    connected = connect(cluster, stage_config.namespace)
    yield connected
    connected.client.close()


@pytest.fixture(scope="session")
def declared(cluster: ClusterFacts, stage_config: StageConfig) -> list[dict[str, Any]]:
    """The declared stage: the manifests that the profile's overlay renders to."""
    from pytest_vllm_stage.stage.deploy.render import render

    return render(stage_config.profile.overlay, cluster.kubectl)


@pytest.fixture(scope="session")
def targets(stage_run: Run, request: pytest.FixtureRequest) -> dict[str, Target]:
    """Role to the model endpoint that is validated: the stage's, or the servers of --stage-endpoint."""
    from pytest_vllm_stage.session.targets import find_endpoint_targets, find_stage_targets

    if stage_run.config.endpoint:
        return find_endpoint_targets(stage_run)
    return find_stage_targets(stage_run, request.getfixturevalue("stage"), lambda: request.getfixturevalue("cluster"))


@pytest.fixture(scope="session")
def _clients(targets: dict[str, Target]) -> Iterator[dict[str, EndpointClient]]:
    """One HTTP client per target, so that its connections are kept alive over the session."""
    from pytest_vllm_stage.serving.client import EndpointClient

    clients = {role: EndpointClient(target) for role, target in targets.items()}
    yield clients
    for client in clients.values():
        client.close()


@pytest.fixture
def endpoint(model_role: str, _clients: dict[str, EndpointClient]) -> EndpointClient:
    """The client of one target model; a test that uses it runs once per model."""
    return _clients[model_role]


@pytest.fixture(scope="session")
def object_store(stage_run: Run, stage: StageFacts, cluster: ClusterFacts, kube: DynamicClient) -> ObjectStore:
    """The address of the stage's S3 API and the credentials of its Secret."""
    from pytest_vllm_stage.cluster.authorities import find_ca_file
    from pytest_vllm_stage.stage.object_store import find_object_store

    # A proxy of the environment is for the internet: a cluster on this machine is not behind it.
    use_proxies = not cluster.on_this_machine
    return find_object_store(stage, kube, ca_file=find_ca_file(stage_run, cluster), use_proxies=use_proxies)


@pytest.fixture(scope="session")
def minio(object_store: ObjectStore) -> Iterator[S3Client]:
    """A boto3 S3 client of the stage's object store: MinIO, or the S3 API that its Secret names."""
    client = object_store.client()
    yield client
    client.close()


@pytest.fixture(scope="session")
def _prompt_maker(request: pytest.FixtureRequest) -> Callable[[str, str], PromptMaker]:
    """Role and API to a prompt maker: the tokenizer is measured once for all steps of a target."""
    from pytest_vllm_stage.load.prepare import create_prompt_maker

    clients = request.getfixturevalue("_clients")
    return functools.cache(lambda role, api: create_prompt_maker(clients[role], api))


@pytest.fixture(scope="session")
def _load_source(stage_run: Run, request: pytest.FixtureRequest) -> ClusterLoad | None:
    """The stage's cluster as the source of load; None where this machine sends it."""
    if stage_run.config.load_from == "host":
        return None
    from pytest_vllm_stage.benchmark.cluster_load import ClusterLoad
    from pytest_vllm_stage.stage.observe.reader import StageReader

    stage, kube, cluster = (request.getfixturevalue(name) for name in ("stage", "kube", "cluster"))
    return ClusterLoad(StageReader(kube, cluster, stage.namespace))


@pytest.fixture
def measure_step(stage_run: Run, request: pytest.FixtureRequest) -> Callable[[PlannedStep], StepResult]:
    """Runs a load step and judges it; with --stage-results it judges the saved samples instead."""
    from pytest_vllm_stage.benchmark import steps

    if stage_run.config.results:
        saved = {planned.step.id: path for planned, path in steps.saved_steps(stage_run.config)}
        return lambda planned: steps.judge_saved(stage_run, saved[planned.step.id])
    clients, maker = request.getfixturevalue("_clients"), request.getfixturevalue("_prompt_maker")
    source = request.getfixturevalue("_load_source")

    def measure(planned: PlannedStep) -> StepResult:
        client = clients[planned.role]
        return steps.carry_out(stage_run, planned, client, maker(planned.role, planned.step.api), source)

    return measure


@pytest.fixture
def compare_with_baselines(stage_run: Run, request: pytest.FixtureRequest) -> Callable[[StepResult], Comparison | None]:
    """Compares a measured step with the runs of --stage-baselines; returns None where the option names no folder."""
    if stage_run.config.baselines is None:
        return lambda _result: None
    from pytest_vllm_stage.benchmark import regressions, steps
    from pytest_vllm_stage.stage.observe.reader import StageReader
    from pytest_vllm_stage.stage.revision import Serving, serving

    clients, maker = request.getfixturevalue("_clients"), request.getfixturevalue("_prompt_maker")
    source = request.getfixturevalue("_load_source")

    def serving_of(role: str) -> Serving:
        if stage_run.config.endpoint:
            return Serving()
        kube, cluster = request.getfixturevalue("kube"), request.getfixturevalue("cluster")
        return serving(StageReader(kube, cluster, stage_run.config.namespace), clients[role].target.model)

    def remeasure(planned: PlannedStep) -> Measurement:
        client = clients[planned.role]
        return steps.measure_planned(stage_run, planned, client, maker(planned.role, planned.step.api), source)

    return lambda result: regressions.compare(stage_run, result, serving_of(result.planned.role), remeasure)


@pytest.fixture
def find_capacity(stage_run: Run, request: pytest.FixtureRequest) -> Callable[[str], FoundCapacity]:
    """Searches for the highest request rate at which a role's model meets its objectives."""
    from pytest_vllm_stage.benchmark import find_capacity, plans

    clients, maker = request.getfixturevalue("_clients"), request.getfixturevalue("_prompt_maker")
    source = request.getfixturevalue("_load_source")

    def find(role: str) -> FoundCapacity:
        api = plans.api_of(stage_run.config, role)
        return find_capacity.find(stage_run, role, clients[role], maker(role, api), source)

    return find


@pytest.fixture
def disrupt(
    stage_run: Run, cluster: ClusterFacts, stage: StageFacts, kube: DynamicClient, request: pytest.FixtureRequest
) -> Callable[[str, str], DisruptionResult]:
    """Carries out a disruption of a role's model while traffic runs, judges the window around it, and undoes it."""
    from pytest_vllm_stage.benchmark import plans
    from pytest_vllm_stage.resilience import carry_out
    from pytest_vllm_stage.resilience.site import Site
    from pytest_vllm_stage.stage.observe.reader import StageReader

    clients, maker = request.getfixturevalue("_clients"), request.getfixturevalue("_prompt_maker")

    def disrupt_role(name: str, role: str) -> DisruptionResult:
        config = stage_run.config
        reader = StageReader(kube, cluster, stage.namespace)
        service = config.profile.models[role].inference_service
        site = Site(stage_run, stage, reader, service, config.profile.resilience)
        return carry_out.carry_out(site, name, clients[role], maker(role, plans.api_of(config, role)))

    return disrupt_role


@pytest.fixture(scope="session")
def registry_client(
    stage_run: Run, cluster: ClusterFacts, stage: StageFacts, kube: DynamicClient, declared: list[dict[str, Any]]
) -> Iterator[RegistryClient]:
    """A REST client of the Model Registry, the stage's or that of --stage-registry-url, for either API version.

    Skips where there is no registry.
    """
    from pytest_vllm_stage.publication import publish_run
    from pytest_vllm_stage.stage.deploy import addresses, render

    place = publish_run.find_registry(stage_run, kube, cluster)
    if place.url is None and render.named(declared, "Service", addresses.REGISTRY) is None:
        pytest.skip(f"no Model Registry was found, and --stage-registry-url names none: {'; '.join(place.reasons)}")
    registry = publish_run.connect_registry(stage_run, kube, cluster)
    yield registry
    registry.close()


@pytest.fixture(scope="session")
def model_registry(registry_client: RegistryClient, stage_run: Run, cluster: ClusterFacts) -> ModelRegistry:
    """The official client of the Model Registry, ``model_registry.ModelRegistry``; skips where the server has no v1."""
    from pytest_vllm_stage.cluster.authorities import find_ca_file
    from pytest_vllm_stage.core.skips import does_not_apply
    from pytest_vllm_stage.publication.registry.official import API_VERSION, connect_official_client

    url, api = registry_client.url, registry_client.api
    if api != API_VERSION:
        does_not_apply(f"the Model Registry at {url} speaks {api} only, and the official client {API_VERSION} only")
    token, ca_file = stage_run.config.registry_token, find_ca_file(stage_run, cluster)
    return connect_official_client(url, token=token, ca_file=ca_file)


@pytest.fixture(scope="session")
def results_bucket(stage_config: StageConfig, object_store: ObjectStore) -> Bucket:
    """The bucket of benchmark results, with the stage's credentials."""
    from pytest_vllm_stage.publication.bucket.bucket import Bucket

    return Bucket(object_store, stage_config.profile.registry.bucket)


@pytest.fixture
def publication(
    stage_run: Run, cluster: ClusterFacts, stage: StageFacts, registry_client: RegistryClient, model_role: str
) -> Publication:
    """This run's publication of one model; the first test that uses it publishes, after the load steps."""
    from pytest_vllm_stage.publication.publish_run import publication_of

    return publication_of(stage_run, cluster, stage, model_role)


@pytest.fixture
def benchmark_job(
    request: pytest.FixtureRequest,
    model_role: str,
    stage_run: Run,
    cluster: ClusterFacts,
    stage: StageFacts,
    kube: DynamicClient,
    minio: S3Client,
) -> BenchmarkJob:
    """The stage's benchmark Job of one model, run once per run; in read-only mode the existing Job is used.

    Skips where there is none.
    """
    from pytest_vllm_stage.benchmark import jobs

    # With --maxfail the tests of the others may never run.
    selected = [] if request.config.getvalue("maxfail") else _roles_that_use("benchmark_job", request.session)
    found = jobs.find_job(stage_run, model_role, selected, cluster, stage, kube, minio)
    if found.absent:
        pytest.skip(found.absent)
    return found


def _roles_that_use(fixture: str, session: pytest.Session) -> list[str]:
    """The roles of the selected tests that use a fixture, in the order of the tests."""
    functions = [item for item in session.items if isinstance(item, pytest.Function) and fixture in item.fixturenames]
    return list(dict.fromkeys(str(one.callspec.params["model_role"]) for one in functions))


@pytest.fixture
def measured_by_job(stage_run: Run, stage: StageFacts, benchmark_job: BenchmarkJob) -> list[Measurement]:
    """A measurement for each report of the model's benchmark Job."""
    from pytest_vllm_stage.benchmark import jobs

    return jobs.measurements(stage_run, benchmark_job, simulated=stage.simulated)


@pytest.fixture
def judged_job(stage_run: Run, benchmark_job: BenchmarkJob, measured_by_job: list[Measurement]) -> list[StepResult]:
    """The verdict on each report of the model's benchmark Job."""
    from pytest_vllm_stage.benchmark import jobs

    return jobs.judged(stage_run, benchmark_job, measured_by_job)

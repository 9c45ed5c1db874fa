"""Drift planted on one live stage with the simulated engine: each fault is reported by its line, read-only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from kubernetes.dynamic import DynamicClient

from pytest_vllm_stage.checks.stage import admission, members, restart, service_targets
from pytest_vllm_stage.checks.stage.drift import compare, strangers
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.stage import client, drift, objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.reader import StageReader
from tests.real.drift_faults import FAULTS, MODEL, DriftFault
from tests.real.live_stage import SILENT, deploy, run_kubectl

pytestmark = pytest.mark.real

NAMESPACE = "drift"
GENERATED = ("Deployment", "ReplicaSet", "Service")
WAIT_S = 60.0


class LiveStage:
    """The deployed stage: its declaration, its objects, and kubectl."""

    def __init__(self, cluster: ClusterFacts, kube: DynamicClient, declared: list[Object]) -> None:
        self.cluster, self.kube, self.declared = cluster, kube, declared

    def kubectl(self, *arguments: str) -> None:
        if arguments[0] == "-f":
            run_kubectl(self.cluster, NAMESPACE, "apply", "-f", "-", manifest=arguments[1])
        else:
            run_kubectl(self.cluster, NAMESPACE, *arguments)

    def find_problems(self) -> list[str]:
        """Every line of the checks of drift and restarts; reads only."""
        reader = StageReader(self.kube, self.cluster, NAMESPACE)
        pods = members.select_pods(reader.listed("Pod"), self.declared)
        return [*self._find_drift(reader, pods), *self._find_restart_problems(reader, pods)]

    def _find_drift(self, reader: StageReader, pods: list[Object]) -> Iterator[str]:
        services = reader.listed("InferenceService")
        around = compare.surroundings(reader.listed("LimitRange"), services)
        for manifest in self.declared:
            live = reader.get(objects.kind_of(manifest), objects.name_of(manifest))
            yield from compare.compare_declared(manifest, live, around)
        for service in services:
            runtime = reader.get("ServingRuntime", drift.runtime_name(service))
            deployment = reader.get("Deployment", f"{objects.name_of(service)}-predictor")
            if runtime and deployment:
                yield from compare.compare_generated(service, runtime, deployment, around)
        for owner in reader.listed("ReplicaSet"):
            for pod in objects.owned_by(pods, owner):
                yield from compare.compare_pod(owner, pod, around)
        for kind in GENERATED:
            for item in members.select_declared(reader.listed(kind), []):
                yield from compare.find_manual_changes(item)
        found = {kind: reader.listed(kind) for kind in strangers.ACTING_KINDS}
        yield from strangers.find_strangers(found, self.declared, pods, services)

    def _find_restart_problems(self, reader: StageReader, pods: list[Object]) -> Iterator[str]:
        claims = members.select_declared(reader.listed("PersistentVolumeClaim"), self.declared)
        yield from restart.check_deletions(claims)
        yield from restart.check_nodes(pods, reader.placement())
        yield from service_targets.check_services(
            members.select_services(reader.listed("Service"), self.declared), pods
        )
        yield from admission.check_quotas(reader.listed("ResourceQuota"), reader.listed("LimitRange"), pods)
        kinds = ("Secret", "ConfigMap", "ServiceAccount")
        live = {kind: {objects.name_of(item): item for item in reader.listed(kind)} for kind in kinds}
        yield from restart.check_references(pods, live)


@pytest.fixture(scope="module")
def stage(simulated_cluster: ClusterFacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveStage]:
    """A stage that ends with its cluster: its removal would take half a minute."""
    cluster, overlay = simulated_cluster, fixtures_dir() / "overlays" / "local-sim"
    deploy(cluster, overlay, NAMESPACE, {"full": MODEL}, tmp_path_factory.mktemp("drift"))
    with client.connection(cluster, NAMESPACE) as kube:
        yield LiveStage(cluster, kube, render.in_namespace(render.render(overlay, cluster.kubectl), NAMESPACE))


def await_problem(stage: LiveStage, text: str) -> None:
    """Wait for a problem whose line holds the text: controllers need a moment to act on some changes."""

    def look() -> Observation:
        lines = stage.find_problems()
        return Observation(any(text in line for line in lines), "; ".join(lines)[:2000] or "none")

    wait_until(f"problem: {text}", look, timeout_s=WAIT_S, journal=SILENT, interval_s=0.3)


def test_a_healthy_live_stage_has_no_problem(stage: LiveStage) -> None:
    assert len(stage.declared) > 20
    assert stage.find_problems() == []


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.planted.replace(" ", "-"))
def test_planted_drift_is_reported(stage: LiveStage, fault: DriftFault) -> None:
    """In the order of the table: the last ones cannot be taken back."""
    for command in fault.commands:
        stage.kubectl(*command)
    await_problem(stage, fault.line)
    for command in fault.undo:
        stage.kubectl(*command)


def test_the_table_holds_at_least_20_faults() -> None:
    assert len({fault.planted for fault in FAULTS}) == len(FAULTS) >= 20

"""The registry stand-in in a pod of the local cluster: it becomes ready, answers, keeps entries and stops."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import httpx
import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.deploy import render, teardown
from pytest_vllm_stage.stage.deploy.apply import Ownership, apply
from pytest_vllm_stage.stage.observe import conditions
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.observe.wait import wait_for_all
from pytest_vllm_stage.standins.registry import SERVER
from pytest_vllm_stage.standins.registry.api import PREFIXES

pytestmark = pytest.mark.real

SILENT = Journal()
NAMESPACE = "registry-alone"
NAME = "model-registry"
MODELS = PREFIXES["v1alpha3"] + "/registered_models"


@pytest.fixture(scope="module")
def view(simulated_cluster: ClusterFacts) -> Iterator[StageReader]:
    """The namespace, with the registry of the local overlay alone in it, Available."""
    cluster = simulated_cluster
    overlay = render.render(fixtures_dir() / "overlays" / "local", cluster.kubectl)
    kept = [item for item in overlay if item["kind"] == "Namespace" or objects.name_of(item) == NAME]
    assert [item["kind"] for item in kept] == ["Namespace", "Service", "Deployment"]
    with client.connection(cluster, NAMESPACE) as kube:
        view = StageReader(kube, cluster, NAMESPACE)
        for wave in render.waves(render.in_namespace(kept, NAMESPACE)):
            apply(kube, wave, NAMESPACE, Ownership.for_run("registry"), {})
        wait_for_all(view, [conditions.DeploymentAvailable(NAME, 120)], SILENT)
        yield view
    assert teardown.teardown(cluster, NAMESPACE, "registry", {"teardown_s": 120}, SILENT) == []


@pytest.fixture(scope="module")
def registry(view: StageReader) -> Iterator[httpx.Client]:
    service = view.get("Service", NAME)
    assert service is not None
    with httpx.Client(base_url=f"http://{service['spec']['clusterIP']}:8080", timeout=60) as registry:
        wait_for_answer(registry)
        yield registry


def wait_for_answer(registry: httpx.Client) -> None:
    """Readiness is reported before every Service rule is in place."""

    def look() -> Observation:
        try:
            return Observation(registry.get("/readyz/health").status_code == 200, "answers")
        except httpx.TransportError as error:
            return Observation(False, repr(error))

    wait_until("the registry answers", look, timeout_s=180, journal=SILENT, error=EnvironmentUnusable)


def kubectl(cluster: ClusterFacts, *arguments: str) -> str:
    command = [cluster.kubectl, "--kubeconfig", str(cluster.kubeconfig), "--context", cluster.context, "-n", NAMESPACE]
    done = subprocess.run([*command, *arguments], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def pod_of(view: StageReader) -> objects.Object:
    (pod,) = view.listed("Pod", {"app.kubernetes.io/name": NAME})
    return pod


def test_it_answers_at_its_service_and_names_itself(registry: httpx.Client) -> None:
    answer = registry.post(MODELS, json={"name": "m"})
    assert (answer.status_code, answer.headers["server"]) == (201, SERVER)
    assert registry.get(f"{PREFIXES['v1']}/registered_models/{answer.json()['id']}").json() == answer.json()
    assert registry.get("/").text == "404 page not found\n"


def test_it_needs_no_privilege_and_says_what_it_is_in_its_log(
    simulated_cluster: ClusterFacts, view: StageReader
) -> None:
    pod = pod_of(view)
    assert pod["metadata"]["labels"]["vllm-stage/stand-in"] == "true"
    context = pod["spec"]["containers"][0]["securityContext"]
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert (context["allowPrivilegeEscalation"], context["readOnlyRootFilesystem"]) == (False, True)
    assert "a stand-in for the Model Registry" in kubectl(simulated_cluster, "logs", f"deployment/{NAME}")


def test_what_is_registered_outlives_its_container(
    simulated_cluster: ClusterFacts, view: StageReader, registry: httpx.Client
) -> None:
    """Its process ends on SIGTERM with exit code 0, the kubelet starts another one, and that one has the entries."""
    before = registry.get(MODELS).json()["items"]
    assert before
    kubectl(simulated_cluster, "exec", f"deployment/{NAME}", "--", "/bin/sh", "-c", "kill -TERM 1")

    def look() -> Observation:
        (status,) = pod_of(view)["status"]["containerStatuses"]
        done = status["restartCount"] == 1 and status["ready"]
        return Observation(done, f"{status['restartCount']} restarts, {'ready' if status['ready'] else 'not ready'}")

    wait_until("its container is started again", look, timeout_s=120, journal=SILENT, error=EnvironmentUnusable)
    ended = pod_of(view)["status"]["containerStatuses"][0]["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (0, "Completed")
    wait_for_answer(registry)
    assert registry.get(MODELS).json()["items"] == before

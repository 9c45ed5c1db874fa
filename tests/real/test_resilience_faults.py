"""Disruptions of a real stage with the simulated engine: a healthy one, and three planted faults that must be named."""

from __future__ import annotations

import os
from collections.abc import Iterator

import httpx
import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.load.prepare import create_prompt_maker
from pytest_vllm_stage.resilience import undo
from pytest_vllm_stage.resilience.carry_out import DisruptionResult, carry_out
from pytest_vllm_stage.resilience.site import Site, serves
from pytest_vllm_stage.run.context import Run, RunIdentity
from pytest_vllm_stage.serving.client import EndpointClient, RequestFailed
from pytest_vllm_stage.serving.target import Target
from pytest_vllm_stage.settings.resolver import resolve_settings
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.facts import StageFacts
from pytest_vllm_stage.stage.observe.reader import StageReader
from tests.real.live_stage import SILENT, deploy, remove_in_background

pytestmark = pytest.mark.real

NAMESPACE = "resilience"
MODEL = "smollm2-135m"
OTHER = f"{MODEL}-quantized"
#: A rollout starts the new pod before the old one ends.
OVERLAY = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - {base}
patches:
  - target: {{kind: InferenceService, name: {model}}}
    patch: |
      - op: replace
        path: /spec/predictor/deploymentStrategy
        value: {{type: RollingUpdate}}
"""
PROFILE = f"""
name = "{NAMESPACE}"
overlay = "."
namespace = "{NAMESPACE}"
[models.full]
inference_service = "{MODEL}"
[models.quantized]
inference_service = "{OTHER}"
[load]
duration_s = 5
prompt_tokens = 48
output_tokens = 4
[resilience]
request_rate = 20
failed_requests_max = 0
before_s = 3
settle_s = 3
"""
#: Answers the readiness probe at once, while the engine is not started yet.
LYING = """
export LD_LIBRARY_PATH=/mnt/vllm-stage/python/lib
for packages in /mnt/vllm-stage/engine/lib/python3*/site-packages; do export PYTHONPATH="$packages"; done
/mnt/vllm-stage/python/bin/python3 -m http.server 8081 --directory /tmp &
sleep 12
exec /mnt/vllm-stage/python/bin/python3 -m pytest_vllm_stage.standins.engine "$@"
"""


@pytest.fixture(scope="module")
def site(simulated_cluster: ClusterFacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("resilience")
    base = os.path.relpath((fixtures_dir() / "overlays" / "local-sim").resolve(), folder.resolve())
    (folder / "kustomization.yaml").write_text(OVERLAY.format(base=base, model=MODEL))
    (folder / "small.toml").write_text(PROFILE)
    config = resolve_settings({"profile": "small.toml"}.get, {}, lambda _name: None, folder)
    run = Run(RunIdentity(NAMESPACE, str(folder / "run"), os.getpid()), lambda: config, lambda _line: None)
    run.journal.event("run", run.run_id)
    deploy(simulated_cluster, folder, NAMESPACE, {"full": MODEL, "quantized": OTHER}, folder)
    with client.connection(simulated_cluster, NAMESPACE) as kube:
        reader = StageReader(kube, simulated_cluster, NAMESPACE)
        yield Site(run, StageFacts(NAMESPACE, NAMESPACE, True, ()), reader, MODEL, config.profile.resilience)
    remove_in_background(simulated_cluster, NAMESPACE)


@pytest.fixture(scope="module")
def model(site: Site) -> Iterator[EndpointClient]:
    service = site.reader.get("Service", f"{MODEL}-predictor")
    assert service
    address = service["spec"]["clusterIP"]
    connected = EndpointClient(Target("full", MODEL, f"http://{address}:80", 2048))
    yield connected
    connected.close()


def disrupt(site: Site, model: EndpointClient, name: str) -> DisruptionResult:
    return carry_out(site, name, model, create_prompt_maker(model, "chat"))


def plant(site: Site, model: EndpointClient, replicas: int = 1, **changes: object) -> None:
    """Change the service as its owner would, and wait until only pods of the new kind exist, and serve."""
    predictor = {"minReplicas": replicas, "maxReplicas": replicas, "model": changes}
    objects.patch(site.reader.kube, "InferenceService", MODEL, NAMESPACE, {"spec": {"predictor": predictor}})
    site.await_pods("only new pods", lambda pods: len(pods) == replicas and all(serves(pod) for pod in pods))
    site.await_health()
    wait_until("an answer", lambda: answers(model), timeout_s=120, journal=SILENT)


def answers(model: EndpointClient) -> Observation:
    try:
        model.chat("Hello", max_tokens=1)
    except RequestFailed as error:
        return Observation(False, error.message)
    return Observation(True, "answers")


def test_a_rollout_is_undone_and_what_it_lost_is_explained(site: Site, model: EndpointClient) -> None:
    """The pods have no preStop hook: how many requests that costs depends on how soon the node drops the endpoint."""
    result = disrupt(site, model, "rollout")
    assert "the new revision serves alone after" in result.text()
    assert result.verdict.numbers.requests > 20
    if result.verdict.outcome == "fail" and result.verdict.numbers.bad_before == 0:
        assert result.problems, result.text()
    assert site.reader.get("ConfigMap", undo.NAME) is None
    annotations = site.inference_service()["spec"]["predictor"].get("annotations") or {}
    assert "vllm-stage/restarted-at" not in annotations


def test_a_change_that_a_killed_run_left_is_undone(site: Site) -> None:
    """The record alone says how: the next run knows nothing else of the one that made the change."""
    site.patch_service({"spec": {"predictor": {"maxReplicas": 2}}}, {"spec": {"predictor": {"maxReplicas": 1}}})
    assert site.inference_service()["spec"]["predictor"]["maxReplicas"] == 2
    assert site.undo() == f"inferenceservice/{MODEL} of run {NAMESPACE}"
    assert site.inference_service()["spec"]["predictor"]["maxReplicas"] == 1
    assert site.undo() == ""


@pytest.mark.nightly
def test_a_readiness_probe_that_lies_is_named(site: Site, model: EndpointClient) -> None:
    probe = {"httpGet": {"path": "/", "port": 8081}, "periodSeconds": 1, "timeoutSeconds": 5}
    plant(site, model, command=["/bin/sh", "-c", LYING, "simulated-engine"], readinessProbe=probe)
    result = disrupt(site, model, "rollout")
    plant(site, model, command=None, readinessProbe=None)
    assert result.outcome == "fail", result.text()
    assert "the readiness probe reports Ready before the engine serves" in result.text()


@pytest.mark.nightly
def test_one_dead_replica_of_two_is_named(site: Site, model: EndpointClient) -> None:
    plant(site, model, replicas=2)
    dead = site.ready_pods()[-1]
    with httpx.Client(trust_env=False) as http:
        faults = f"http://{dead['status']['podIP']}:8080/sim/faults"
        assert http.put(faults, json=[{"fault": "server_error", "status": 503}]).is_success
    result = disrupt(site, model, "pod")
    assert result.outcome == "fail", result.text()
    assert f"pod {objects.name_of(dead)} was Ready before the disruption and served no request" in result.text()
    assert "requests failed or were slow before the disruption" in result.text()

"""Pods that send load from a cluster: what is created for a step, how they are followed, and how one is lost."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from concurrent.futures import Future
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import yaml
from kubernetes.dynamic import DynamicClient

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.workers import manifests
from pytest_vllm_stage.load.workers.assignment import Assignment
from pytest_vllm_stage.load.workers.package import pack_modules
from pytest_vllm_stage.load.workers.pods import CONTAINER, INDEX_ANNOTATION, JOB_LABEL, PodWorkers, describe_pod
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy import secrets
from pytest_vllm_stage.stage.deploy.addresses import find_address_inside
from pytest_vllm_stage.stage.observe.reader import StageReader
from tests.unit.made_api import ApiServer, served
from tests.unit.made_samples import open_step

JOB = yaml.safe_load((fixtures_dir() / "load-workers" / "job.yaml").read_text())
ASSIGNMENT = Assignment(open_step(), 600, 4, 6, ("a", "b"), "http://m-predictor.ns.svc")
POD_LOG = "GET /api/v1/namespaces/ns/pods/load-1-x/log"
KEY = "sesame-sesame"


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with served() as server:
        yield server


@pytest.fixture
def kube(api: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[DynamicClient]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    connected = client.connect_to(api.facts(tmp_path))
    yield connected
    connected.client.close()


def pod(index: int, **status: Any) -> dict[str, Any]:
    metadata = {
        "name": f"load-{index}-x",
        "uid": f"u{index}",
        "labels": {JOB_LABEL: "load"},
        "annotations": {INDEX_ANNOTATION: str(index)},
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "status": status}


def container(**state: Any) -> dict[str, Any]:
    return {"containerStatuses": [{"name": CONTAINER, "state": state}]}


def test_a_worker_needs_the_packed_modules_and_nothing_else(tmp_path: Path) -> None:
    """As in a pod: no site-packages, no checkout."""
    archive = tmp_path / "package.zip"
    archive.write_bytes(pack_modules())
    environment = {"PYTHONPATH": str(archive), "JOB_COMPLETION_INDEX": "0"}
    done = subprocess.run(
        [os.path.realpath(sys.executable), "-S", "-m", "pytest_vllm_stage.load.workers", "--help"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "--clock-url" in done.stdout


def test_the_packed_modules_fit_into_a_config_map_and_are_reproducible() -> None:
    data = pack_modules()
    assert data == pack_modules()
    assert len(data) < 400_000
    with zipfile.ZipFile(BytesIO(data)) as archive:
        assert "pytest_vllm_stage/load/driver.py" in archive.namelist()


def test_the_job_of_a_step_has_its_own_names_and_as_many_pods_as_workers() -> None:
    job = manifests.complete_job(JOB, "load-1", 4, 300.6)
    spec = job["spec"]
    assert (spec["completions"], spec["parallelism"], spec["activeDeadlineSeconds"]) == (4, 4, 301)
    assert (spec["completionMode"], spec["suspend"]) == ("Indexed", True)
    assert spec["backoffLimit"] > 0, "a Job that fails ends all its pods, and the lost one is not known among them"
    volumes = {volume["name"]: volume for volume in spec["template"]["spec"]["volumes"]}
    assert volumes["load"]["configMap"]["name"] == volumes["tokens"]["secret"]["secretName"] == "load-1"
    assert JOB["spec"]["parallelism"] == 1, "the rendered Job is used again"
    assert manifests.job_name("run", "full-rate-5") != manifests.job_name("other", "full-rate-5")


def test_a_worker_has_no_right_in_the_cluster() -> None:
    pod_spec = JOB["spec"]["template"]["spec"]
    assert pod_spec["automountServiceAccountToken"] is False
    assert "serviceAccountName" not in pod_spec
    assert pod_spec["containers"][0]["securityContext"]["capabilities"] == {"drop": ["ALL"]}


def test_tokens_are_in_the_secret_alone_and_everything_is_owned_by_the_job(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text("-----BEGIN CERTIFICATE-----")
    owner = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "load-1", "uid": "u"}}
    made, values = manifests.make_inputs(owner, ASSIGNMENT, str(tmp_path / "ca.pem"), {"api-key": Secret(KEY)})
    config_map, secret = made
    assert KEY not in json.dumps(made)
    assert config_map["data"]["ca.crt"].startswith("-----BEGIN")
    assert base64.b64decode(config_map["binaryData"]["package.zip"]) == pack_modules()
    assert secrets.fill(secret, values)["stringData"] == {"api-key": KEY}
    for one in made:
        assert [reference["uid"] for reference in one["metadata"]["ownerReferences"]] == ["u"]
    assert [one["kind"] for one in manifests.make_inputs(owner, ASSIGNMENT, None, {})[0]] == ["ConfigMap"]


def test_an_overlay_without_load_workers_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"overlay {tmp_path.name} declares no load workers"):
        manifests.render_job(tmp_path, "kubectl", "ns")


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (None, "the pod does not exist, or was deleted"),
        (pod(1, phase="Failed", reason="Evicted", message="low on memory"), "Evicted: low on memory"),
        (
            pod(1, phase="Failed", **container(terminated={"reason": "OOMKilled", "exitCode": 137})),
            "OOMKilled, exit code 137",
        ),
        (
            pod(1, phase="Pending", **container(waiting={"reason": "ImagePullBackOff", "message": "no image"})),
            "ImagePullBackOff: no image",
        ),
        (
            pod(
                1,
                phase="Pending",
                conditions=[
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no room"}
                ],
            ),
            "Unschedulable: no room",
        ),
        (pod(1, phase="Running"), "phase Running"),
    ],
)
def test_the_end_of_a_pod_is_described(found: dict[str, Any] | None, said: str) -> None:
    assert describe_pod(found) == said


def test_logs_are_read_line_by_line(api: ApiServer, kube: DynamicClient) -> None:
    api.answers[POD_LOG] = (200, "one\ntwo\nthr\u00e9e")
    assert list(objects.follow_log(kube, "ns", "load-1-x", CONTAINER)) == ["one", "two", "thr\u00e9e"]
    assert "follow=true" in api.requests[-1]


def workers_of(api: ApiServer, kube: DynamicClient, tmp_path: Path, *pods: dict[str, Any]) -> PodWorkers:
    for one in pods:
        api.add(one)
    return PodWorkers(StageReader(kube, api.facts(tmp_path), "ns"), "load", 2)


def test_a_pods_log_is_its_workers_output(api: ApiServer, kube: DynamicClient, tmp_path: Path) -> None:
    ended = container(terminated={"reason": "Completed", "exitCode": 0})
    workers = workers_of(api, kube, tmp_path, pod(0, phase="Running"), pod(1, phase="Succeeded", **ended))
    api.answers[POD_LOG] = (200, "hello\n")
    assert list(workers.lines(1)) == ["hello"]
    assert workers.name(1) == "pod/load-1-x"


def test_the_output_of_a_deleted_pod_ends(api: ApiServer, kube: DynamicClient, tmp_path: Path) -> None:
    workers = workers_of(api, kube, tmp_path, pod(1, phase="Running", **container(running={})))
    api.answers[POD_LOG] = (200, "hello\n")
    output = workers.lines(1)
    assert next(output) == "hello"
    del api.objects["/api/v1/namespaces/ns/pods/load-1-x"]
    assert list(output) == []
    assert workers.describe_end(1) == "the pod does not exist, or was deleted"


def test_the_start_is_written_onto_each_pod_in_the_api_servers_time(
    api: ApiServer, kube: DynamicClient, tmp_path: Path
) -> None:
    workers = workers_of(api, kube, tmp_path, *(pod(i, phase="Running", **container(running={})) for i in range(2)))
    for worker in range(2):
        workers.describe_end(worker)
    start_at = workers.announce(5.0)
    written = [
        float(body["metadata"]["annotations"][manifests.START_ANNOTATION])
        for body in api.bodies
        if "annotations" in body.get("metadata", {})
    ]
    assert len(written) == 2
    assert written == pytest.approx([start_at, start_at], abs=2.5)


@pytest.mark.parametrize(
    ("service", "inside"),
    [
        ({"clusterIP": "10.0.0.1", "ports": [{"port": 80, "targetPort": 8080}]}, "http://m-predictor.ns.svc:80"),
        ({"clusterIP": "None", "ports": [{"port": 80, "targetPort": 8080}]}, "http://m-predictor.ns.svc:8080"),
    ],
)
def test_pods_reach_a_model_by_its_service_where_nothing_is_published(
    api: ApiServer, kube: DynamicClient, tmp_path: Path, service: dict[str, Any], inside: str
) -> None:
    facts = api.facts(tmp_path)
    outside = type(facts)(**{**vars(facts), "kind": "kubeconfig", "reaches_services": False})
    api.add({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "m-predictor"}, "spec": service})
    # A headless Service's name stands for its pods, which are reached at their own port.
    ready = pod(0, podIP="10.0.0.7", conditions=[{"type": "Ready", "status": "True"}])
    api.add(ready | {"spec": {"containers": [{"name": CONTAINER}]}})
    model: dict[str, Any] = {"metadata": {"name": "m"}}
    assert find_address_inside(kube, outside, "ns", model, "http://outside") == inside
    assert find_address_inside(kube, facts, "ns", model, "http://outside") == "http://outside"
    model["status"] = {"address": {"url": "http://m.ns.svc.cluster.local/"}}
    assert find_address_inside(kube, outside, "ns", model, "http://outside") == "http://m.ns.svc.cluster.local"


def test_a_cluster_whose_clocks_contradict_each_other_is_unusable(
    api: ApiServer, kube: DynamicClient, tmp_path: Path
) -> None:
    workers = workers_of(api, kube, tmp_path)
    workers._clock = Future()
    workers._clock.set_exception(ValueError("the server's clock differs by 30.000 s between two answers"))
    with pytest.raises(EnvironmentUnusable, match="differs by 30"):
        workers.announce(5.0)

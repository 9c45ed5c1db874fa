"""A model for GPU nodes on a real control plane whose GPU nodes are KWOK's fakes: the scheduler's words are real.

The model is the reference stage's 24B one: four GPUs, node selectors and a toleration of the GPU taint.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from pytest_vllm_stage.checks.stage import restart
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import WaitFailed
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.conditions import InferenceServiceReady
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.observe.wait import wait_for_all
from tests.real import fake_nodes
from tests.real.fake_nodes import GPU, TAINT
from tests.real.live_stage import SILENT, run_kubectl

pytestmark = pytest.mark.real

LOG = logging.getLogger(__name__)
NAMESPACE = "unschedulable"
MODEL = "mistral-24b"
NODE = "g6-12xlarge-a"
ZONE = "topology.kubernetes.io/zone"
TYPE = "node.kubernetes.io/instance-type"
DEDICATED = {"key": "dedicated", "value": "team-b", "effect": "NoSchedule"}


@pytest.fixture(scope="module")
def cluster(simulated_cluster: ClusterFacts, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterFacts]:
    with fake_nodes.kwok(simulated_cluster, tmp_path_factory.mktemp("kwok")):
        yield simulated_cluster
        run_kubectl(simulated_cluster, NAMESPACE, "delete", "namespace", NAMESPACE, "--timeout=240s")
        run_kubectl(simulated_cluster, NAMESPACE, "delete", "persistentvolume", "pv-eu-a", "--timeout=240s")


@pytest.fixture(scope="module")
def reader(cluster: ClusterFacts) -> Iterator[StageReader]:
    """The namespace with the runtime, the account and a bound volume of zone eu-a, without a model."""
    manifests = render.in_namespace(
        render.render(fixtures_dir() / "overlays" / "openshift", cluster.kubectl), NAMESPACE
    )
    wanted = [one for one in manifests if one["kind"] in ("Namespace", "ServingRuntime", "ServiceAccount")]
    for manifest in [*wanted, *volume_and_claim(NAMESPACE)]:
        run_kubectl(cluster, NAMESPACE, "apply", "-f", "-", manifest=json.dumps(manifest))
    with client.connection(cluster, NAMESPACE) as kube:
        yield StageReader(kube, cluster, NAMESPACE)


def volume_and_claim(namespace: str) -> list[Object]:
    claim = f"model-{MODEL}"
    term = {"matchExpressions": [{"key": ZONE, "operator": "In", "values": ["eu-a"]}]}
    size, modes = {"storage": "60Gi"}, ["ReadWriteOnce"]
    volume = {
        "capacity": size,
        "accessModes": modes,
        "storageClassName": "",
        "claimRef": {"name": claim, "namespace": namespace},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [term]}},
        "hostPath": {"path": "/mnt/models"},
    }
    wish = {"accessModes": modes, "storageClassName": "", "volumeName": "pv-eu-a", "resources": {"requests": size}}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "pv-eu-a"}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": claim}, "spec": wish},
    ]


@contextmanager
def deployed(reader: StageReader, **predictor: Any) -> Iterator[None]:
    """The reference's model in KServe's Standard mode, which needs no Knative; removed with its pods at the end."""
    overlay = fixtures_dir() / "overlays" / "openshift"
    service = render.named(render.render(overlay, reader.cluster.kubectl), "InferenceService", MODEL)
    assert service is not None
    service["metadata"] |= {"namespace": NAMESPACE}
    service["metadata"]["annotations"] |= {
        "serving.kserve.io/deploymentMode": "Standard",
        "serving.kserve.io/autoscalerClass": "none",
    }
    del service["spec"]["predictor"]["containerConcurrency"]
    service["spec"]["predictor"] |= predictor
    run_kubectl(reader.cluster, NAMESPACE, "apply", "-f", "-", manifest=json.dumps(service))
    try:
        yield
    finally:
        remove = ("delete", "--cascade=foreground", "--timeout=240s", f"inferenceservice/{MODEL}")
        run_kubectl(reader.cluster, NAMESPACE, *remove)


def await_ready(reader: StageReader) -> None:
    wait_for_all(reader, [InferenceServiceReady(MODEL, 180)], SILENT)


@pytest.fixture(autouse=True)
def _without_fake_nodes(cluster: ClusterFacts) -> Iterator[None]:
    yield
    run_kubectl(cluster, NAMESPACE, "delete", "node", "-l", f"{GPU}.present", "--timeout=240s")


@dataclass
class Barred:
    """A GPU node that does not accept the model, and what the error's first line says of it."""

    says: str
    node: dict[str, Any] = field(default_factory=dict)
    predictor: dict[str, Any] = field(default_factory=dict)


AFFINITY = {"matchExpressions": [{"key": f"{GPU}.product", "operator": "In", "values": ["NVIDIA-L40S"]}]}
CASES = {
    "taint": Barred("has taint dedicated=team-b:NoSchedule", {"taints": [TAINT, DEDICATED]}),
    "too few GPUs": Barred(f"offers 1 {GPU} of 4 requested", {"gpus": 1}),
    "no GPU": Barred(
        f"offers no {GPU} of 4 requested (it is labelled {GPU}.present=true, and no device plugin offers the GPUs)",
        {"gpus": 0},
    ),
    "selector": Barred(
        f"has label {TYPE}=g6.4xlarge (node selector: {TYPE}=g6.12xlarge)", {"labels": {TYPE: "g6.4xlarge"}}
    ),
    "affinity": Barred(
        f"does not match the node affinity {GPU}.product In [NVIDIA-L40S]",
        predictor={
            "affinity": {
                "nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [AFFINITY]}}
            }
        },
    ),
    "zone": Barred(
        f"has {ZONE}=eu-b and cannot mount PVC model-{MODEL}, whose volume pv-eu-a requires {ZONE} In [eu-a]",
        {"labels": {ZONE: "eu-b"}},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_bars_the_only_gpu_node_is_in_the_first_line(reader: StageReader, case: Barred) -> None:
    fake_nodes.create_node(reader.cluster, NODE, **case.node)
    fake_nodes.await_nodes(reader, NODE)
    with deployed(reader, **case.predictor), pytest.raises(WaitFailed) as failed:
        await_ready(reader)
    headline = failed.value.message.splitlines()[0]
    LOG.info("%s", headline)
    assert f"cannot be scheduled: node {NODE} {case.says}; node vllm-stage has no label " in headline
    assert "(scheduler: 0/2 nodes are available: " in headline


def test_the_pod_that_uses_all_gpus_is_named(reader: StageReader) -> None:
    fake_nodes.create_node(reader.cluster, NODE)
    fake_nodes.await_nodes(reader, NODE)
    container = {"name": "c", "image": "i", "resources": {"limits": {GPU: "4"}}}
    spec = {"nodeName": NODE, "containers": [container]}
    holder = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "notebook"}, "spec": spec}
    run_kubectl(reader.cluster, "default", "apply", "-f", "-", manifest=json.dumps(holder))
    try:
        with deployed(reader), pytest.raises(WaitFailed) as failed:
            await_ready(reader)
    finally:
        run_kubectl(reader.cluster, "default", "delete", "pod", "notebook", "--timeout=240s")
    headline = failed.value.message.splitlines()[0]
    LOG.info("%s", headline)
    assert f"node {NODE} has 0 of 4 {GPU} free, 4 requested (used by default/notebook)" in headline


def test_a_running_model_that_could_not_be_scheduled_again(reader: StageReader) -> None:
    fake_nodes.create_node(reader.cluster, NODE)
    fake_nodes.create_node(reader.cluster, "other-zone", labels={ZONE: "eu-b"})
    fake_nodes.await_nodes(reader, NODE, "other-zone")
    with deployed(reader):
        await_ready(reader)
        pods = reader.listed("Pod", {objects.SERVICE_LABEL: MODEL})
        assert [pod["spec"]["nodeName"] for pod in pods] == [NODE], "the scheduler found the volume's zone"
        assert restart.check_nodes(pods, reader.placement()) == []
        fake_nodes.offer_gpus(reader.cluster, NODE, 3)
        pod, ending = objects.name_of(pods[0]), "and no other node takes a replacement of"
        (line,) = restart.check_nodes(pods, reader.placement())
        assert line == f"node {NODE} offers 3 {GPU} of 4 requested, {ending} {pod}"
        fake_nodes.offer_gpus(reader.cluster, NODE, 4)
        run_kubectl(reader.cluster, NAMESPACE, "label", "node", NODE, f"{TYPE}-")
        (line,) = restart.check_nodes(pods, reader.placement())
        assert line == f"node {NODE} has no label {TYPE} (node selector: {TYPE}=g6.12xlarge), {ending} {pod}"
        assert objects.is_true(reader.listed("Pod", {objects.SERVICE_LABEL: MODEL})[0], "Ready"), (
            "healthy all the while"
        )

"""Nodes without a machine, made Ready by KWOK: the scheduler places pods on them, and KWOK reports those as running.

https://kwok.sigs.k8s.io: what a pod would do is not simulated, so a model on such a node answers nothing.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.reader import StageReader
from tests.real.live_stage import SILENT, run_kubectl

_ANNOTATION = "kwok.x-k8s.io/node"
GPU = "nvidia.com/gpu"
#: As the nodes of the reference stage: g6.12xlarge with four L4.
LABELS = {
    f"{GPU}.present": "true",
    "node.kubernetes.io/instance-type": "g6.12xlarge",
    "topology.kubernetes.io/zone": "eu-a",
}
TAINT = {"key": GPU, "value": "true", "effect": "NoSchedule"}


@contextmanager
def kwok(cluster: ClusterFacts, folder: Path) -> Iterator[None]:
    """KWOK's controller for the fake nodes of a cluster, and for no other node."""
    program = components.ensure(SILENT, ["kwok"])["kwok"]
    command = [str(program), "--kubeconfig", cluster.kubeconfig, "--manage-all-nodes=false"]
    command += ["--manage-nodes-with-annotation-selector", f"{_ANNOTATION}=fake"]
    with (folder / "kwok.log").open("w") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            yield
        finally:
            process.kill()
            process.wait()


def create_node(
    cluster: ClusterFacts, name: str, *, labels: dict[str, str] | None = None, taints: Any = (TAINT,), gpus: int = 4
) -> None:
    """Create a fake node with GPUs."""
    node = {
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {"name": name, "labels": LABELS | (labels or {}), "annotations": {_ANNOTATION: "fake"}},
        "spec": {"taints": list(taints)},
    }
    run_kubectl(cluster, "default", "apply", "-f", "-", manifest=json.dumps(node))
    offer_gpus(cluster, name, gpus)


def offer_gpus(cluster: ClusterFacts, node: str, gpus: int) -> None:
    """Set what the node's device plugin would report."""
    offered = {"cpu": "48", "memory": "192Gi", "pods": "110", GPU: str(gpus)}
    patch = json.dumps({"status": {"capacity": offered, "allocatable": offered}})
    run_kubectl(cluster, "default", "patch", "node", node, "--subresource=status", "--type=merge", "-p", patch)


def await_nodes(reader: StageReader, *names: str) -> None:
    """Wait until the nodes are Ready and the control plane has removed the taints of new nodes."""

    def look() -> Observation:
        found = {objects.name_of(node): node for node in reader.everywhere("Node")}
        late = [name for name in names if not _is_settled(found.get(name, {}))]
        return Observation(not late, f"not Ready: {', '.join(late)}")

    wait_until("fake nodes Ready", look, timeout_s=120, journal=SILENT, interval_s=0.2, error=EnvironmentUnusable)


def _is_settled(node: Object) -> bool:
    taints = [taint["key"] for taint in (node.get("spec") or {}).get("taints") or []]
    return objects.is_true(node, "Ready") and not any(key.startswith("node.kubernetes.io/") for key in taints)

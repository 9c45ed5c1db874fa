"""Which revision runs, in Standard and in Serverless mode."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.stage import revision
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.revision import Revision, Serving
from tests.unit.made_objects import pod, service


class Seen:
    """A view of these pods, and of ReplicaSets made at nine."""

    namespace = "n"
    cluster = ClusterFacts("local", "kc", "ctx", "v1", "kubectl", True, True)

    def __init__(self, *pods: Object) -> None:
        self._pods = list(pods)

    def listed(self, kind: str, labels: Any) -> list[Object]:
        assert (kind, labels) == ("Pod", {"serving.kserve.io/inferenceservice": "m"})
        return self._pods

    def get(self, kind: str, name: str) -> Object | None:
        assert kind == "ReplicaSet"
        return {"metadata": {"name": name, "creationTimestamp": "2026-11-24T09:00:00Z"}}


def running(*pods: Object, status: Object | None = None) -> Revision:
    return revision.running(Seen(*pods), service() | ({"status": status} if status else {}))  # type: ignore[arg-type]


def of(owner: str, labels: dict[str, str] | None = None, *, ready: bool = True) -> Object:
    made = pod(f"{owner}-x", ready=ready)
    made["metadata"] |= {
        "ownerReferences": [{"kind": "ReplicaSet", "name": owner, "uid": owner}],
        "labels": labels or {},
    }
    return made


def test_in_standard_mode_it_is_the_replica_set() -> None:
    assert running(of("m-5d"), of("m-4c", ready=False)) == Revision("m-5d", "2026-11-24T09:00:00Z")


def test_in_serverless_mode_it_is_knatives_revision() -> None:
    label = {"serving.knative.dev/revision": "m-00002"}
    assert running(of("m-00002-dep-7f", label)) == Revision("m-00002", "2026-11-24T09:00:00Z")


def test_a_pod_that_leaves_does_not_count() -> None:
    leaving = of("m-4c")
    leaving["metadata"]["deletionTimestamp"] = "2026-11-24T10:00:00Z"
    assert running(of("m-5d"), leaving).name == "m-5d"


def test_scaled_to_zero_it_is_the_latest_ready_one() -> None:
    status = {"components": {"predictor": {"latestReadyRevision": "m-00002"}}}
    assert running(status=status) == Revision("m-00002", "")


def test_no_or_several_ready_revisions_are_refused() -> None:
    with pytest.raises(StageFailure, match="revisions with Ready pods: none; expected one"):
        running()
    with pytest.raises(StageFailure, match="revisions with Ready pods: m-4c, m-5d; expected one"):
        running(of("m-5d"), of("m-4c"))


def serving(*pods: Object, nodes: list[Object]) -> Serving:
    seen = Seen(*pods)
    vars(seen)["everywhere"] = lambda kind: nodes if kind == "Node" else []
    return revision.serving(seen, "m")  # type: ignore[arg-type]


def engine(*arguments: str) -> Object:
    made = of("m-5d")
    made["spec"] = {
        "nodeName": "a",
        "containers": [{"name": "proxy"}, {"name": "kserve-container", "command": ["vllm"], "args": [*arguments]}],
    }
    made["status"]["containerStatuses"] = [
        {"name": "proxy", "imageID": "proxy@sha256:0"},
        {"name": "kserve-container", "imageID": "vllm@sha256:1"},
    ]
    return made


def test_what_serves_is_the_ready_pods_engine_on_its_node() -> None:
    nodes: list[Object] = [
        {"metadata": {"name": "b", "labels": {"nvidia.com/gpu.product": "NVIDIA-H100"}}},
        {"metadata": {"name": "a", "labels": {"nvidia.com/gpu.product": "NVIDIA-L4"}}, "status": {}},
    ]
    found = serving(of("m-4c", ready=False), engine("serve", "--api-key", "sesame"), nodes=nodes)
    assert found == Serving("vllm@sha256:1", "vllm serve --api-key ***", "NVIDIA-L4")


def test_without_a_gpu_the_processors_stand_for_it() -> None:
    nodes = [{"metadata": {"name": "a"}, "status": {"capacity": {"cpu": "2"}}}]
    assert serving(engine("--api-key=sesame"), nodes=nodes) == Serving(
        "vllm@sha256:1", "vllm --api-key=***", "none, 2 processors"
    )


def test_what_cannot_be_seen_is_unknown() -> None:
    assert serving(of("m-5d", ready=False), nodes=[]) == Serving()
    assert serving(engine(), nodes=[]).gpu == "", "this user may not list nodes"

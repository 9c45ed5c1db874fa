"""Which revision runs, in Standard and in Serverless mode."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vllm_stage.errors import StageFailure
from pytest_vllm_stage.stage import revision
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.revision import Revision
from tests.unit.made_objects import pod, service


class Seen:
    """A view of these pods, and of ReplicaSets made at nine."""

    namespace = "n"

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


def test_none_or_two_cannot_be_told_apart() -> None:
    with pytest.raises(StageFailure, match="revisions with Ready pods: none; one is due"):
        running()
    with pytest.raises(StageFailure, match="revisions with Ready pods: m-4c, m-5d; one is due"):
        running(of("m-5d"), of("m-4c"))

"""Taking away: only what carries the run's label, until it is gone, and what stays is named."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.deploy import teardown
from pytest_vllm_stage.stage.deploy.apply import RUN_ID_LABEL
from pytest_vllm_stage.stage.objects import Object

CLUSTER = ClusterFacts("local", "kc", "ctx", "v1", "kubectl", True, True)


def made(kind: str, name: str, run_id: str | None = None, **more: Any) -> Object:
    labels = {RUN_ID_LABEL: run_id} if run_id else {}
    return {"kind": kind, "metadata": {"name": name, "labels": labels, "finalizers": more.pop("held", [])}, **more}


class FakeKube:
    """An API server: deleting a namespace takes everything with it; what is held by a finalizer stays."""

    def __init__(self, *there: Object) -> None:
        self.there = list(there)
        self.deleted: list[str] = []

    def delete(self, resource: type, name: str, **options: Any) -> None:
        assert options["cascade"].value == "Foreground"
        self.deleted.append(f"{resource.__name__}/{name}")
        whole = resource.__name__ == "Namespace"
        self.there = [
            item
            for item in self.there
            if item["metadata"]["finalizers"]
            or not (whole or (item["kind"], item["metadata"]["name"]) == (resource.__name__, name))
        ]


def run(kube: FakeKube, monkeypatch: pytest.MonkeyPatch, run_id: str = "r1") -> list[str]:
    monkeypatch.setattr(client, "connection", lambda *_: nullcontext(kube))

    def get(_kube: object, kind: str, name: str, _namespace: str = "") -> Object | None:
        return next((i for i in kube.there if i["kind"] == kind and i["metadata"]["name"] == name), None)

    def listed(_kube: object, kind: str, _namespace: str = "", labels: dict[str, str] | None = None) -> list[Object]:
        wanted = (labels or {}).get(RUN_ID_LABEL)
        of_kind = [item for item in kube.there if item["kind"] == kind]
        return [item for item in of_kind if wanted in (None, item["metadata"]["labels"].get(RUN_ID_LABEL))]

    monkeypatch.setattr(objects, "get", get)
    monkeypatch.setattr(objects, "listed", listed)
    return teardown.teardown(CLUSTER, "ns", run_id, {"teardown_s": 0.0}, Journal())


def test_a_namespace_of_the_run_goes_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    kube = FakeKube(made("Namespace", "ns", "r1"), made("Job", "j", "r1"))
    assert run(kube, monkeypatch) == []
    assert kube.deleted == ["Namespace/ns"]


def test_a_namespace_of_somebody_else_stays_with_what_is_not_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    theirs = [made("Namespace", "ns"), made("Job", "theirs"), made("Job", "older", "r0")]
    kube = FakeKube(*theirs, made("ConfigMap", "ours", "r1"), made("InferenceService", "model", "r1"))
    assert run(kube, monkeypatch) == []
    assert kube.deleted == ["InferenceService/model", "ConfigMap/ours"], "a model goes before what it needs"
    assert kube.there == theirs


def test_what_stays_is_named_with_what_holds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    message = "inferenceservice.finalizers in 1 resource instances"
    conditions = [{"type": "NamespaceFinalizersRemaining", "status": "True", "message": message}]
    held = made("Namespace", "ns", "r1", held=["kubernetes"], status={"conditions": conditions})
    assert run(FakeKube(held), monkeypatch) == [f"namespace/ns is still there (finalizers kubernetes): {message}"]


def test_volumes_that_outlive_their_claims_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    def volume(name: str, namespace: str, phase: str) -> Object:
        return made("PersistentVolume", name, spec={"claimRef": {"namespace": namespace}}, status={"phase": phase})

    kube = FakeKube(volume("a", "ns", "Released"), volume("b", "other", "Released"), volume("c", "ns", "Bound"))
    assert run(kube, monkeypatch) == ["persistentvolume/a was claimed by ns and is Released"]


def test_a_volume_that_stays_after_its_namespace_is_left_over(monkeypatch: pytest.MonkeyPatch) -> None:
    claimed: dict[str, Any] = {"spec": {"claimRef": {"namespace": "ns"}}, "status": {"phase": "Released"}}
    kube = FakeKube(made("Namespace", "ns", "r1"), made("PersistentVolume", "v", held=["external"], **claimed))
    assert run(kube, monkeypatch) == ["persistentvolume/v was claimed by ns and is Released"]


def test_nothing_there_is_nothing_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    kube = FakeKube()
    assert run(kube, monkeypatch) == []
    assert kube.deleted == []

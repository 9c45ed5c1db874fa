"""Taking away: only what carries the run's label, until it is gone, and what stays is named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.stage.deploy import teardown
from pytest_vllm_stage.stage.deploy.apply import RUN_ID_LABEL
from pytest_vllm_stage.stage.objects import Object
from tests.unit.made_api import ApiServer, served


def made(kind: str, name: str, run_id: str | None = None, **more: Any) -> Object:
    labels = {RUN_ID_LABEL: run_id} if run_id else {}
    return {"kind": kind, "metadata": {"name": name, "labels": labels, "finalizers": more.pop("held", [])}, **more}


@pytest.fixture
def api() -> Iterator[ApiServer]:
    with served() as server:
        yield server


def run(api: ApiServer, folder: Path, *there: Object) -> list[str]:
    for item in there:
        api.add(item)
    return teardown.teardown(api.facts(folder), "ns", "r1", {"teardown_s": 0.0}, Journal())


def deleted(api: ApiServer) -> list[str]:
    return ["/".join(line.split("/")[-2:]) for line in api.asked("DELETE")]


def test_a_namespace_of_the_run_goes_whole(api: ApiServer, tmp_path: Path) -> None:
    assert run(api, tmp_path, made("Namespace", "ns", "r1"), made("Job", "j", "r1")) == []
    assert deleted(api) == ["namespaces/ns"]


def test_a_namespace_of_another_owner_stays_with_what_is_not_ours(api: ApiServer, tmp_path: Path) -> None:
    theirs = [made("Namespace", "ns"), made("Job", "theirs"), made("Job", "older", "r0")]
    ours = [made("ConfigMap", "ours", "r1"), made("InferenceService", "model", "r1"), made("Endpoints", "e", "r1")]
    assert run(api, tmp_path, *theirs, *ours) == []
    assert deleted(api) == ["inferenceservices/model", "configmaps/ours"], "a model goes before what it needs"
    assert all(item in api.objects.values() for item in theirs)


def test_what_stays_is_named_with_what_holds_it(api: ApiServer, tmp_path: Path) -> None:
    message = "inferenceservice.finalizers in 1 resource instances"
    conditions = [{"type": "NamespaceFinalizersRemaining", "status": "True", "message": message}]
    held = made("Namespace", "ns", "r1", held=["kubernetes"], status={"conditions": conditions})
    assert run(api, tmp_path, held) == [f"namespace/ns still exists (finalizers kubernetes): {message}"]


def test_volumes_that_outlive_their_claims_are_listed(api: ApiServer, tmp_path: Path) -> None:
    def volume(name: str, namespace: str, phase: str) -> Object:
        return made("PersistentVolume", name, spec={"claimRef": {"namespace": namespace}}, status={"phase": phase})

    volumes = [volume("a", "ns", "Released"), volume("b", "other", "Released"), volume("c", "ns", "Bound")]
    assert run(api, tmp_path, *volumes) == ["persistentvolume/a was claimed by ns and is Released"]


def test_a_volume_that_stays_after_its_namespace_is_left_over(api: ApiServer, tmp_path: Path) -> None:
    claimed: dict[str, Any] = {"spec": {"claimRef": {"namespace": "ns"}}, "status": {"phase": "Released"}}
    held = made("PersistentVolume", "v", held=["external"], **claimed)
    assert run(api, tmp_path, made("Namespace", "ns", "r1"), held) == [
        "persistentvolume/v was claimed by ns and is Released"
    ]


def test_nothing_there_is_nothing_to_do(api: ApiServer, tmp_path: Path) -> None:
    assert run(api, tmp_path) == []
    assert deleted(api) == []

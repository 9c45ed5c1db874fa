"""Declared against live, and the manifests against themselves."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vllm_stage.stage import drift
from pytest_vllm_stage.stage.objects import Object
from tests.unit.made_objects import IMAGE, claim, job, runtime, served_spec, service


def test_the_demand_is_runtime_and_service_together() -> None:
    wanted = drift.demand(service("m"), runtime())
    assert wanted.args == ("--port=8080", "--served-model-name=m", "--max-model-len=2048")
    assert wanted.resources == {"requests.memory": "1Gi", "limits.memory": "2Gi"}
    assert drift.demand(service(image="other"), runtime()).image == "other"


def test_a_live_container_as_demanded_does_not_differ() -> None:
    assert drift.compare_serving(drift.demand(service(), runtime()), served_spec()) == []


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({"image": "other"}, f"image: declared {IMAGE}, live other"),
        ({"command": ["sh"]}, "command: declared ['python3', '-m', 'vllm'], live ['sh']"),
        ({"env": []}, "env HOME: declared /home/vllm, live (absent)"),
        ({"resources": {"limits": {"memory": "2Gi"}}}, "resources requests.memory: declared 1Gi, live (absent)"),
        (
            {"resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "3Gi"}}},
            "resources limits.memory: declared 2Gi, live 3Gi",
        ),
    ],
)
def test_each_difference_is_one_line(changed: dict[str, Any], expected: str) -> None:
    assert drift.compare_serving(drift.demand(service(), runtime()), served_spec(**changed)) == [expected]


def test_arguments_differ_by_presence_and_by_order() -> None:
    assert drift.compare_args(("--a", "--b"), ("--a", "--c")) == [
        "argument declared, not live: --b",
        "argument live, not declared: --c",
    ]
    assert drift.compare_args(("--a=1", "--a=2"), ("--a=2", "--a=1")) == [
        "arguments in another order: declared --a=1 --a=2, live --a=2 --a=1"
    ]
    assert drift.compare_args((), ()) == []


def workload(image: str) -> Object:
    spec = {"template": {"spec": {"initContainers": [{"name": "i", "image": image}], "containers": []}}}
    return {"kind": "Deployment", "metadata": {"name": "d"}, "spec": spec}


@pytest.mark.parametrize("image", [IMAGE, "vllm-stage.local/base:1", "registry.example:5000/a/b@sha256:" + "0" * 64])
def test_pinned_images_pass(image: str) -> None:
    assert drift.unpinned([workload(image), runtime()]) == []


@pytest.mark.parametrize(
    "image", ["vllm/vllm-openai:latest", "vllm/vllm-openai", "a@sha256:abc", "evil/vllm-stage.local/base:1"]
)
def test_images_without_a_digest_are_reported(image: str) -> None:
    (line,) = drift.unpinned([workload(image), runtime()])
    assert line == f"Deployment/d initContainers[i]: {image} is not pinned by digest (name@sha256:...)"


def labelled(item: Object, model: str, version: str) -> Object:
    item["metadata"]["labels"] = {drift.MODEL_LABEL: model, drift.VERSION_LABEL: version}
    return item


def test_labels_agree_over_service_volume_and_download() -> None:
    items = [labelled(item, "m", "w4a16") for item in (service(), claim(), job())]
    assert drift.labels(items) == []
    labelled(items[2], "m", "quantized-w4a16")
    (line,) = drift.labels(items)
    assert "Job/download-m is labelled ('m', 'quantized-w4a16'), InferenceService/m ('m', 'w4a16')" in line


def test_service_without_labels_is_reported() -> None:
    assert drift.labels([service()]) == ["InferenceService/m lacks the labels vllm-stage/model and vllm-stage/version"]


def test_a_models_objects_are_found_by_its_volume() -> None:
    other = job("download-other", claim_name="model-other")
    assert drift.find_model_objects([claim(), job(), other], service()) == [claim(), job()]
    assert drift.find_model_objects([claim(), job()], service(storageUri="s3://models/m")) == []

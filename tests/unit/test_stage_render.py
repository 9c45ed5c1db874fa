"""Rendering an overlay, and what is derived from the manifests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable
from pytest_vllm_stage.stage.deploy import render


def kubectl_that(folder: Path, script: str) -> str:
    path = folder / "kubectl"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


def manifest(kind: str, name: str, wave: str | None = None, **fields: Any) -> dict[str, Any]:
    annotations = {render.WAVE_ANNOTATION: wave} if wave else {}
    return {"kind": kind, "metadata": {"name": name, "annotations": annotations}, **fields}


def test_documents_are_read_and_empty_ones_left_out(tmp_path: Path) -> None:
    script = (
        "printf -- 'apiVersion: v1\\nkind: Pod\\nmetadata: {name: a}\\n---\\n---\\n"
        "apiVersion: batch/v1\\nkind: Job\\nmetadata: {name: b}\\n'"
    )
    found = render.render(tmp_path, kubectl_that(tmp_path, script))
    assert [item["kind"] for item in found] == ["Pod", "Job"]


def test_an_overlay_that_does_not_render_is_named_with_the_reason(tmp_path: Path) -> None:
    kubectl = kubectl_that(tmp_path, "echo 'error: accumulating resources: base/x.yaml: no such file' >&2; exit 1")
    with pytest.raises(
        ConfigError, match=rf"overlay {tmp_path} does not render: accumulating .*base/x\.yaml"
    ) as failed:
        render.render(tmp_path, kubectl)
    assert failed.value.hint == f"{kubectl} kustomize {tmp_path}"


@pytest.mark.parametrize(
    ("document", "missing"),
    [
        ("kind: Gizmo\\nmetadata: {name: a}", r"\(Gizmo\) lacks apiVersion"),
        ("apiVersion: v1\\nkind: Pod\\nmetadata: {}", r"\(Pod\) lacks metadata.name"),
        ("[1, 2]", r"\(no kind\) lacks apiVersion, kind, metadata.name"),
    ],
)
def test_a_document_that_is_not_a_manifest_is_rejected(tmp_path: Path, document: str, missing: str) -> None:
    with pytest.raises(ConfigError, match=rf"a document {missing}"):
        render.render(tmp_path, kubectl_that(tmp_path, f"printf '{document}\\n'"))


def test_a_missing_kubectl_is_the_environments_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentUnusable, match="kubectl kustomize does not run"):
        render.render(tmp_path, str(tmp_path / "kubectl"))


def test_waves_are_in_order_and_default_to_zero() -> None:
    items = [manifest("InferenceService", "c", "1"), manifest("Job", "b"), manifest("Namespace", "a", "-1")]
    assert [[item["metadata"]["name"] for item in wave] for wave in render.waves(items)] == [["a"], ["b"], ["c"]]


def test_another_namespace_changes_metadata_alone() -> None:
    before = [manifest("Namespace", "old"), {"kind": "Job", "metadata": {"name": "j", "namespace": "old"}, "spec": {}}]
    after = render.in_namespace(before, "new")
    assert after[0]["metadata"]["name"] == "new"
    assert after[1]["metadata"]["namespace"] == "new"
    assert before[0]["metadata"]["name"] == "old"


def test_fields_are_flat_with_their_paths() -> None:
    item = manifest("ServingRuntime", "vllm", spec={"containers": [{"image": "a:1", "args": ["x", "y"], "env": []}]})
    flat = render.flatten([item])
    assert flat["ServingRuntime/vllm spec.containers[0].image"] == "a:1"
    assert flat["ServingRuntime/vllm spec.containers[0].args[1]"] == "y"
    assert flat["ServingRuntime/vllm spec.containers[0].env"] == "[]"

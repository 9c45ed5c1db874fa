"""Do the manifests declare what a stage needs, before anything runs?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.checks.stage import consistency, secret_values
from pytest_vllm_stage.stage import drift
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import StageConfig

    Object = dict[str, Any]


def test_images_are_pinned_by_digest(declared: list[Object], stage_config: StageConfig) -> None:
    """Every image is named by digest, so that two runs of one manifest run the same program.

    Images that the local cluster builds itself are exempt.
    """
    assert drift.images(declared), "the manifests name no image: nothing was checked"
    lines = drift.unpinned(declared)
    overlay = stage_config.profile.overlay
    assert not lines, health.message("image not pinned", lines, f"set `images` in {overlay}/kustomization.yaml")


def test_models_share_one_runtime(declared: list[Object], stage_config: StageConfig) -> None:
    """All target models name the same ServingRuntime: they differ in the model, not in the engine."""
    models = stage_config.profile.models.values()
    services = [render.named(declared, "InferenceService", model.inference_service) for model in models]
    names = {drift.runtime_name(service) for service in services if service}
    assert len(names) == 1, f"the models name {len(names)} runtimes: {', '.join(sorted(names)) or 'none'}"
    name = names.pop()
    assert render.named(declared, "ServingRuntime", name), f"ServingRuntime {name} is named but not declared"


def test_model_labels_agree(declared: list[Object], stage_config: StageConfig) -> None:
    """A model's service, volume and download carry the same model and version labels.

    Results are filed under these labels: where they differ, numbers are attributed to the wrong model.
    """
    assert render.select_kind(declared, "InferenceService"), (
        "the manifests declare no InferenceService: nothing was checked"
    )
    lines = drift.labels(declared)
    command = f"correct the labels in {stage_config.profile.overlay}"
    assert not lines, health.message("model labels do not agree", lines, command)


def test_manifests_contradict_nothing(declared: list[Object], stage_config: StageConfig) -> None:
    """GPUs, names, ports, probes, volumes, addresses and annotations in the manifests fit each other and the engine.

    The API server accepts each alone: together they fail when the model starts or is probed later, waste GPUs that it
    holds, or ask for something that no controller reads.
    """
    assert render.select_kind(declared, "InferenceService"), "the manifests declare no model: nothing was checked"
    models = stage_config.profile.models.values()
    lines = consistency.find_contradictions(declared, {one.inference_service for one in models if one.dummy_weights})
    command = f"correct the manifests in {stage_config.profile.overlay}"
    assert not lines, health.message("the manifests contradict each other", lines, command)


def test_no_manifest_shows_a_secret(declared: list[Object], stage_config: StageConfig) -> None:
    """No argument and no variable in the manifests holds a key, token or password itself.

    Every reader of the pods, or of the manifests' repository, could use it; a Secret has rights of its own.
    """
    assert declared, "the overlay declares no object: nothing was checked"
    lines = secret_values.find_plain_secrets(declared)
    command = f"replace each in {stage_config.profile.overlay} by valueFrom.secretKeyRef, and renew what was shown"
    assert not lines, health.message("a manifest shows a secret", lines, command)

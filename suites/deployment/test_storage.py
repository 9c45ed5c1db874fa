"""Are the models' weights on their volumes complete and unaltered?"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage import StageError, does_not_apply
from pytest_vllm_stage.checks.stage import weights
from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.observe import health

if TYPE_CHECKING:
    from pytest_vllm_stage import Run, StageConfig, StageFacts, StageReader

    Object = dict[str, Any]


def test_claims_are_bound(reader: StageReader, declared: list[Object], kubectl: str) -> None:
    """Every declared PersistentVolumeClaim is Bound, with at least the declared size."""
    claims = render.select_kind(declared, "PersistentVolumeClaim")
    services = render.select_kind(declared, "InferenceService")
    if not claims and services and not any(map(drift.claim_name, services)):
        does_not_apply("the manifests declare no volume, and their models come from elsewhere (storageUri)")
    assert claims, "the manifests declare no PersistentVolumeClaim: nothing was checked"
    lines = [
        line
        for claim in claims
        for line in health.check_claim(reader.get("PersistentVolumeClaim", objects.name_of(claim)), claim)
    ]
    assert not lines, health.message("volumes are not as declared", lines, f"{kubectl} describe pvc")


def test_volume_is_where_the_model_runs(
    reader: StageReader, declared_service: Object, pods: list[Object], kubectl: str
) -> None:
    """The model's volume is in the zone of the node that mounts it.

    Otherwise the pod stays Pending after the next restart: a zonal volume does not move to another zone.
    """
    name = drift.claim_name(declared_service)
    if name is None:
        does_not_apply(f"the model of {objects.name_of(declared_service)} is on no volume of the stage (storageUri)")
    claim = reader.get("PersistentVolumeClaim", name)
    volumes = {objects.name_of(volume): volume for volume in reader.everywhere("PersistentVolume")}
    nodes = {objects.name_of(node): node for node in reader.everywhere("Node")}
    volume = volumes.get(claim["spec"].get("volumeName", "")) if claim else None
    if volume is None or not nodes:
        pytest.skip("volumes and nodes are cluster-wide, and this user may not list them")
    lines = health.check_placement(pods, volume, nodes)
    assert not lines, health.message("volume and node are in different zones", lines, f"{kubectl} get pods -o wide")


def test_download_completed(reader: StageReader, download: Object, kubectl: str) -> None:
    """The model's download Job completed; it writes its manifest last, after hashing what it wrote."""
    name = objects.name_of(download)
    lines = health.check_job(reader.get("Job", name), name)
    assert not lines, health.message("download did not complete", lines, f"{kubectl} logs job/{name}")


def test_weights_are_unaltered(
    reader: StageReader,
    stage: StageFacts,
    stage_run: Run,
    stage_config: StageConfig,
    download: Object,
    pods: list[Object],
    kubectl: str,
    record_property: Callable[[str, object], None],
) -> None:
    """Every file on the model's volume has the SHA-256 of the manifest and of the source.

    A Job in the cluster reads the volume's bytes. A changed file still loads, but its answers get worse.
    """
    if not stage.owned:
        does_not_apply("hashing needs a Job in the cluster, and a stage that is only attached to is not changed")
    node = next((pod["spec"].get("nodeName") for pod in pods), None)
    timeout_s = stage_config.profile.waits_s["model_download_s"]
    try:
        report = weights.verify(reader, download, node, stage.run_id, timeout_s, stage_run.journal)
    except StageError as error:
        pytest.fail(f"weights could not be hashed: {error}", pytrace=False)
    record_property("weights.size_bytes", sum(size for size, _ in report.files.values()))
    lines = weights.problems(report)
    command = f"delete job/{objects.name_of(download)} and its volume, and deploy again ({kubectl} get pvc)"
    assert not lines, "\n".join([*lines, f"  next: {command}"])

"""What each condition reports for the objects that it observes."""

from __future__ import annotations

import pytest

from pytest_vllm_stage.settings.profile import DEFAULT_WAITS_S
from pytest_vllm_stage.stage.deploy import waves
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import conditions
from pytest_vllm_stage.stage.observe.reader import ConditionStatus
from tests.unit.made_objects import (
    claim,
    condition,
    deployment,
    ended,
    job,
    pod,
    runtime,
    served_spec,
    service,
    waiting,
)
from tests.unit.made_reader import Snapshot

STATIC = {"kind": "StorageClass", "metadata": {"name": "fast"}, "provisioner": "kubernetes.io/no-provisioner"}


def job_labelled(name: str, made: Object) -> Object:
    made["metadata"]["ownerReferences"] = [{"uid": f"uid-{name}"}]
    return made


def cause(status: ConditionStatus) -> str:
    assert status.trouble is not None
    return status.trouble.cause


def test_a_namespace_takes_pods_once_its_account_is_there() -> None:
    wanted = conditions.NamespaceActive("ns", 1)
    active = {"kind": "Namespace", "metadata": {"name": "ns"}, "status": {"phase": "Active"}}
    account = {"kind": "ServiceAccount", "metadata": {"name": "default"}}
    assert not wanted.observe(Snapshot()).done
    assert not wanted.observe(Snapshot(active)).done
    assert wanted.observe(Snapshot(active, account)).done


def test_unbound_claim_is_explained() -> None:
    wanted = conditions.ClaimBound("model-m", 1)
    assert wanted.observe(Snapshot(claim(phase="Bound"))).done
    assert not wanted.observe(Snapshot()).done
    assert "no PersistentVolume of StorageClass fast offers 40Gi" in cause(wanted.observe(Snapshot(claim(), STATIC)))


def test_unavailable_deployment_is_explained_by_its_pods() -> None:
    wanted = conditions.DeploymentAvailable("m-predictor", 1)
    assert wanted.observe(Snapshot(deployment())).done
    assert wanted.observe(Snapshot(deployment(availableReplicas=0))).state.endswith("no pod yet")
    secret = waiting("CreateContainerConfigError", "couldn't find key k in Secret ns/s")
    stuck = Snapshot(deployment(availableReplicas=0), pod(ready=False, statuses=[secret]))
    assert cause(wanted.observe(stuck)) == 'secret s has no key "k"'


def test_incomplete_job_is_explained_by_its_pods_log() -> None:
    wanted = conditions.JobComplete("download-m", 1)
    assert wanted.observe(Snapshot(job(conditions=[condition("Complete")]))).done
    assert not wanted.observe(Snapshot(job())).done
    failed = job_labelled("download-m", pod(statuses=[ended(1)], spec={"restartPolicy": "Never"}))
    seen = wanted.observe(Snapshot(job(), failed, log=["error: token refused: HTTP 403 for a/b"]))
    assert cause(seen) == "token refused: HTTP 403 for a/b"


def test_failed_job_without_pods_is_explained_by_its_condition() -> None:
    late = job(conditions=[condition("Failed", reason="DeadlineExceeded", message="too long")])
    assert cause(conditions.JobComplete("download-m", 1).observe(Snapshot(late))) == "DeadlineExceeded: too long"


def test_a_service_is_ready_when_its_pods_are_of_its_generation() -> None:
    wanted = conditions.InferenceServiceReady("m", 1)
    current, old = pod(spec=served_spec()), pod(spec=served_spec(args=["--old"]))
    there = (service(), runtime(), deployment())
    assert wanted.observe(Snapshot(*there, current)).done
    stale = wanted.observe(Snapshot(*there, old))
    assert not stale.done
    assert "older generation" in stale.state
    assert not wanted.observe(Snapshot(service(ready="False"), runtime(), deployment(), current)).done


def test_an_unscheduled_pods_claim_says_more_than_the_scheduler() -> None:
    wanted = conditions.JobComplete("download-m", 1)
    reason = condition("PodScheduled", "False", reason="Unschedulable", message="0/1 nodes are available")
    volumes = [{"name": "v", "persistentVolumeClaim": {"claimName": "model-m"}}]
    stuck = job_labelled("download-m", pod(ready=False, statuses=[], conditions=[reason], spec={"volumes": volumes}))
    assert cause(wanted.observe(Snapshot(job(), stuck, claim(), STATIC))).startswith("PVC model-m cannot bind")
    assert cause(wanted.observe(Snapshot(job(), stuck))) == "PVC model-m does not exist"
    assert "cannot be scheduled" in cause(wanted.observe(Snapshot(job(), stuck, claim(phase="Bound"))))


def test_each_kind_is_waited_for_in_its_own_time() -> None:
    wave = [job(), service(), claim(), deployment(), {"kind": "ConfigMap", "metadata": {"name": "c"}}]
    found = {wanted.what: wanted.timeout_s for wanted in waves.conditions_of(wave, DEFAULT_WAITS_S)}
    assert found == {
        "job/download-m condition=Complete": DEFAULT_WAITS_S["model_download_s"],
        "inferenceservice/m condition=Ready": DEFAULT_WAITS_S["inference_service_s"],
        "pvc/model-m phase=Bound": DEFAULT_WAITS_S["persistent_volume_claim_s"],
        "deployment/m-predictor condition=Available": DEFAULT_WAITS_S["minio_s"],
    }


@pytest.mark.parametrize(
    ("args", "length"),
    [(["--max-model-len=2048"], 2048), (["--max-model-len", "512"], 512), (["--port=1"], None), ([], None)],
)
def test_the_context_length_is_read_from_the_arguments(args: list[str], length: int | None) -> None:
    assert waves.max_model_len(args) == length


def test_the_batch_limit_is_read_from_the_arguments() -> None:
    assert waves.max_num_seqs(["--max-num-seqs=8", "--max-num-seqs", "16"]) == 16
    assert waves.max_num_seqs(["--max_num_seqs=8"]) == 8
    assert waves.max_num_seqs(["exec vllm serve /mnt/models\n  --max-num-seqs  4\n"]) == 4
    assert waves.max_num_seqs(["--x--max-num-seqs=8"]) is None
    assert waves.max_num_seqs([]) is None

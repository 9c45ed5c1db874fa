# ruff: noqa: E501 the texts of other programs stay whole
"""Claims, volumes and what fills them."""

from __future__ import annotations

from pytest_vllm_stage.stage.observe import conditions
from tests.unit.deployment_faults.fault import READY, STARTING, Fault, Object, changed, model, unscheduled
from tests.unit.made_objects import claim, ended, event, job, pod


def job_pod(made: Object) -> Object:
    made["metadata"]["ownerReferences"] = [{"uid": "uid-download-m"}]
    made["spec"]["restartPolicy"] = "Never"
    return made


LOST = changed(claim(), "status", phase="Lost")
LOST["spec"]["volumeName"] = "pv-1"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "claim whose volume was deleted",
        "pvc/model-m cannot be bound: PVC model-m is Lost: its PersistentVolume pv-1 no longer exists",
        (LOST,),
        of=conditions.ClaimBound,
    ),
    Fault(
        "volume of a class that does not exist",
        "job/download-m cannot complete: PVC model-m cannot bind: there is no StorageClass gp4 (existing: gp3)",
        (
            job(),
            job_pod(
                unscheduled(
                    "pod has unbound immediate PersistentVolumeClaims",
                    volumes=[{"name": "v", "persistentVolumeClaim": {"claimName": "model-m"}}],
                )
            ),
            claim(storage_class="gp4"),
            {"kind": "StorageClass", "metadata": {"name": "gp3"}, "provisioner": "ebs.csi.aws.com"},
        ),
        of=conditions.JobComplete,
    ),
    Fault(
        "export that the node cannot mount",
        f'{READY}: pod p: a volume cannot be mounted: MountVolume.MountDevice failed for volume "pvc-1" : mount failed: exit '
        "status 32 mount.nfs: Connection timed out",
        model(STARTING),
        (),
        (
            event(
                STARTING,
                "FailedMount",
                'MountVolume.MountDevice failed for volume "pvc-1" : rpc error: code = Internal desc = mount failed: exit '
                "status 32\nMounting command: mount\nMounting arguments: -t nfs 10.0.0.9:/export /var/lib/kubelet/plugins/x\n"
                "Output: mount.nfs: Connection timed out",
            ),
        ),
    ),
    Fault(
        "volume that another node holds",
        f'{READY}: pod p: a volume cannot be mounted: Multi-Attach error for volume "pvc-1" Volume is already exclusively '
        "attached to one node and can't be attached to another",
        model(STARTING),
        (),
        (
            event(
                STARTING,
                "FailedAttachVolume",
                'Multi-Attach error for volume "pvc-1" Volume is already exclusively attached to one node and can\'t be '
                "attached to another",
            ),
        ),
    ),
    Fault(
        "S3 credentials that the store refuses",
        "job/download-m cannot complete: models/m/config.json could not be read: HTTP 403 InvalidAccessKeyId: The Access Key "
        "Id you provided does not exist in our records.",
        (job(), job_pod(pod(statuses=[ended(1)]))),
        (
            'error: models/m/config.json could not be read: HTTP 403 <?xml version="1.0" encoding="UTF-8"?> <Error><Code>'
            "InvalidAccessKeyId</Code><Message>The Access Key Id you provided does not exist in our records.</Message><Key>",
        ),
        of=conditions.JobComplete,
    ),
)

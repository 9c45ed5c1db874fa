# ruff: noqa: E501 the texts of other programs stay whole
"""Containers that are never started, or are ended from outside."""

from __future__ import annotations

from tests.unit.deployment_faults.fault import READY, RUNNING, STARTING, Fault, changed, model
from tests.unit.made_objects import condition, container_status, ended, event, pod, waiting

LOST_NODE = {
    "kind": "Node",
    "metadata": {"name": "g6-3"},
    "spec": {},
    "status": {
        "conditions": [
            condition("Ready", "Unknown", reason="NodeStatusUnknown", message="Kubelet stopped posting node status.")
        ]
    },
}
TOO_OLD = (
    "nvidia-container-cli: requirement error: unsatisfied condition: cuda>=12.8, please update your driver to a newer "
    "version, or use an earlier cuda container"
)
NEVER_STARTED = ended(128, "StartError", restarts=3)
NEVER_STARTED["lastState"]["terminated"]["message"] = (
    "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create failed: unable to "
    f"start container process: {TOO_OLD}: unknown"
)
TAINTED = changed(
    pod(ready=False, statuses=[]),
    "status",
    phase="Failed",
    conditions=[
        condition(
            "DisruptionTarget", reason="DeletionByTaintManager", message="Taint manager: deleting due to NoExecute"
        )
    ],
)

FAULTS: tuple[Fault, ...] = (
    Fault(
        "image that runs as root where that is forbidden",
        f"{READY}: container kserve-container cannot be configured: container has runAsNonRoot and image will run as root",
        model(
            pod(
                ready=False,
                statuses=[
                    waiting("CreateContainerConfigError", "container has runAsNonRoot and image will run as root")
                ],
            )
        ),
    ),
    Fault(
        "command that the image does not have",
        f'{READY}: container kserve-container cannot be started: exec: "python4": executable file not found in $PATH',
        model(
            pod(
                ready=False,
                statuses=[
                    waiting(
                        "RunContainerError",
                        "failed to create containerd task: failed to create shim task: OCI runtime create failed: runc create "
                        'failed: unable to start container process: exec: "python4": executable file not found in $PATH: '
                        "unknown",
                    )
                ],
            )
        ),
    ),
    Fault(
        "command that ends at once, without an error",
        f"{READY}: container kserve-container ends with exit code 0 and was restarted 3 times: it does not keep running",
        model(
            pod(
                ready=False,
                statuses=[
                    container_status(
                        ready=False,
                        state={"waiting": {"reason": "CrashLoopBackOff"}},
                        lastState={"terminated": {"exitCode": 0, "reason": "Completed"}},
                        restartCount=3,
                    )
                ],
            )
        ),
    ),
    Fault(
        "image that needs a newer GPU driver than the node has",
        f"{READY}: container kserve-container cannot be started: {TOO_OLD}",
        model(pod(ready=False, statuses=[NEVER_STARTED])),
    ),
    Fault(
        "ConfigMap of a volume that does not exist",
        f"{READY}: pod p: configmap chat-template does not exist",
        model(STARTING),
        (),
        (
            event(
                STARTING, "FailedMount", 'MountVolume.SetUp failed for volume "t" : configmap "chat-template" not found'
            ),
        ),
    ),
    Fault(
        "network plugin that fails on the node",
        f'{READY}: pod p: its network or sandbox cannot be created: Failed to create pod sandbox: plugin type="bridge" '
        "failed (add): no IP addresses available in range set",
        model(STARTING),
        (),
        (
            event(
                STARTING,
                "FailedCreatePodSandBox",
                'Failed to create pod sandbox: plugin type="bridge" failed (add): no IP addresses available in range set',
            ),
        ),
    ),
    Fault(
        "node that is lost while the model starts",
        f"{READY}: pod p runs on node g6-3, which is not Ready: Kubelet stopped posting node status.",
        model(pod(ready=False, statuses=[RUNNING], spec={"nodeName": "g6-3"}), LOST_NODE),
    ),
    Fault(
        "pod that a taint of its node ends",
        f"{READY}: pod p was ended (DeletionByTaintManager): Taint manager: deleting due to NoExecute",
        model(TAINTED),
    ),
)

# ruff: noqa: E501 the texts of other programs stay whole
"""Pods that no node takes."""

from __future__ import annotations

from tests.unit.deployment_faults.fault import READY, Fault, Object, changed, model, unscheduled
from tests.unit.made_objects import pod

GATED = unscheduled(
    "Scheduling is blocked due to non-empty scheduling gates", schedulingGates=[{"name": "example.com/w"}]
)
GATED["status"]["conditions"][0]["reason"] = "SchedulingGated"
STRANGE_SCHEDULER = pod(ready=False, statuses=[], conditions=[], spec={"schedulerName": "gang"})
MOVED = {
    "kind": "Node",
    "metadata": {"name": "g6-1"},
    "spec": {"taints": [{"key": "nvidia.com/gpu", "value": "l4", "effect": "NoSchedule"}]},
}
BUSY = {
    "kind": "Node",
    "metadata": {"name": "g6-2", "labels": {"topology.kubernetes.io/zone": "eu-b"}},
    "spec": {},
    "status": {"allocatable": {"nvidia.com/gpu": "1"}},
}
ON_GPU: list[Object] = [{"name": "kserve-container", "resources": {"limits": {"nvidia.com/gpu": "1"}}}]
HOLDER = pod("notebook-0", spec={"nodeName": "g6-2", "containers": ON_GPU})
HOLDER["metadata"]["namespace"] = "team-b"
ZONAL: tuple[Object, ...] = (
    {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "model-m"},
        "spec": {"volumeName": "pv-1"},
        "status": {"phase": "Bound"},
    },
    {
        "kind": "PersistentVolume",
        "metadata": {"name": "pv-1"},
        "spec": {
            "nodeAffinity": {
                "required": {
                    "nodeSelectorTerms": [
                        {
                            "matchExpressions": [
                                {"key": "topology.kubernetes.io/zone", "operator": "In", "values": ["eu-a"]}
                            ]
                        }
                    ]
                }
            }
        },
    },
)
WEIGHTS = [{"name": "weights", "persistentVolumeClaim": {"claimName": "model-m"}}]
ON_AMD: list[Object] = [{"name": "kserve-container", "resources": {"limits": {"amd.com/gpu": "1"}}}]
ON_DISK: list[Object] = [{"name": "kserve-container", "resources": {"requests": {"ephemeral-storage": "40Gi"}}}]


def offering(name: str, **allocatable: str) -> Object:
    return {"kind": "Node", "metadata": {"name": name}, "spec": {}, "status": {"allocatable": allocatable}}


PARTED = offering("a100", cpu="64", **{"nvidia.com/mig-1g.10gb": "7", "nvidia.com/gpu": "0"})
AMD = offering("mi300", **{"amd.com/gpu": "1"})
AMD_HOLDER = changed(pod("train-0", spec={"nodeName": "mi300", "containers": ON_AMD}), "metadata", namespace="team-b")
SMALL = offering("small", **{"ephemeral-storage": "20Gi"})
REQUIRED = "requiredDuringSchedulingIgnoredDuringExecution"
APART = {
    "topologyKey": "kubernetes.io/hostname",
    "labelSelector": {"matchLabels": {"app": "vllm"}},
    "namespaceSelector": {},
}

BROKEN = offering("g6-4", cpu="64", **{"nvidia.com/gpu": "0"})
BROKEN["status"]["capacity"] = {"nvidia.com/gpu": "4"}
UNOFFERED = changed(offering("g6-5", cpu="64"), "metadata", labels={"nvidia.com/gpu.present": "true"})
NO_GPU = "0/1 nodes are available: 1 Insufficient nvidia.com/gpu."


def of_revision(template: str, made: Object, name: str) -> Object:
    labels = {"serving.kserve.io/inferenceservice": "m", "pod-template-hash": template}
    return changed(made, "metadata", name=name, uid=f"uid-{name}", namespace="ns", labels=labels)


FAULTS: tuple[Fault, ...] = (
    Fault(
        "more GPUs than any node has",
        f"{READY}: pod p cannot be scheduled: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: not "
        "eligible",
        model(unscheduled("0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: not eligible")),
    ),
    Fault(
        "GPU nodes with a taint that is not tolerated",
        f"{READY}: pod p cannot be scheduled: node g6-1 has taint nvidia.com/gpu=l4:NoSchedule (scheduler: 0/1 nodes are "
        "available: 1 node(s) had untolerated taint(s).)",
        model(unscheduled("0/1 nodes are available: 1 node(s) had untolerated taint(s)."), MOVED),
    ),
    Fault(
        "GPUs that another team's pod uses",
        f"{READY}: pod p cannot be scheduled: node g6-2 has 0 of 1 nvidia.com/gpu free, 1 requested (used by "
        "team-b/notebook-0) (scheduler: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.)",
        model(unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", containers=ON_GPU), BUSY, HOLDER),
    ),
    Fault(
        "GPUs that are offered in parts",
        f"{READY}: pod p cannot be scheduled: node a100 offers no nvidia.com/gpu of 1 requested (it offers 7 "
        "nvidia.com/mig-1g.10gb) (scheduler: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.)",
        model(unscheduled("0/1 nodes are available: 1 Insufficient nvidia.com/gpu.", containers=ON_GPU), PARTED),
    ),
    Fault(
        "GPUs of another vendor that another team's pod uses",
        f"{READY}: pod p cannot be scheduled: node mi300 has 0 of 1 amd.com/gpu free, 1 requested (used by team-b/train-0) "
        "(scheduler: 0/1 nodes are available: 1 Insufficient amd.com/gpu.)",
        model(unscheduled("0/1 nodes are available: 1 Insufficient amd.com/gpu.", containers=ON_AMD), AMD, AMD_HOLDER),
    ),
    Fault(
        "local disk of the node that other pods have reserved",
        f"{READY}: pod p cannot be scheduled: node small offers 20Gi ephemeral-storage of 40Gi requested (scheduler: 0/1 "
        "nodes are available: 1 Insufficient ephemeral-storage.)",
        model(unscheduled("0/1 nodes are available: 1 Insufficient ephemeral-storage.", containers=ON_DISK), SMALL),
    ),
    Fault(
        "anti-affinity to the other model on the only node",
        f"{READY}: pod p cannot be scheduled: node g6-2 runs team-b/notebook-0, which the pod's anti-affinity excludes from "
        "one kubernetes.io/hostname (scheduler: 0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.)",
        model(
            unscheduled(
                "0/1 nodes are available: 1 node(s) didn't match pod anti-affinity rules.",
                affinity={"podAntiAffinity": {REQUIRED: [APART]}},
            ),
            BUSY,
            changed(
                pod("notebook-0", spec={"nodeName": "g6-2"}), "metadata", namespace="team-b", labels={"app": "vllm"}
            ),
        ),
    ),
    Fault(
        "GPU node that only the scheduler knows the reason of",
        f"{READY}: pod p cannot be scheduled: node g6-2 has no known obstacle; node g6-1 has taint "
        "nvidia.com/gpu=l4:NoSchedule (scheduler: 0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) "
        "exceed max volume count.)",
        model(
            unscheduled(
                "0/2 nodes are available: 1 node(s) had untolerated taint(s), 1 node(s) exceed max volume count."
            ),
            MOVED,
            BUSY,
        ),
    ),
    Fault(
        "volume in another zone than the GPU node",
        f"{READY}: pod p cannot be scheduled: node g6-2 has topology.kubernetes.io/zone=eu-b and cannot mount PVC model-m, "
        "whose volume pv-1 requires topology.kubernetes.io/zone In [eu-a] (scheduler: 0/1 nodes are available: 1 node(s) "
        "didn't match PersistentVolume's node affinity.)",
        model(
            unscheduled(
                "0/1 nodes are available: 1 node(s) didn't match PersistentVolume's node affinity.", volumes=WEIGHTS
            ),
            BUSY,
            *ZONAL,
        ),
    ),
    Fault(
        "node selector that no node has",
        f"{READY}: pod p cannot be scheduled: node g6-2 has no label nvidia.com/gpu.present (node selector: "
        "nvidia.com/gpu.present=true) (scheduler: 0/1 nodes are available: 1 node(s) didn't match Pod's node "
        "affinity/selector.)",
        model(
            unscheduled(
                "0/1 nodes are available: 1 node(s) didn't match Pod's node affinity/selector.",
                nodeSelector={"nvidia.com/gpu.present": "true"},
            ),
            BUSY,
        ),
    ),
    Fault(
        "scheduler that does not run",
        f"{READY}: pod p waits for scheduler gang, which has not processed it",
        model(STRANGE_SCHEDULER),
    ),
    Fault(
        "scheduling gate that is never removed",
        f"{READY}: pod p is held back by scheduling gate example.com/w",
        model(GATED),
    ),
    Fault(
        "rolling update of a model that has the only GPU",
        f"{READY}: pod m-predictor-new cannot be scheduled: node g6-2 has 0 of 1 nvidia.com/gpu free, 1 requested (used by "
        "ns/m-predictor-old) (scheduler: 0/1 nodes are available: 1 Insufficient nvidia.com/gpu.); the rollout cannot "
        "proceed: m-predictor-old, which this pod is to replace, keeps its nvidia.com/gpu until this pod is Ready "
        "(deploymentStrategy Recreate ends it first)",
        model(
            of_revision("b2", unscheduled(NO_GPU, containers=ON_GPU), "m-predictor-new"),
            of_revision("a1", pod(spec={"nodeName": "g6-2", "containers": ON_GPU}), "m-predictor-old"),
            BUSY,
        ),
    ),
    Fault(
        "GPUs that their device plugin reports as unhealthy",
        f"{READY}: pod p cannot be scheduled: node g6-4 offers no nvidia.com/gpu of 1 requested (its device plugin reports 4 "
        f"of 4 as unhealthy) (scheduler: {NO_GPU})",
        model(unscheduled(NO_GPU, containers=ON_GPU), BROKEN),
    ),
    Fault(
        "GPU node whose device plugin does not run",
        f"{READY}: pod p cannot be scheduled: node g6-5 offers no nvidia.com/gpu of 1 requested (it is labelled "
        f"nvidia.com/gpu.present=true, and no device plugin offers the GPUs) (scheduler: {NO_GPU})",
        model(unscheduled(NO_GPU, containers=ON_GPU), UNOFFERED),
    ),
)

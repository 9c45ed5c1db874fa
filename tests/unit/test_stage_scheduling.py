"""Why no node can host a pod: each obstacle is named with its node, and a node that fits has none."""

from __future__ import annotations

from typing import Any

import pytest

from pytest_vllm_stage.checks.stage import restart
from pytest_vllm_stage.stage.observe import rollout
from pytest_vllm_stage.stage.observe.scheduling import PlacementFacts, explain_unschedulable, find_obstacles
from tests.unit.made_objects import Object, pod

GPU = "nvidia.com/gpu"
ZONE = "topology.kubernetes.io/zone"


def gpu_node(name: str = "g1", gpus: int = 4, **labels: str) -> Object:
    return {
        "kind": "Node",
        "metadata": {"name": name, "labels": {ZONE: "eu-a", "type": "l4", **labels}},
        "spec": {},
        "status": {"allocatable": {"cpu": "16", "memory": "64Gi", GPU: str(gpus), "pods": "110"}},
    }


def wants(gpus: int = 1, name: str = "p", node: str = "", **spec: Any) -> Object:
    resources = {"requests": {"cpu": "2", "memory": "8Gi", GPU: str(gpus)}, "limits": {GPU: str(gpus)}}
    placed = {"nodeName": node} if node else {}
    return pod(name, spec={"containers": [{"name": "c", "resources": resources}], **placed, **spec})


def required(*expressions: Object) -> Object:
    terms = {"nodeSelectorTerms": [{"matchExpressions": list(expressions)}]}
    return {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": terms}}


def in_zone(*zones: str) -> Object:
    return {"key": ZONE, "operator": "In", "values": list(zones)}


def zonal(zone: str) -> tuple[Object, Object, Object]:
    """The volumes of a pod, the claim and the volume that is in a zone."""
    term = {"nodeSelectorTerms": [{"matchExpressions": [in_zone(zone)]}]}
    volume = {"metadata": {"name": "pv-1"}, "spec": {"nodeAffinity": {"required": term}}}
    claim = {"metadata": {"name": "model-m"}, "spec": {"volumeName": "pv-1"}}
    return {"volumes": [{"name": "w", "persistentVolumeClaim": {"claimName": "model-m"}}]}, claim, volume


def obstacles(made: Object, node: Object, *pods: Object, claims: Any = (), volumes: Any = ()) -> list[str]:
    return find_obstacles(node, made, PlacementFacts([node], pods, claims, volumes))


def test_a_node_that_fits_has_no_obstacle() -> None:
    mounts, claim, volume = zonal("eu-a")
    affinity = required(in_zone("eu-a", "eu-b"), {"key": "type", "operator": "Exists"})
    made = wants(nodeSelector={"type": "l4"}, affinity=affinity, **mounts)
    other = wants(3, "other", "g1")
    assert obstacles(made, gpu_node(), other, claims=[claim], volumes=[volume]) == []


def test_devices_that_a_node_lacks_or_that_are_in_use() -> None:
    cpu_node = gpu_node()
    del cpu_node["status"]["allocatable"][GPU]
    assert obstacles(wants(4), cpu_node) == [f"offers no {GPU} of 4 requested"]
    assert obstacles(wants(4), gpu_node(gpus=1)) == [f"offers 1 {GPU} of 4 requested"]
    holder, ended, elsewhere = wants(3, "holder", "g1"), wants(4, "done", "g1"), wants(4, "away", "g2")
    ended["status"]["phase"] = "Succeeded"
    holder["metadata"]["namespace"] = "team-b"
    assert obstacles(wants(2), gpu_node(), holder, ended, elsewhere) == [
        f"has 1 of 4 {GPU} free, 2 requested (used by team-b/holder)"
    ]


def test_pods_of_one_name_in_two_namespaces_count_twice() -> None:
    users = [wants(2, "predictor", "g1") for _ in range(2)]
    for number, user in enumerate(users):
        user["metadata"] |= {"namespace": f"n{number}", "uid": f"u{number}"}
    assert obstacles(wants(1), gpu_node(), *users) == [
        f"has 0 of 4 {GPU} free, 1 requested (used by n0/predictor, n1/predictor)"
    ]


def test_a_running_pod_does_not_stand_in_its_own_way() -> None:
    running = wants(4, node="g1")
    assert obstacles(running, gpu_node(), running) == []


def test_the_largest_init_container_counts_and_a_sidecar_adds() -> None:
    made = wants(2, initContainers=[{"name": "i", "resources": {"requests": {GPU: "4"}}}])
    assert obstacles(made, gpu_node(gpus=3)) == [f"offers 3 {GPU} of 4 requested"]
    sidecar = {"name": "s", "restartPolicy": "Always", "resources": {"limits": {GPU: "2"}}}
    assert obstacles(wants(2, initContainers=[sidecar]), gpu_node(gpus=3)) == [f"offers 3 {GPU} of 4 requested"]


def test_memory_is_shown_in_gibibytes() -> None:
    node = gpu_node()
    node["status"]["allocatable"]["memory"] = "4096Mi"
    assert obstacles(wants(), node) == ["offers 4Gi memory of 8Gi requested"]


def test_labels_that_differ_or_are_missing() -> None:
    assert obstacles(wants(nodeSelector={"type": "h100", f"{GPU}.present": "true"}), gpu_node()) == [
        "has label type=l4 (node selector: type=h100)",
        f"has no label {GPU}.present (node selector: {GPU}.present=true)",
    ]


@pytest.mark.parametrize(
    ("expression", "met"),
    [
        (in_zone("eu-a"), True),
        (in_zone("eu-b"), False),
        ({"key": "type", "operator": "NotIn", "values": ["l4"]}, False),
        ({"key": "absent", "operator": "NotIn", "values": ["l4"]}, True),
        ({"key": "absent", "operator": "Exists"}, False),
        ({"key": "absent", "operator": "DoesNotExist"}, True),
        ({"key": "memory-gb", "operator": "Gt", "values": ["16"]}, True),
        ({"key": "memory-gb", "operator": "Lt", "values": ["16"]}, False),
        ({"key": "type", "operator": "Gt", "values": ["16"]}, False),
    ],
)
def test_node_affinity_is_judged_as_the_scheduler_does(expression: Object, met: bool) -> None:
    found = obstacles(wants(affinity=required(expression)), gpu_node("g1", 4, **{"memory-gb": "24"}))
    values = f" [{', '.join(expression['values'])}]" if "values" in expression else ""
    assert found == (
        [] if met else [f"does not match the node affinity {expression['key']} {expression['operator']}{values}"]
    )


def test_a_volume_in_another_zone() -> None:
    mounts, claim, volume = zonal("eu-b")
    assert obstacles(wants(**mounts), gpu_node(), claims=[claim], volumes=[volume]) == [
        f"has {ZONE}=eu-a and cannot mount PVC model-m, whose volume pv-1 requires {ZONE} In [eu-b]"
    ]
    assert obstacles(wants(**mounts), gpu_node()) == [], "claims and volumes that cannot be listed are not judged"


def test_cordons_and_absent_nodes_in_words() -> None:
    node = gpu_node()
    node["spec"] = {
        "unschedulable": True,
        "taints": [
            {"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"},
            {"key": "node.kubernetes.io/unreachable", "effect": "NoExecute"},
        ],
    }
    assert obstacles(wants(), node) == ["is cordoned", "is not Ready"]


def test_nodes_with_the_same_obstacles_are_named_together_and_gpu_nodes_first() -> None:
    workers = [gpu_node(f"w{number}") for number in range(5)]
    for worker in workers:
        del worker["status"]["allocatable"][GPU]
    tainted = gpu_node("g9", type="h100")
    tainted["spec"]["taints"] = [{"key": GPU, "effect": "NoSchedule"}]
    made = wants(nodeSelector={"type": "l4"})
    assert explain_unschedulable(made, PlacementFacts([*workers, tainted])) == (
        f"node g9 has taint {GPU}:NoSchedule and has label type=h100 (node selector: type=l4); "
        f"each of the nodes w0, w1, w2 and 2 more offers no {GPU} of 1 requested"
    )
    many = [gpu_node(f"n{number}", gpus=number) for number in range(1, 7)]
    assert explain_unschedulable(wants(8), PlacementFacts(many)).endswith("; 3 more nodes have other reasons")


def test_a_node_with_many_obstacles_shows_the_first_two() -> None:
    made = wants(8, nodeSelector={"type": "h100", "pool": "a"})
    assert explain_unschedulable(made, PlacementFacts([gpu_node()])) == (
        "node g1 has label type=l4 (node selector: type=h100) and has no label pool (node selector: pool=a) (1 more)"
    )


def test_a_node_without_a_status_is_judged_by_its_labels_and_taints_alone() -> None:
    assert find_obstacles({"metadata": {"name": "n"}}, wants(), PlacementFacts()) == []


def test_a_healthy_pod_that_could_not_be_scheduled_again() -> None:
    running = wants(4, "m-predictor", "g1")
    node = gpu_node(gpus=0)  # a device plugin that has ended
    assert restart.check_nodes([running], PlacementFacts([node, gpu_node("g2", gpus=1)], [running])) == [
        f"node g1 offers no {GPU} of 4 requested, and no other node takes a replacement of m-predictor"
    ]
    assert restart.check_nodes([running], PlacementFacts([node, gpu_node("g2")], [running])) == []


def neighbour(name: str, node: str, **labels: str) -> Object:
    made = pod(name, labels={"app": "vllm", **labels}, spec={"nodeName": node})
    made["metadata"]["namespace"] = "ns"
    return made


def near(kind: str, key: str, **labels: str) -> Object:
    term = {"topologyKey": key, "labelSelector": {"matchLabels": labels}}
    return {kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def around(made: Object, node: Object, others: list[Object], *nodes: Object) -> list[str]:
    made["metadata"] |= {"namespace": "ns", "labels": {"app": "vllm"}}
    return find_obstacles(node, made, PlacementFacts([node, *nodes], others))


def test_anti_affinity_is_named_with_the_pod_that_repels_and_in_both_directions() -> None:
    apart = near("podAntiAffinity", ZONE, app="vllm")
    other_zone = gpu_node("g2", 4, **{ZONE: "eu-b"})
    made = pod("p", spec={"affinity": apart})
    assert around(made, gpu_node(), [neighbour("full", "g2")], other_zone) == []
    assert around(made, gpu_node(), [neighbour("full", "g1")], other_zone) == [
        f"runs ns/full, which the pod's anti-affinity excludes from one {ZONE}"
    ]
    guard = neighbour("guard", "g1")
    guard["spec"]["affinity"] = apart
    assert around(pod("p"), gpu_node(), [guard]) == [
        f"is kept free of the pod by the anti-affinity of ns/guard ({ZONE})"
    ]
    guard["metadata"]["namespace"] = "elsewhere"
    assert around(pod("p"), gpu_node(), [guard]) == []


def test_affinity_needs_its_pod_unless_the_pod_is_the_first_of_its_kind() -> None:
    host = "kubernetes.io/hostname"
    made = pod("p", spec={"affinity": near("podAffinity", host, app="cache")})
    assert around(made, gpu_node(), [neighbour("c", "g2", app="cache")], gpu_node("g2")) == [
        f"runs no pod with app=cache, which the pod's affinity requires in its {host}"
    ]
    assert around(made, gpu_node(), [neighbour("c", "g1", app="cache")]) == []
    first = pod("p", spec={"affinity": near("podAffinity", host, app="vllm")})
    assert around(first, gpu_node(), [neighbour("c", "g2", app="other")], gpu_node("g2")) == []


def test_topology_spread_is_named_with_its_counts() -> None:
    rule = {"topologyKey": ZONE, "maxSkew": 1, "labelSelector": {"matchLabels": {"app": "vllm"}}}
    made = pod("p", spec={"topologySpreadConstraints": [rule]})
    others = [neighbour("a", "g1"), neighbour("b", "g1")]
    assert around(made, gpu_node(), others, gpu_node("g2", 4, **{ZONE: "eu-b"})) == [
        f"is in {ZONE}=eu-a with 2 such pods, at most 1 more than elsewhere (topology spread constraint)"
    ]
    assert around(made, gpu_node("g2", 4, **{ZONE: "eu-b"}), others, gpu_node()) == []
    bare = gpu_node("g3")
    del bare["metadata"]["labels"][ZONE]
    assert around(made, bare, others, gpu_node()) == [f"has no label {ZONE} (topology spread constraint)"]
    made["spec"]["topologySpreadConstraints"][0]["whenUnsatisfiable"] = "ScheduleAnyway"
    assert around(made, bare, others, gpu_node()) == []


def test_topology_spread_leaves_out_nodes_that_the_pod_may_not_choose() -> None:
    rule = {"topologyKey": ZONE, "maxSkew": 1, "labelSelector": {"matchLabels": {"app": "vllm"}}}
    chosen = {"nodeSelector": {"pool": "gpu"}, "topologySpreadConstraints": [rule]}
    nodes = [gpu_node("g1", 4, pool="gpu"), gpu_node("c1", 4, **{ZONE: "eu-b"})]
    replicas = [neighbour("a", "g1"), neighbour("b", "g1")]
    assert around(pod("p", spec=chosen), nodes[0], replicas, nodes[1]) == []
    rule["nodeAffinityPolicy"] = "Ignore"
    assert len(around(pod("p", spec=chosen), nodes[0], replicas, nodes[1])) == 1


def test_zone_of_a_volume_is_also_a_label() -> None:
    mounts, claim, volume = zonal("eu-b")
    volume["spec"] = {}
    volume["metadata"]["labels"] = {ZONE: "eu-b__eu-c"}
    (found,) = obstacles(wants(**mounts), gpu_node(), claims=[claim], volumes=[volume])
    assert found.endswith(f"whose volume pv-1 requires {ZONE} In [eu-b, eu-c]")
    volume["metadata"]["labels"] = {ZONE: "eu-a__eu-c"}
    assert obstacles(wants(**mounts), gpu_node(), claims=[claim], volumes=[volume]) == []


@pytest.mark.parametrize(
    ("other", "is_older"),
    [
        ({}, True),
        ({"pod-template-hash": "b"}, False),  # a second replica
        ({"serving.kserve.io/inferenceservice": "n"}, False),
        ({"serving.kserve.io/inferenceservice": None}, False),
    ],
)
def test_a_pod_waits_for_the_one_that_it_replaces_and_for_no_other(other: Object, is_older: bool) -> None:
    new, old = wants(name="new"), wants(name="old", node="g1")
    labels = {"serving.kserve.io/inferenceservice": "m"}
    new["metadata"]["labels"] = {**labels, "pod-template-hash": "b"}
    old["metadata"]["labels"] = {**labels, "pod-template-hash": "a", **other}
    assert ("old, which this pod is to replace" in rollout.describe_predecessor(new, [new, old])) == is_older
    old["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z"
    assert rollout.describe_predecessor(new, [old]) == "", "it leaves already"


def test_devices_that_their_plugin_withdrew_are_counted() -> None:
    node = gpu_node(gpus=3)
    node["status"]["capacity"] = {GPU: "4"}
    (line,) = obstacles(wants(4), node)
    assert line == f"offers 3 {GPU} of 4 requested (its device plugin reports 1 of 4 as unhealthy)"
    assert obstacles(wants(3), node) == []

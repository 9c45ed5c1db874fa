"""Drift of every field in both directions, over a recorded stage: none is missed, and the platform's own are known."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from pytest_vllm_stage.checks.stage.drift.compare import compare_declared
from pytest_vllm_stage.checks.stage.drift.fields import MISSING, find_differences
from pytest_vllm_stage.checks.stage.drift.owners import Owner, find_owner
from pytest_vllm_stage.checks.stage.drift.platform import Surroundings
from tests.unit.recorded_stage import LATER, MODEL, RecordedStage, owned

Object = dict[str, Any]
Change = Callable[[RecordedStage], None]
WEBHOOK = "set by an admission plugin or webhook when the pod was created"


def container_of(item: Object) -> Object:
    spec = item["spec"].get("template", item)["spec"]
    found: Object = spec["containers"][0]
    return found


def test_a_healthy_stage_has_no_drift() -> None:
    stage = RecordedStage.load()
    assert len(stage.declared) > 20
    assert stage.find_drift() == []


def test_every_removed_field_of_a_live_object_is_reported() -> None:
    """Each declared field in turn, of each kind: the comparison has no blind spot by path."""
    stage, missed, compared = RecordedStage.load(), [], 0
    for manifest in stage.declared:
        live = stage.get(manifest["kind"], manifest["metadata"]["name"])
        if manifest["kind"] in ("Namespace", "Secret"):
            continue
        for path in paths_of({key: manifest[key] for key in ("spec", "data") if key in manifest}):
            changed, compared = copy.deepcopy(live), compared + 1
            remove(changed, path)
            if not compare_declared(manifest, changed, Surroundings()):
                missed.append((manifest["kind"], manifest["metadata"]["name"], path))
    assert compared > 250
    assert missed == []


def paths_of(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every map entry and list item that is not itself a map or list of one."""
    items = list(value.items()) if isinstance(value, dict) else list(enumerate(value))
    found: list[tuple[Any, ...]] = []
    for key, item in items:
        if isinstance(item, (dict, list)) and item:
            found += paths_of(item, (*path, key))
        elif item not in ("", False, None, {}, []) and key not in ("protocol", "name"):
            found.append((*path, key))
    return found


def remove(item: Any, path: tuple[Any, ...]) -> None:
    for step in path[:-1]:
        item = item[step]
    del item[path[-1]]


def istio(stage: RecordedStage) -> None:
    pod = stage.pod_of(f"{MODEL}-predictor")
    injected = {"containers": ["istio-proxy"], "initContainers": ["istio-init"], "volumes": ["istio-envoy"]}
    pod["metadata"]["annotations"] |= {"sidecar.istio.io/status": json.dumps(injected), "istio.io/rev": "default"}
    pod["metadata"]["labels"] |= {"security.istio.io/tlsMode": "istio"}
    pod["spec"]["containers"].append({"name": "istio-proxy", "image": "proxy"})
    pod["spec"]["initContainers"] = [{"name": "istio-init", "image": "proxy"}]
    pod["spec"]["volumes"].append({"name": "istio-envoy", "emptyDir": {}})
    container_of(pod)["readinessProbe"]["httpGet"] |= {"path": "/app-health/kserve-container/readyz", "port": 15020}


def openshift(stage: RecordedStage) -> None:
    pod = stage.pod_of("minio")
    pod["metadata"]["annotations"] = {
        "openshift.io/scc": "restricted-v2",
        "k8s.ovn.org/pod-networks": "{}",
        "seccomp.security.alpha.kubernetes.io/pod": "runtime/default",
        "k8s.v1.cni.cncf.io/network-status": "[]",
    }
    pod["spec"]["securityContext"] = {
        "seLinuxOptions": {"level": "s0:c27,c4"},
        "fsGroup": 1000720000,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    container_of(pod)["securityContext"] |= {"runAsUser": 1000720000, "runAsNonRoot": True}
    pod["spec"]["imagePullSecrets"] = [{"name": "default-dockercfg-abcde"}]
    account = stage.get("ServiceAccount", "vllm")
    account["imagePullSecrets"] = [{"name": "vllm-dockercfg-x7x2z"}]
    account["secrets"].append({"name": "vllm-dockercfg-x7x2z"})
    account["metadata"]["annotations"]["openshift.io/internal-registry-pull-secret-ref"] = "vllm-dockercfg-x7x2z"
    service = stage.get("InferenceService", MODEL)
    service["metadata"]["labels"]["opendatahub.io/dashboard"] = "true"
    service["metadata"]["annotations"]["openshift.io/display-name"] = "model"


def kueue_and_gpus(stage: RecordedStage) -> None:
    pod = stage.pod_of(f"{MODEL}-predictor")
    pod["metadata"]["labels"] |= {"kueue.x-k8s.io/managed": "true", "kueue.x-k8s.io/queue-name": "default"}
    pod["metadata"]["annotations"]["kueue.x-k8s.io/workload"] = "w"
    pod["spec"]["schedulingGates"] = [{"name": "kueue.x-k8s.io/admission"}]
    pod["spec"]["tolerations"] += [
        {"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/memory-pressure", "operator": "Exists", "effect": "NoSchedule"},
    ]


def limit_range(created: str) -> Object:
    limits = [{"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "50m"}}]
    return {
        "kind": "LimitRange",
        "metadata": {"name": "lr", "creationTimestamp": created},
        "spec": {"limits": limits},
    }


def with_limit_range(created: str) -> Change:
    def change(stage: RecordedStage) -> None:
        stage.live.append(limit_range(created))
        pod = stage.pod_of("minio")
        pod["metadata"]["annotations"] = {"kubernetes.io/limit-ranger": "LimitRanger plugin set: cpu limit for minio"}
        container_of(pod)["resources"]["limits"]["cpu"] = "1"

    return change


def deployed_by_a_pipeline(stage: RecordedStage) -> None:
    """Argo CD applied the objects, with its tracking label, and Helm's labels are there too."""
    for item in stage.live:
        for entry in item["metadata"].get("managedFields") or []:
            entry["manager"] = entry["manager"].replace("pytest-vllm-stage", "argocd-controller")
        item["metadata"].setdefault("labels", {})["app.kubernetes.io/instance"] = "stage"
        item["metadata"].setdefault("annotations", {})["argocd.argoproj.io/tracking-id"] = "stage:x"


def applied_by_hand(stage: RecordedStage) -> None:
    """``kubectl apply`` notes the manifest in an annotation, and has the defaults too."""
    for item in stage.live:
        item["metadata"].setdefault("annotations", {})["kubectl.kubernetes.io/last-applied-configuration"] = "{}"
    deployment = stage.get("Deployment", "minio")
    owned(deployment, "kubectl-client-side-apply", "f:spec", "f:progressDeadlineSeconds")


def restarted(stage: RecordedStage) -> None:
    deployment = stage.get("Deployment", "minio")
    key = "kubectl.kubernetes.io/restartedAt"
    deployment["spec"]["template"]["metadata"]["annotations"] = {key: LATER}
    owned(deployment, "kubectl-rollout", "f:spec", "f:template", "f:metadata", "f:annotations", f"f:{key}")


def more_keys_of_the_deployer(stage: RecordedStage) -> None:
    secret = stage.get("Secret", "minio-credentials")
    secret["data"]["AWS_S3_BUCKET"] = "eA=="
    secret["metadata"]["managedFields"][0]["fieldsV1"].setdefault("f:data", {})
    for entry in secret["metadata"]["managedFields"]:
        entry["fieldsV1"]["f:data"] = {"f:accesskey": {}, "f:secretkey": {}, "f:AWS_S3_BUCKET": {}}


def quantities_in_other_units(stage: RecordedStage) -> None:
    for item in (stage.get("Deployment", "minio"), *stage.listed("ReplicaSet"), stage.pod_of("minio")):
        resources = container_of(item)["resources"]
        if resources["limits"]["memory"] == "1Gi":
            resources["limits"]["memory"] = "1024Mi"


@pytest.mark.parametrize(
    "change",
    [
        istio,
        openshift,
        kueue_and_gpus,
        with_limit_range("2026-11-26T00:00:00Z"),
        deployed_by_a_pipeline,
        applied_by_hand,
        restarted,
        more_keys_of_the_deployer,
        quantities_in_other_units,
    ],
    ids=lambda change: getattr(change, "__name__", "limit range that is older than the stage"),
)
def test_additions_of_the_platform_are_not_reported(change: Change) -> None:
    stage = RecordedStage.load()
    change(stage)
    assert stage.find_drift() == []


def test_a_limit_range_that_is_newer_than_the_stage_is_drift() -> None:
    stage = RecordedStage.load()
    with_limit_range(LATER)(stage)
    pod, stranger = stage.find_drift()
    assert "containers[minio].resources.limits.cpu: live, not declared: 1; set by LimitRange lr" in pod
    assert stranger.startswith("LimitRange/lr: live, not declared: it applies to every pod")


@pytest.mark.parametrize(
    ("annotation", "name"), [("sidecar.istio.io/status", "miner"), ("linkerd.io/proxy-version", "miner")]
)
def test_a_sidecar_that_no_injector_declares_is_drift(annotation: str, name: str) -> None:
    stage = RecordedStage.load()
    pod = stage.pod_of("minio")
    pod["metadata"]["annotations"] = {annotation: '{"containers": ["istio-proxy"]}'}
    pod["spec"]["containers"].append({"name": name, "image": "i"})
    (line,) = stage.find_drift()
    assert line.endswith(f"spec.containers[miner]: live, not declared: image i; {WEBHOOK}")


def test_secrets_are_not_shown() -> None:
    stage = RecordedStage.load()
    container_of(stage.get("Deployment", "minio"))["env"].append({"name": "API_KEY", "value": "sesame-open"})
    container_of(stage.get("Deployment", "minio"))["args"].append("--api-key=sesame-open")
    text = "\n".join(stage.find_drift())
    assert "env[API_KEY]: live, not declared: value ***" in text
    assert "--api-key=***" in text
    assert "sesame" not in text


def test_owner_of_a_field_is_the_manager_that_wrote_last() -> None:
    item: Object = {"metadata": {}}
    owned(item, "helm", "f:spec", "f:replicas")
    item["metadata"]["managedFields"][0]["time"] = "2026-01-01T00:00:00Z"
    other: Object = {"metadata": {}}
    owned(other, "kubectl-scale", "f:spec", "f:replicas")
    item["metadata"]["managedFields"] += other["metadata"]["managedFields"]
    assert find_owner(item, ("spec", "replicas")) == Owner("kubectl-scale", LATER)
    assert str(find_owner(item, ("spec", "replicas"))) == f"by kubectl scale (kubectl-scale) at {LATER}"
    assert find_owner(item, ("spec", "paused")) == Owner()


def test_an_atomic_list_is_owned_as_a_whole() -> None:
    item: Object = {"metadata": {}}
    owned(item, "kubectl-edit", "f:spec", "f:containers")
    assert find_owner(item, ("spec", "containers", "[c]", "image")).is_person
    assert not Owner("kubectl-client-side-apply").is_person


def test_empty_fields_and_dropped_zeros_are_equal_to_absent_ones() -> None:
    declared = {"a": {}, "mount": {"readOnly": False}, "probe": {"initialDelaySeconds": 0}, "port": 80}
    assert list(find_differences(declared, {"b": [], "mount": {}, "probe": {}, "port": "80"})) == []
    (found,) = find_differences({"automount": False}, {})
    assert (found.where, found.declared, found.live) == ("automount", False, MISSING)

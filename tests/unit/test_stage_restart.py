"""States that break at the next restart, over a recorded stage: each is named, and the healthy stage has none."""

from __future__ import annotations

import base64
import datetime
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.checks.stage import (
    admission,
    certificates,
    images,
    members,
    pod_security,
    restart,
    service_targets,
)
from pytest_vllm_stage.core.certificates import parse_pem
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.observe.scheduling import PlacementFacts
from tests.unit.made_certificates import Authority
from tests.unit.recorded_stage import LATER, MODEL, RecordedStage, owned

Object = dict[str, Any]
NOW = datetime.datetime(2026, 11, 26, tzinfo=datetime.UTC)


def find_problems(stage: RecordedStage) -> list[str]:
    """Every line of the checks of suites/deployment/test_restart.py that are about objects."""
    pods = members.select_pods(stage.listed("Pod"), stage.declared)
    assert len(pods) == 4
    placement = PlacementFacts(
        *(stage.listed(kind) for kind in ("Node", "Pod", "PersistentVolumeClaim", "PersistentVolume"))
    )
    kinds = ("Secret", "ConfigMap", "ServiceAccount")
    live = {kind: {objects.name_of(item): item for item in stage.listed(kind)} for kind in kinds}
    return [
        *restart.check_deletions(members.select_declared(stage.live, stage.declared)),
        *restart.check_nodes(pods, placement),
        *service_targets.check_services(members.select_services(stage.listed("Service"), stage.declared), pods),
        *admission.check_quotas(stage.listed("ResourceQuota"), stage.listed("LimitRange"), pods),
        *admission.check_controllers(stage.listed("Pod")),
        *[line for namespace in stage.listed("Namespace") for line in pod_security.check_level(namespace, pods)],
        *restart.check_references(pods, live),
        *images.check_node_images(pods, stage.listed("Node")),
        *images.check_pulls(pods, stage.listed("Pod")),
        *images.check_pull_secrets(pods, live["Secret"]),
    ]


def test_a_healthy_stage_survives_a_restart() -> None:
    assert find_problems(RecordedStage.load()) == []


def deleted_claim(stage: RecordedStage) -> None:
    claim = stage.get("PersistentVolumeClaim", f"model-{MODEL}")
    claim["metadata"]["deletionTimestamp"] = LATER


def lost_claim(stage: RecordedStage) -> None:
    stage.get("PersistentVolumeClaim", "minio-data")["status"]["phase"] = "Lost"


def cordoned(stage: RecordedStage) -> None:
    spec = stage.listed("Node")[0]["spec"]
    spec["unschedulable"] = True
    spec["taints"] = [{"key": "node.kubernetes.io/unschedulable", "effect": "NoSchedule"}]


def another_node(stage: RecordedStage) -> None:
    another_node_without_the_volumes(stage)
    for volume in stage.listed("PersistentVolume"):
        del volume["spec"]["nodeAffinity"]


def another_node_without_the_volumes(stage: RecordedStage) -> None:
    """The stage's volumes are folders of the first node."""
    cordoned(stage)
    stage.live.append({"kind": "Node", "metadata": {"name": "other"}, "spec": {}, "status": {}})


def tainted(stage: RecordedStage) -> None:
    stage.listed("Node")[0]["spec"]["taints"] = [{"key": "dedicated", "value": "batch", "effect": "NoSchedule"}]


def under_pressure(stage: RecordedStage) -> None:
    condition = next(one for one in stage.listed("Node")[0]["status"]["conditions"] if one["type"] == "DiskPressure")
    condition |= {"status": "True", "message": "kubelet has disk pressure"}


def selects_nothing(stage: RecordedStage) -> None:
    stage.get("Service", "minio")["spec"]["selector"]["tier"] = "gold"


def wrong_port(stage: RecordedStage) -> None:
    stage.get("Service", "minio")["spec"]["ports"][0]["targetPort"] = "api"


def wrong_number(stage: RecordedStage) -> None:
    stage.get("Service", "minio")["spec"]["ports"][0]["targetPort"] = 9001


def wrong_number_before_a_container_without_ports(stage: RecordedStage) -> None:
    wrong_number(stage)
    stage.pod_of("minio")["spec"]["containers"].append({"name": "console", "image": "console"})


def shared_service(name: str, port: str) -> Callable[[RecordedStage], None]:
    """A declared Service that selects every model's pods."""

    def plant(stage: RecordedStage) -> None:
        spec = {"selector": {"component": "predictor"}, "ports": [{"name": port, "port": 80, "targetPort": 8080}]}
        made: Object = {"kind": "Service", "metadata": {"name": name}, "spec": spec}
        stage.live.append(made)
        stage.declared.append(made)

    return plant


def limit_range(**entry: Any) -> Callable[[RecordedStage], None]:
    def plant(stage: RecordedStage) -> None:
        limits = [{"type": "Container", **entry}]
        stage.live.append({"kind": "LimitRange", "metadata": {"name": "small"}, "spec": {"limits": limits}})

    return plant


def quota(**hard: str) -> Callable[[RecordedStage], None]:
    def plant(stage: RecordedStage) -> None:
        used = {"pods": "4", "limits.memory": "2Gi"}
        made: Object = {"kind": "ResourceQuota", "metadata": {"name": "q"}, "spec": {"hard": hard}}
        made["status"] = {"hard": hard, "used": {name: used.get(name, "0") for name in hard}}
        stage.live.append(made)

    return plant


def changed_secret(stage: RecordedStage) -> None:
    owned(stage.get("Secret", "minio-credentials"), "kubectl-edit", "f:data", "f:secretkey")


def removed_image(stage: RecordedStage) -> None:
    status = stage.listed("Node")[0]["status"]
    status["images"] = [image for image in status["images"] if not any("minio" in name for name in image["names"])]


def forbidden_pull(stage: RecordedStage) -> None:
    removed_image(stage)
    stage.pod_of("minio")["spec"]["containers"][0]["imagePullPolicy"] = "Never"


def failing_pull(stage: RecordedStage) -> None:
    image = stage.pod_of("minio")["spec"]["containers"][0]["image"]
    waiting = {"reason": "ImagePullBackOff", "message": "manifest unknown"}
    status = {"phase": "Pending", "containerStatuses": [{"image": image, "state": {"waiting": waiting}}]}
    stage.live.append({"kind": "Pod", "metadata": {"name": "new"}, "spec": {"containers": []}, "status": status})


def lost_pull_secret(stage: RecordedStage) -> None:
    stage.pod_of("minio")["spec"]["imagePullSecrets"] = [{"name": "registry"}]


def opaque_pull_secret(stage: RecordedStage) -> None:
    stage.pod_of("minio")["spec"]["imagePullSecrets"] = [{"name": "minio-credentials"}]


def removed_account(stage: RecordedStage) -> None:
    stage.live.remove(stage.get("ServiceAccount", "vllm"))


def controller(*ready: bool) -> Callable[[RecordedStage], None]:
    def plant(stage: RecordedStage) -> None:
        for number, is_ready in enumerate(ready):
            labels = {"control-plane": "kserve-controller-manager"}
            meta = {"name": f"kserve-{number}", "namespace": "kserve", "labels": labels}
            waiting = {"reason": "CrashLoopBackOff"}
            state: Object = {"running": {}} if is_ready else {"waiting": waiting}
            status = {
                "phase": "Running",
                "conditions": [{"type": "Ready", "status": str(is_ready)}],
                "containerStatuses": [{"name": "manager", "ready": is_ready, "state": state}],
            }
            spec = {"containers": [{"name": "manager"}]}
            stage.live.append({"kind": "Pod", "metadata": meta, "spec": spec, "status": status})

    return plant


def enforcing(level: str) -> Callable[[RecordedStage], None]:
    """The namespace's pod security level, set after the pods were created."""

    def plant(stage: RecordedStage) -> None:
        made: Object = {"kind": "Namespace", "metadata": {"name": "ns", "labels": {pod_security.ENFORCE: level}}}
        owned(made, "kubectl-label", "f:metadata", "f:labels", f"f:{pod_security.ENFORCE}")
        stage.live.append(made)

    return plant


def reporting(kind: str, status: str) -> Callable[[RecordedStage], None]:
    def plant(stage: RecordedStage) -> None:
        found = {"type": kind, "status": status, "reason": "Xid", "message": "GPU 0 fell off the bus"}
        stage.listed("Node")[0]["status"]["conditions"].append(found)

    return plant


@pytest.mark.parametrize(
    ("plant", "expected"),
    [
        (
            enforcing("baseline"),
            f"namespace ns enforces pod security level baseline since {LATER}, which refuses pod",
        ),
        (
            enforcing("restricted"),
            f"namespace ns enforces pod security level restricted since {LATER}, which refuses pod",
        ),
        (reporting("ReadonlyFilesystem", "True"), "node vllm-stage reports ReadonlyFilesystem: GPU 0 fell off the bus"),
        (
            reporting("AcceleratedHardwareReady", "False"),
            "node vllm-stage reports AcceleratedHardwareReady=False: GPU 0",
        ),
        (deleted_claim, f"persistentvolumeclaim/model-{MODEL} is being deleted since {LATER}; held by finalizer "),
        (lost_claim, "persistentvolumeclaim/minio-data: expected phase Bound, got Lost"),
        (cordoned, "node vllm-stage is cordoned, and no other node takes a replacement of minio-"),
        (another_node_without_the_volumes, "node vllm-stage is cordoned, and no other node takes a replacement of "),
        (tainted, "node vllm-stage has taint dedicated=batch:NoSchedule, and no other node takes"),
        (under_pressure, "node vllm-stage reports DiskPressure: kubelet has disk pressure"),
        (selects_nothing, "service minio selects no pod (selector app.kubernetes.io/name=minio, tier=gold)"),
        (wrong_port, "service minio sends to port api, which no container has (named: s3)"),
        (quota(pods="3"), "quota q allows pods=3, 4 are used: a replaced pod is not admitted"),
        (quota(**{"limits.cpu": "8"}), "quota q demands limits.cpu, which container minio of pod minio-"),
        (limit_range(max={"memory": "200Mi"}), "LimitRange small allows memory up to 200Mi, container "),
        (limit_range(type="Pod", max={"memory": "200Mi"}), "LimitRange small allows memory up to 200Mi, pod m"),
        (limit_range(min={"memory": "99Gi"}), "LimitRange small demands memory from 99Gi on, container "),
        (limit_range(maxLimitRequestRatio={"memory": "1.01"}), "LimitRange small allows memory limits of 1.01 times"),
        (wrong_number, "service minio sends to port 9001, and its pods declare 9000 alone"),
        (
            shared_service("llm", "http"),
            f"service llm sends each request to one of the models {MODEL}, {MODEL}-quantized",
        ),
        (changed_secret, f"secret minio-credentials was changed at {LATER}, after pod minio-"),
        (removed_image, "image vllm-stage.local/minio:1 of container minio is not on node vllm-stage any more: "),
        (forbidden_pull, "image vllm-stage.local/minio:1 of container minio is not on node vllm-stage any more: "),
        (failing_pull, "image vllm-stage.local/minio:1 cannot be pulled by pod new: manifest unknown"),
        (lost_pull_secret, "pull secret registry of pod minio-"),
        (opaque_pull_secret, "pull secret minio-credentials of pod minio-"),
        (removed_account, f"serviceaccount vllm of pod {MODEL}-predictor-"),
    ],
)
def test_a_state_that_breaks_at_a_restart_is_named(plant: Callable[[RecordedStage], None], expected: str) -> None:
    stage = RecordedStage.load()
    plant(stage)
    lines = find_problems(stage)
    assert lines
    assert lines[0].startswith(expected), lines


def relabelled_secret(stage: RecordedStage) -> None:
    owned(stage.get("Secret", "minio-credentials"), "kubectl-label", "f:metadata", "f:labels", "f:team")


def idle_knative_service(stage: RecordedStage) -> None:
    labels = {objects.SERVICE_LABEL: MODEL, "networking.internal.knative.dev/serviceType": "Private"}
    spec = {"selector": {"serving.knative.dev/revisionUID": "u"}, "ports": [{"port": 80, "targetPort": "h2c"}]}
    stage.live.append({"kind": "Service", "metadata": {"name": "m-00001-private", "labels": labels}, "spec": spec})


def under_the_level_that_the_pods_were_admitted_with(stage: RecordedStage) -> None:
    enforcing("restricted")(stage)
    for pod in stage.listed("Pod"):
        pod["metadata"]["creationTimestamp"] = LATER


@pytest.mark.parametrize(
    "plant",
    [
        another_node,
        relabelled_secret,
        idle_knative_service,
        quota(pods="4"),
        quota(**{"limits.memory": "2Gi"}),
        limit_range(max={"memory": "99Gi"}, min={"memory": "1Mi"}, maxLimitRequestRatio={"memory": "99"}),
        limit_range(type="PersistentVolumeClaim", max={"storage": "1Mi"}),
        wrong_number_before_a_container_without_ports,
        shared_service("llm-metrics", "http"),
        shared_service("llm", "metrics"),
        controller(False, True),
        enforcing("privileged"),
        under_the_level_that_the_pods_were_admitted_with,
        reporting("AcceleratedHardwareReady", "True"),
        reporting("ReadonlyFilesystem", "False"),
    ],
)
def test_a_state_that_survives_a_restart_is_not_reported(plant: Callable[[RecordedStage], None]) -> None:
    stage = RecordedStage.load()
    plant(stage)
    assert find_problems(stage) == []


SAFE: Object = {
    "allowPrivilegeEscalation": False,
    "runAsNonRoot": True,
    "capabilities": {"drop": ["ALL"]},
    "seccompProfile": {"type": "RuntimeDefault"},
}


@pytest.mark.parametrize(
    ("changes", "refused"),
    [
        ({}, ""),
        ({"allowPrivilegeEscalation": True}, "container c (allowPrivilegeEscalation is not false)"),
        ({"runAsNonRoot": None}, "container c (runAsNonRoot is not true)"),
        ({"runAsUser": 0}, "container c (runAsUser is 0)"),
        ({"capabilities": {"drop": ["NET_RAW"]}}, "container c (capabilities are not dropped)"),
        ({"seccompProfile": None}, "container c (no seccompProfile)"),
        ({"privileged": True}, "container c (privileged)"),
    ],
)
def test_each_rule_of_the_restricted_level_is_named(changes: Object, refused: str) -> None:
    stage = RecordedStage([], [])
    enforcing("restricted")(stage)
    volumes = [{"name": "w", "persistentVolumeClaim": {"claimName": "m"}}, {"name": "t", "emptyDir": {}}]
    spec = {"containers": [{"name": "c", "securityContext": SAFE | changes}], "volumes": volumes}
    pod = {"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec}
    lines = pod_security.check_level(stage.listed("Namespace")[0], [pod])
    assert [line.partition("pod p: ")[2].partition(";")[0] for line in lines] == ([refused] if refused else [])


@pytest.mark.parametrize(
    ("image", "listed"),
    [
        ("vllm/vllm-openai:v0.32.0", "docker.io/vllm/vllm-openai:v0.32.0"),
        ("busybox", "docker.io/library/busybox:latest"),
        ("quay.io/minio/minio@sha256:ab", "quay.io/minio/minio@sha256:ab"),
        ("registry:5000/a/b", "registry:5000/a/b:latest"),
    ],
)
def test_image_is_found_under_the_name_by_which_a_node_lists_it(image: str, listed: str) -> None:
    container = {"name": "c", "image": image}
    status = {"containerStatuses": [{"name": "c", "state": {"running": {"startedAt": LATER}}}]}
    pod = {"metadata": {"name": "p"}, "spec": {"nodeName": "n", "containers": [container]}, "status": status}
    node: Object = {"metadata": {"name": "n"}, "status": {"images": [{"names": [listed]}]}}
    assert images.check_node_images([pod], [node]) == []
    node["status"]["images"] = [{"names": ["quay.io/another:1"]}]
    assert len(images.check_node_images([pod], [node])) == 1
    node["status"]["images"] = [{"names": [f"quay.io/another:{tag}"]} for tag in range(images.MOST_LISTED)]
    assert images.check_node_images([pod], [node]) == []


def tls_secret(pem: bytes) -> Object:
    data = {"tls.crt": base64.b64encode(pem).decode()}
    return {"kind": "Secret", "type": "kubernetes.io/tls", "metadata": {"name": "tls"}, "data": data}


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """Valid for 30 days from now."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl")
    folder: Path = tmp_path_factory.mktemp("certificate")
    command = [openssl, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-keyout", "key.pem", "-out", "cert.pem", "-days", "30", "-subj", "/CN=stage"]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    return (folder / "cert.pem").read_bytes()


def test_the_end_of_a_certificate_is_read_and_judged(certificate: bytes) -> None:
    found = parse_pem(certificate)
    assert found is not None
    expires = found.not_after
    secret, day = tls_secret(certificate), datetime.timedelta(days=1)
    assert 29 * day < expires - datetime.datetime.now(datetime.UTC) < 31 * day
    assert certificates.check_secrets([secret], expires - 8 * day) == []
    (soon,) = certificates.check_secrets([secret], expires - day)
    assert soon.startswith("secret tls: its certificate expires at ")
    assert soon.endswith(", in 24 hours")
    (late,) = certificates.check_secrets([secret], expires + day)
    assert late.startswith("secret tls: its certificate expired at ")


def test_a_short_certificate_is_near_its_end_in_the_last_part_of_its_validity(tmp_path: Path) -> None:
    now, hour = datetime.datetime.now(datetime.UTC), datetime.timedelta(hours=1)
    secret = tls_secret(Authority(tmp_path).issue("stage.test", since=-hour, until=23 * hour).read_bytes())
    assert certificates.check_secrets([secret], now + 15 * hour) == []
    assert len(certificates.check_secrets([secret], now + 20 * hour)) == 1


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----", b"\xff\x00"])
def test_what_is_not_a_certificate_is_not_judged(pem: bytes) -> None:
    assert certificates.check_secrets([tls_secret(pem)], NOW) == []


def test_pods_of_others_are_not_the_stages() -> None:
    stage = RecordedStage.load()
    other = stage.pod_of("minio") | {"metadata": {"name": "notebook-0", "labels": {}}}
    finished = [pod for pod in stage.listed("Pod") if pod["status"]["phase"] == "Succeeded"]
    assert finished
    assert members.select_pods([other, *finished], stage.declared) == []

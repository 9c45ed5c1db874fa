"""Drift that a stage bears until its next restart or removal: added objects, defaults chosen by hand, finalizers."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.unit.recorded_stage import LATER, MODEL, RecordedStage, owned

Object = dict[str, Any]
Change = Callable[[RecordedStage], None]
CONTAINER = ("f:spec", "f:template", "f:spec", "f:containers", 'k:{"name":"minio"}')


def added(kind: str, name: str, manager: str, **content: Any) -> Object:
    item: Object = {
        "kind": kind,
        "metadata": {"name": name, "uid": f"uid-{name}", "creationTimestamp": LATER},
        **content,
    }
    owned(item, manager, "f:spec")
    return item


def add(item: Object) -> Change:
    return lambda stage: stage.live.append(item)


def change_image_pull_policy(stage: RecordedStage) -> None:
    deployment = stage.get("Deployment", "minio")
    deployment["spec"]["template"]["spec"]["containers"][0]["imagePullPolicy"] = "Always"
    owned(deployment, "kubectl-patch", *CONTAINER, "f:imagePullPolicy")


def add_finalizer(stage: RecordedStage) -> None:
    claim = stage.get("PersistentVolumeClaim", f"model-{MODEL}")
    claim["metadata"].setdefault("finalizers", []).append("example.com/hold")
    owned(claim, "kubectl-patch", "f:metadata", "f:finalizers", 'v:"example.com/hold"')


def annotate_autoscaling(stage: RecordedStage) -> None:
    service, key = stage.get("InferenceService", MODEL), "serving.kserve.io/targetUtilizationPercentage"
    service["metadata"]["annotations"][key] = "10"
    owned(service, "OpenAPI-Generator", "f:metadata", "f:annotations", f"f:{key}")


def add_model(stage: RecordedStage) -> None:
    spec = copy.deepcopy(stage.get("InferenceService", MODEL)["spec"])
    stage.live.append(added("InferenceService", "copy", "kubectl-create", spec=spec))


def pod_with_labels_of(workload: str) -> Change:
    def change(stage: RecordedStage) -> None:
        pod = added("Pod", "intruder", "kubectl-run", spec={"containers": []})
        pod["metadata"]["labels"] = stage.pod_of(workload)["metadata"]["labels"]
        stage.live.append(pod)

    return change


def deployment_with_labels_of(workload: str) -> Change:
    def change(stage: RecordedStage) -> None:
        labels = stage.pod_of(workload)["metadata"]["labels"]
        template = {"metadata": {"labels": labels}, "spec": {"containers": []}}
        stage.live.append(added("Deployment", "canary", "kubectl-create", spec={"template": template}))

    return change


def statefulset_with_labels_of(workload: str) -> Change:
    def change(stage: RecordedStage) -> None:
        template = {"metadata": {"labels": stage.pod_of(workload)["metadata"]["labels"]}, "spec": {"containers": []}}
        stage.live.append(added("StatefulSet", "shadow", "kubectl-create", spec={"template": template}))

    return change


def route(kind: str, **spec: Any) -> Change:
    return add(added(kind, "open", "kubectl-create", spec=spec))


BACKEND = {"service": {"name": "minio", "port": {"number": 9000}}}
DENY = {"selector": {"matchLabels": {"app.kubernetes.io/name": "minio"}}, "action": "DENY"}


def recommender(mode: str) -> Change:
    spec = {"targetRef": {"name": f"{MODEL}-predictor"}, "updatePolicy": {"updateMode": mode}}
    return add(added("VerticalPodAutoscaler", "goldilocks", "goldilocks", spec=spec))


def policy(selector: Object) -> Object:
    return added("NetworkPolicy", "np", "kubectl-create", spec={"podSelector": selector, "policyTypes": ["Egress"]})


def expression(operator: str, *values: str, key: str = "app.kubernetes.io/name") -> Object:
    return {"matchExpressions": [{"key": key, "operator": operator, "values": list(values)}]}


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            change_image_pull_policy,
            "Deployment/minio spec.template.spec.containers[minio].imagePullPolicy: live, not declared: Always; set by "
            "kubectl patch (kubectl-patch)",
        ),
        (
            add_finalizer,
            f"PersistentVolumeClaim/model-{MODEL} metadata.finalizers[example.com/hold]: live, not declared: "
            "example.com/hold; set by kubectl patch (kubectl-patch)",
        ),
        (
            annotate_autoscaling,
            f"InferenceService/{MODEL} metadata.annotations.serving.kserve.io/targetUtilizationPercentage: live, not "
            "declared: 10; set by a Python client (OpenAPI-Generator)",
        ),
        (
            add_model,
            f"InferenceService/copy: live, not declared: it serves pvc://model-{MODEL} of InferenceService/{MODEL} "
            f"too; created at {LATER}, set by kubectl create (kubectl-create)",
        ),
        (
            pod_with_labels_of("minio"),
            "Pod/intruder: live, not declared: it receives requests of service minio; created",
        ),
        (
            deployment_with_labels_of(f"{MODEL}-predictor"),
            f"Deployment/canary: live, not declared: it receives requests of service {MODEL}-predictor; created",
        ),
        (
            add(added("ScaledObject", "k", "keda", spec={"scaleTargetRef": {"name": f"{MODEL}-predictor"}})),
            f"ScaledObject/k: live, not declared: it changes the scale of {MODEL}-predictor; created at "
            f"{LATER}, set by keda",
        ),
        (
            recommender("Auto"),
            f"VerticalPodAutoscaler/goldilocks: live, not declared: it changes the scale of {MODEL}-predictor; created",
        ),
        (
            statefulset_with_labels_of("minio"),
            "StatefulSet/shadow: live, not declared: it receives requests of service minio; created",
        ),
        (
            route("Ingress", rules=[{"http": {"paths": [{"path": "/", "backend": BACKEND}]}}]),
            "Ingress/open: live, not declared: it routes requests to service minio; created",
        ),
        (
            route("Route", to={"kind": "Service", "name": "minio"}),
            "Route/open: live, not declared: it routes requests to service minio; created",
        ),
        (
            route("HTTPRoute", rules=[{"backendRefs": [{"name": "model-registry", "port": 8080}]}]),
            "HTTPRoute/open: live, not declared: it routes requests to service model-registry; created",
        ),
        (
            route("VirtualService", http=[{"route": [{"destination": {"host": f"{MODEL}-predictor.vllm.svc"}}]}]),
            f"VirtualService/open: live, not declared: it routes requests to service {MODEL}-predictor; created",
        ),
        (
            route("AuthorizationPolicy", **DENY),
            "AuthorizationPolicy/open: live, not declared: it restricts requests to pod minio-",
        ),
        (
            route("PeerAuthentication", mtls={"mode": "STRICT"}),
            "PeerAuthentication/open: live, not declared: it restricts requests to 7 pods, ",
        ),
        (
            add(policy(expression("In", "minio"))),
            "NetworkPolicy/np: live, not declared: it restricts Egress of pod minio-",
        ),
        (add(policy({})), "NetworkPolicy/np: live, not declared: it restricts Egress of 7 pods"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_drift_is_reported_with_its_owner(change: Change, line: str) -> None:
    stage = RecordedStage.load()
    change(stage)
    found = stage.find_drift()
    assert len(found) == 1
    assert found[0].startswith(line)


def inject_cloud_identity(stage: RecordedStage) -> None:
    pod = stage.pod_of(f"{MODEL}-predictor")
    pod["spec"]["volumes"].append({"name": "aws-iam-token", "projected": {"defaultMode": 420, "sources": []}})
    folder = "/var/run/secrets/eks.amazonaws.com/serviceaccount"
    for container in pod["spec"]["containers"]:
        container.setdefault("env", []).append({"name": "AWS_ROLE_ARN", "value": "arn:aws:iam::1:role/models"})
        container["env"].append({"name": "AWS_WEB_IDENTITY_TOKEN_FILE", "value": f"{folder}/token"})
        container.setdefault("volumeMounts", []).append({"name": "aws-iam-token", "mountPath": folder})


def annotate_service(key: str, manager: str) -> Change:
    def change(stage: RecordedStage) -> None:
        service = stage.get("Service", "minio")
        service["metadata"].setdefault("annotations", {})[key] = "x"
        owned(service, manager, "f:metadata", "f:annotations", f"f:{key}")

    return change


def own_finalizer(stage: RecordedStage) -> None:
    claim = stage.get("PersistentVolumeClaim", f"model-{MODEL}")
    claim["metadata"]["finalizers"] = ["kubernetes.io/pvc-protection", "snapshot.storage.kubernetes.io/pvc-as-source"]
    owned(claim, "snapshot-controller", "f:metadata", "f:finalizers")


@pytest.mark.parametrize(
    "change",
    [
        own_finalizer,
        recommender("Off"),
        inject_cloud_identity,
        annotate_service("cloud.google.com/neg-status", "glbc"),
        annotate_service("field.cattle.io/publicEndpoints", "rancher"),
        add(policy(expression("In", "another"))),
        add(policy(expression("NotIn", "minio", "model-registry") | {"matchLabels": {"app": "none"}})),
        add(policy(expression("Exists", key="no.such/label"))),
        add(added("Pod", "notebook", "kubectl-run", spec={"containers": []})),
        add(added("StatefulSet", "database", "helm", spec={"template": {"metadata": {}, "spec": {"containers": []}}})),
        route("Route", to={"kind": "Service", "name": "another"}),
        add(added("NetworkPolicy", "allow-monitoring", "odh-model-controller", spec={"podSelector": {}})),
        add(added("PeerAuthentication", "default", "manager", spec={"mtls": {"mode": "STRICT"}})),
        route("Route", to={"kind": "Service", "name": f"{MODEL}-predictor"}),
        route("HTTPRoute", rules=[{"backendRefs": [{"name": f"{MODEL}-predictor", "port": 80}]}]),
        route("AuthorizationPolicy", selector={"matchLabels": {"app": "another"}}),
        add(added("InferenceService", "other", "helm", spec={"predictor": {"model": {"storageUri": "pvc://other"}}})),
    ],
)
def test_what_does_not_act_on_the_stage_is_not_reported(change: Change) -> None:
    stage = RecordedStage.load()
    change(stage)
    assert stage.find_drift() == []


@pytest.mark.parametrize(
    ("selector", "hit"),
    [
        (expression("NotIn", "minio"), "6 pods"),
        (expression("Exists"), "pods"),
        (expression("DoesNotExist", key="no.such/label"), "7 pods"),
    ],
)
def test_expressions_of_a_selector_are_evaluated(selector: Object, hit: str) -> None:
    stage = RecordedStage.load()
    stage.live.append(policy(selector))
    (line,) = stage.find_drift()
    assert hit in line

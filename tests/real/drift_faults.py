# ruff: noqa: E501 the reported lines stay whole
"""Drift faults that are planted on a live stage: what is done with kubectl, and the line that reports it.

docs/checks.md has the table.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

MODEL = "smollm2-135m"
CONTAINER = "/spec/template/spec/containers/0"


@dataclass(frozen=True)
class DriftFault:
    """A planted drift.

    Attributes:
        planted: What is done, in a few words.
        line: How the line that reports it begins, or what is in it, up to the name of a pod or a time.
        commands: kubectl's arguments that plant it; one that begins with ``-f`` applies the manifest that follows.
        undo: kubectl's arguments that take it back.
    """

    planted: str
    line: str
    commands: tuple[tuple[str, ...], ...]
    undo: tuple[tuple[str, ...], ...]


def patch(target: str, *operations: dict[str, Any], kind: str = "json") -> tuple[str, ...]:
    return ("patch", target, f"--type={kind}", "-p", json.dumps(list(operations)))


def merge(target: str, change: dict[str, Any]) -> tuple[str, ...]:
    return ("patch", target, "--type=merge", "-p", json.dumps(change))


def add(path: str, value: Any) -> dict[str, Any]:
    return {"op": "add", "path": path, "value": value}


def replace(path: str, value: Any) -> dict[str, Any]:
    return {"op": "replace", "path": path, "value": value}


def remove(path: str) -> dict[str, Any]:
    return {"op": "remove", "path": path}


def apply(kind: str, name: str, api: str = "v1", **content: Any) -> tuple[str, ...]:
    return ("-f", json.dumps({"apiVersion": api, "kind": kind, "metadata": {"name": name}, **content}))


REGISTRY = "deployment/model-registry"
BY_PATCH = "set by kubectl patch (kubectl-patch)"
FAULTS = (
    DriftFault(
        "readiness probe of a Deployment changed",
        "Deployment/model-registry spec.template.spec.containers[registry-standin].readinessProbe.periodSeconds: declared 1, "
        f"live 7; {BY_PATCH}",
        (patch(REGISTRY, replace(f"{CONTAINER}/readinessProbe/periodSeconds", 7)),),
        (patch(REGISTRY, replace(f"{CONTAINER}/readinessProbe/periodSeconds", 1)),),
    ),
    DriftFault(
        "variable added to a Deployment",
        "Deployment/model-registry spec.template.spec.containers[registry-standin].env[PYTHONHASHSEED]: live, not declared: "
        "value 0; set by kubectl set (kubectl-set)",
        (("set", "env", REGISTRY, "PYTHONHASHSEED=0"),),
        (("set", "env", REGISTRY, "PYTHONHASHSEED-"),),
    ),
    DriftFault(
        "security setting removed",
        "Deployment/model-registry spec.template.spec.containers[registry-standin].securityContext.readOnlyRootFilesystem: "
        "declared, not live: true; the object was last changed by kubectl patch (kubectl-patch)",
        (patch(REGISTRY, remove(f"{CONTAINER}/securityContext/readOnlyRootFilesystem")),),
        (patch(REGISTRY, add(f"{CONTAINER}/securityContext/readOnlyRootFilesystem", True)),),
    ),
    DriftFault(
        "grace period shortened",
        "Deployment/model-registry spec.template.spec.terminationGracePeriodSeconds: live, not declared: 5; "
        + BY_PATCH,
        (patch(REGISTRY, replace("/spec/template/spec/terminationGracePeriodSeconds", 5)),),
        (patch(REGISTRY, replace("/spec/template/spec/terminationGracePeriodSeconds", 30)),),
    ),
    DriftFault(
        "sidecar added to a Deployment",
        "Deployment/model-registry spec.template.spec.containers[debug]: live, not declared: image vllm-stage.local/base:1; "
        + BY_PATCH,
        (
            (
                "patch",
                REGISTRY,
                "-p",
                json.dumps(
                    {
                        "spec": {
                            "template": {
                                "spec": {
                                    "containers": [
                                        {"name": "debug", "image": "vllm-stage.local/base:1", "command": ["/none"]}
                                    ]
                                }
                            }
                        }
                    }
                ),
            ),
        ),
        (
            (
                "patch",
                REGISTRY,
                "-p",
                json.dumps({"spec": {"template": {"spec": {"containers": [{"name": "debug", "$patch": "delete"}]}}}}),
            ),
        ),
    ),
    DriftFault(
        "Deployment scaled",
        "Deployment/model-registry spec.replicas: declared 1, live 2; set by kubectl",
        (("scale", REGISTRY, "--replicas=2"),),
        (("scale", REGISTRY, "--replicas=1"),),
    ),
    DriftFault(
        "version label of a model changed",
        f"InferenceService/{MODEL} metadata.labels.vllm-stage/version: declared bf16, live fp8; set by kubectl label",
        (("label", f"inferenceservice/{MODEL}", "vllm-stage/version=fp8", "--overwrite"),),
        (("label", f"inferenceservice/{MODEL}", "vllm-stage/version=bf16", "--overwrite"),),
    ),
    DriftFault(
        "autoscaling limit of a model raised",
        f"InferenceService/{MODEL} spec.predictor.maxReplicas: declared 1, live 3; {BY_PATCH}",
        (merge(f"inferenceservice/{MODEL}", {"spec": {"predictor": {"maxReplicas": 3}}}),),
        (merge(f"inferenceservice/{MODEL}", {"spec": {"predictor": {"maxReplicas": 1}}}),),
    ),
    DriftFault(
        "format added to the ServingRuntime",
        f'ServingRuntime/vllm spec.supportedModelFormats[onnx]: live, not declared: {{"name": "onnx"}}; {BY_PATCH}',
        (patch("servingruntime/vllm", add("/spec/supportedModelFormats/-", {"name": "onnx"})),),
        (patch("servingruntime/vllm", remove("/spec/supportedModelFormats/1")),),
    ),
    DriftFault(
        "port of a Service changed",
        "Service/model-registry spec.ports[8080/TCP].targetPort: declared http, live grpc; " + BY_PATCH,
        (patch("service/model-registry", replace("/spec/ports/0/targetPort", "grpc")),),
        (patch("service/model-registry", replace("/spec/ports/0/targetPort", "http")),),
    ),
    DriftFault(
        "selector of a Service narrowed",
        "service model-registry selects no pod (selector app.kubernetes.io/name=model-registry, tier=gold)",
        (merge("service/model-registry", {"spec": {"selector": {"tier": "gold"}}}),),
        (merge("service/model-registry", {"spec": {"selector": {"tier": None}}}),),
    ),
    DriftFault(
        "Service that KServe generated changed by hand",
        f"Service/{MODEL}-predictor spec.sessionAffinity: live, not generated: ClientIP; {BY_PATCH}",
        (merge(f"service/{MODEL}-predictor", {"spec": {"sessionAffinity": "ClientIP"}}),),
        (merge(f"service/{MODEL}-predictor", {"spec": {"sessionAffinity": "None"}}),),
    ),
    DriftFault(
        "script in a ConfigMap changed",
        "ConfigMap/s3-client data.s3.py: declared ",
        (merge("configmap/s3-client", {"data": {"s3.py": "pass"}}),),
        (),
    ),
    DriftFault(
        "file added to a ConfigMap",
        "ConfigMap/minio-buckets data.sitecustomize.py: live, not declared: pass; " + BY_PATCH,
        (merge("configmap/minio-buckets", {"data": {"sitecustomize.py": "pass"}}),),
        (merge("configmap/minio-buckets", {"data": {"sitecustomize.py": None}}),),
    ),
    DriftFault(
        "key added to a Secret",
        "Secret/minio-credentials data.sessiontoken: live, not declared: a value; " + BY_PATCH,
        (merge("secret/minio-credentials", {"stringData": {"sessiontoken": "sesame-open"}}),),
        (merge("secret/minio-credentials", {"data": {"sessiontoken": None}}),),
    ),
    DriftFault(
        "password in a Secret changed after the server read it",
        "secret minio-credentials was changed at ",
        (merge("secret/minio-credentials", {"stringData": {"secretkey": "another-password"}}),),
        (),
    ),
    DriftFault(
        "pull secret added to a service account",
        f'ServiceAccount/vllm imagePullSecrets[mirror]: live, not declared: {{"name": "mirror"}}; {BY_PATCH}',
        (merge("serviceaccount/vllm", {"imagePullSecrets": [{"name": "mirror"}]}),),
        (merge("serviceaccount/vllm", {"imagePullSecrets": None}),),
    ),
    DriftFault(
        "label of a running pod changed",
        "metadata.labels.debug: live, not declared: 1; set by kubectl label (kubectl-label)",
        (("label", "pod", "-l", "app.kubernetes.io/name=minio", "debug=1"),),
        (("label", "pod", "-l", "app.kubernetes.io/name=minio", "debug-"),),
    ),
    DriftFault(
        "network policy added",
        "NetworkPolicy/quarantine: live, not declared: it restricts Ingress of pod minio-",
        (
            apply(
                "NetworkPolicy",
                "quarantine",
                "networking.k8s.io/v1",
                spec={"podSelector": {"matchLabels": {"app.kubernetes.io/name": "minio"}}, "policyTypes": ["Ingress"]},
            ),
        ),
        (("delete", "networkpolicy/quarantine"),),
    ),
    DriftFault(
        "second Service that selects the store's pods",
        "Service/store: live, not declared: it sends requests to pod minio-",
        (apply("Service", "store", spec={"selector": {"app.kubernetes.io/name": "minio"}, "ports": [{"port": 9000}]}),),
        (("delete", "service/store"),),
    ),
    DriftFault(
        "quota added that demands what the pods do not specify",
        "quota small demands limits.cpu, which container minio of pod minio-",
        (apply("ResourceQuota", "small", spec={"hard": {"limits.cpu": "8"}}),),
        (("delete", "resourcequota/small"),),
    ),
    DriftFault(
        "autoscaler added",
        "HorizontalPodAutoscaler/minio: live, not declared: it changes the scale of minio",
        (("autoscale", "deployment/minio", "--min=1", "--max=3"),),
        (("delete", "horizontalpodautoscaler/minio"),),
    ),
    DriftFault(
        "disruption budget added that blocks a node drain",
        "PodDisruptionBudget/minio: live, not declared: it allows no disruption of pod minio-",
        (
            apply(
                "PodDisruptionBudget",
                "minio",
                "policy/v1",
                spec={"minAvailable": 1, "selector": {"matchLabels": {"app.kubernetes.io/name": "minio"}}},
            ),
        ),
        (("delete", "poddisruptionbudget/minio"),),
    ),
    DriftFault(
        "node cordoned",
        "node vllm-stage is cordoned, and no other node takes a replacement of ",
        (("cordon", "vllm-stage"),),
        (("uncordon", "vllm-stage"),),
    ),
    DriftFault(
        "volume deleted while a pod uses it",
        f"persistentvolumeclaim/model-{MODEL} is being deleted since ",
        (("delete", f"pvc/model-{MODEL}", "--wait=false"),),
        (),
    ),
)

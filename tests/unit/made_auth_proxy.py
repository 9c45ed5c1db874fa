"""The authentication proxy of Open Data Hub's KServe in the pods of a recorded stage's model.

It adds the sidecar to each new Standard deployment, with its certificate and its rules, and for a protected model it
replaces the Service's port:
https://github.com/opendatahub-io/kserve/blob/master/pkg/controller/v1beta1/inferenceservice/reconcilers/deployment/deployment_reconciler.go
"""

from __future__ import annotations

import copy
from typing import Any

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.drift import SERVING_CONTAINER
from tests.unit.made_objects import container_status
from tests.unit.recorded_stage import MODEL, RecordedStage, owned

Object = dict[str, Any]
PROXY, PORT = "kube-rbac-proxy", 8443
IMAGE = "registry.example/kube-rbac-proxy@sha256:" + "b" * 64
_RULES, _CERTIFICATE = f"{MODEL}-{PROXY}-sar-config", "proxy-tls"
_TEMPLATE = ("f:spec", "f:template", "f:spec")


def proxy_container() -> Object:
    probe = {"httpGet": {"path": "/healthz", "port": 8643, "scheme": "HTTPS"}, "timeoutSeconds": 1, "periodSeconds": 5}
    return {
        "name": PROXY,
        "image": IMAGE,
        "args": [f"--secure-listen-address=:{PORT}", "--proxy-endpoints-port=8643", "--upstream=http://localhost:8080"],
        "ports": [
            {"containerPort": PORT, "name": "https", "protocol": "TCP"},
            {"containerPort": 8643, "name": "proxy", "protocol": "TCP"},
        ],
        "livenessProbe": probe,
        "readinessProbe": probe,
        "resources": {"limits": {"cpu": "200m", "memory": "128Mi"}, "requests": {"cpu": "100m", "memory": "64Mi"}},
        "volumeMounts": [
            {"name": _CERTIFICATE, "mountPath": "/etc/tls/private"},
            {"name": _RULES, "mountPath": "/etc/kube-rbac-proxy", "readOnly": True},
        ],
    }


def add_auth_proxy(stage: RecordedStage, *, first: bool) -> Object:
    """Add the sidecar to a model's Deployment, ReplicaSet and pod; returns the pod.

    Args:
        stage: Is changed.
        first: The sidecar is the first container of the pod and of its status.
    """
    name = f"{MODEL}-predictor"
    deployment, pod = stage.get("Deployment", name), stage.pod_of(name)
    (replica_set,) = [one for one in stage.listed("ReplicaSet") if objects.owned_by([pod], one)]
    templates = (deployment["spec"]["template"], replica_set["spec"]["template"], pod)
    for template in templates:
        _add_to_template(template, name, first)
    proxy = container_status(PROXY, image=IMAGE, imageID=IMAGE)
    pod["status"]["containerStatuses"].insert(0 if first else 1, proxy)
    keys = (
        ("f:containers", f'k:{{"name":"{PROXY}"}}', "."),
        ("f:containers", f'k:{{"name":"{SERVING_CONTAINER}"}}', "f:volumeMounts", 'k:{"mountPath":"/etc/tls/private"}'),
        ("f:volumes", f'k:{{"name":"{_CERTIFICATE}"}}', "."),
        ("f:volumes", f'k:{{"name":"{_RULES}"}}', "."),
        ("f:automountServiceAccountToken",),
    )
    for key in keys:
        owned(deployment, "kserve-manager", *_TEMPLATE, *key)
    port = {"name": "https", "port": PORT, "protocol": "TCP", "targetPort": "https"}
    stage.get("Service", name)["spec"]["ports"] = [port]
    return pod


def _add_to_template(template: Object, name: str, first: bool) -> None:
    spec = template["spec"]
    (serving,) = [one for one in spec["containers"] if one["name"] == SERVING_CONTAINER]
    serving["volumeMounts"].append({"name": _CERTIFICATE, "mountPath": "/etc/tls/private"})
    spec["containers"].insert(0 if first else len(spec["containers"]), copy.deepcopy(proxy_container()))
    spec["volumes"] += [
        {"name": _CERTIFICATE, "secret": {"secretName": f"{name}-serving-cert", "defaultMode": 420}},
        {"name": _RULES, "configMap": {"name": _RULES, "defaultMode": 420}},
    ]
    spec["automountServiceAccountToken"] = True
    annotations = template["metadata"].get("annotations") or {}
    annotations["service.beta.openshift.io/serving-cert-secret-name"] = f"{name}-serving-cert"
    template["metadata"]["annotations"] = annotations

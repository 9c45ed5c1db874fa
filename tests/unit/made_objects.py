"""Kubernetes objects for tests, as the API server gives them."""

from __future__ import annotations

from typing import Any

Object = dict[str, Any]
IMAGE = "registry.example/vllm@sha256:" + "a" * 64


def condition(kind: str, status: str = "True", **more: str) -> Object:
    return {"type": kind, "status": status, **more}


def admitted_route(service: str, host: str, **spec: Any) -> Object:
    """An OpenShift Route with TLS at the edge, as a router admits it."""
    router = {"host": host, "conditions": [condition("Admitted")]}
    made = {"host": host, "to": {"kind": "Service", "name": service}, "tls": {"termination": "edge"}, **spec}
    return {"kind": "Route", "metadata": {"name": service}, "spec": made, "status": {"ingress": [router]}}


def container_status(name: str = "kserve-container", **more: Any) -> Object:
    return {"name": name, "restartCount": 0, "ready": True, "state": {"running": {}}, "lastState": {}, **more}


def pod(name: str = "p", *, ready: bool = True, statuses: list[Object] | None = None, **more: Any) -> Object:
    spec = {"containers": [{"name": "kserve-container", "image": IMAGE, "resources": {"limits": {"memory": "512Mi"}}}]}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": more.pop("labels", {})},
        "spec": spec | more.pop("spec", {}),
        "status": {
            "phase": "Running",
            "conditions": [condition("Ready", str(ready)), condition("PodScheduled")],
            "containerStatuses": [container_status(ready=ready)] if statuses is None else statuses,
            **more,
        },
    }


def waiting(reason: str, message: str = "", name: str = "kserve-container") -> Object:
    return container_status(name, ready=False, state={"waiting": {"reason": reason, "message": message}})


def ended(exit_code: int, reason: str = "Error", *, restarts: int = 0) -> Object:
    end = {"terminated": {"exitCode": exit_code, "reason": reason}}
    if restarts:
        back_off = {"waiting": {"reason": "CrashLoopBackOff"}}
        return container_status(ready=False, state=back_off, lastState=end, restartCount=restarts)
    return container_status(ready=False, state=end)


def event(about: Object, reason: str, message: str = "", kind: str = "Warning") -> Object:
    return {
        "kind": "Event",
        "type": kind,
        "reason": reason,
        "message": message,
        "count": 1,
        "lastTimestamp": "2026-01-01T00:00:00Z",
        "involvedObject": {
            "kind": about["kind"],
            "name": about["metadata"]["name"],
            "uid": about["metadata"].get("uid"),
        },
    }


def runtime(**container: Any) -> Object:
    made = {
        "name": "kserve-container",
        "image": IMAGE,
        "command": ["python3", "-m", "vllm"],
        "args": ["--port=8080", "--served-model-name={{.Name}}"],
        "env": [{"name": "HOME", "value": "/home/vllm"}],
        **container,
    }
    return {"kind": "ServingRuntime", "metadata": {"name": "vllm"}, "spec": {"containers": [made]}}


def service(name: str = "m", *, ready: str = "True", labels: Object | None = None, **model: Any) -> Object:
    made = {
        "runtime": "vllm",
        "storageUri": f"pvc://model-{name}",
        "args": ["--max-model-len=2048"],
        "resources": {"requests": {"memory": "1Gi"}, "limits": {"memory": "2Gi"}},
        **model,
    }
    return {
        "kind": "InferenceService",
        "metadata": {"name": name, "uid": f"uid-{name}", "generation": 3, "labels": labels or {}},
        "spec": {"predictor": {"minReplicas": 1, "maxReplicas": 1, "model": made}},
        "status": {"conditions": [condition("PredictorReady", ready), condition("Ready", ready)]},
    }


def served_spec(**changed: Any) -> Object:
    """The pod spec that KServe makes of `service` and `runtime`."""
    container = {
        "name": "kserve-container",
        "image": IMAGE,
        "command": ["python3", "-m", "vllm"],
        "args": ["--port=8080", "--served-model-name=m", "--max-model-len=2048"],
        "env": [{"name": "HOME", "value": "/home/vllm"}, {"name": "INFERENCE_SERVICE_NAME", "value": "m"}],
        "resources": {"requests": {"cpu": "1", "memory": "1024Mi"}, "limits": {"memory": "2Gi"}},
        **changed,
    }
    return {"containers": [{"name": "queue-proxy", "image": "q"}, container], "nodeName": "n"}


def deployment(*, generation: int = 2, observed: int = 2, replicas: int = 1, **numbers: int) -> Object:
    status = {"observedGeneration": observed, "replicas": 1, "updatedReplicas": 1, "availableReplicas": 1, **numbers}
    return {
        "kind": "Deployment",
        "metadata": {"name": "m-predictor", "uid": "uid-d", "generation": generation},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "m"}}},
        "status": status,
    }


def claim(name: str = "model-m", *, phase: str = "Pending", size: str = "40Gi", storage_class: str = "fast") -> Object:
    return {
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "spec": {"storageClassName": storage_class, "resources": {"requests": {"storage": size}}},
        "status": {"phase": phase, "capacity": {"storage": size}} if phase == "Bound" else {"phase": phase},
    }


def volume(size: str, *, storage_class: str = "fast", claimed_by: str | None = None) -> Object:
    return {
        "kind": "PersistentVolume",
        "metadata": {"name": f"pv-{size}"},
        "spec": {
            "storageClassName": storage_class,
            "capacity": {"storage": size},
            "claimRef": {"uid": claimed_by} if claimed_by else None,
        },
    }


def job(name: str = "download-m", *, claim_name: str = "model-m", conditions: list[Object] | None = None) -> Object:
    container = {
        "name": "loader",
        "image": IMAGE,
        "args": ["download"],
        "env": [
            {"name": "MODEL_SOURCE", "value": "file:///w"},
            {"name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "huggingface-token", "key": "HF_TOKEN"}}},
        ],
        "volumeMounts": [
            {"name": "model", "mountPath": "/mnt/models"},
            {"name": "scripts", "mountPath": "/scripts", "readOnly": True},
        ],
    }
    volumes = [
        {"name": "model", "persistentVolumeClaim": {"claimName": claim_name}},
        {"name": "scripts", "configMap": {}},
    ]
    return {
        "kind": "Job",
        "metadata": {"name": name, "uid": f"uid-{name}"},
        "spec": {"template": {"spec": {"containers": [container], "volumes": volumes}}},
        "status": {"conditions": conditions or []},
    }

"""The Deployment that KServe should generate for an InferenceService and its ServingRuntime: pure functions."""

from __future__ import annotations

from typing import Any

from pytest_vllm_stage.checks.stage.drift.fields import ITEM_KEYS
from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.objects import Object

#: Fields of a ServingRuntime that are of pods; all others are KServe's own.
_POD_FIELDS = (
    "containers",
    "initContainers",
    "volumes",
    "nodeSelector",
    "affinity",
    "tolerations",
    "imagePullSecrets",
    "hostIPC",
)
#: Fields of a predictor that are KServe's own; all others are of pods.
_PREDICTOR_FIELDS = (
    "model",
    "minReplicas",
    "maxReplicas",
    "deploymentStrategy",
    "containerConcurrency",
    "timeout",
    "canaryTrafficPercent",
    "logger",
    "batcher",
    "scaleTarget",
    "scaleMetric",
    "scaleMetricType",
    "autoScaling",
    "workerSpec",
    "labels",
    "annotations",
)
#: Fields of a model that are KServe's own; all others are of its container.
_MODEL_FIELDS = (
    "name",
    "runtime",
    "runtimeVersion",
    "modelFormat",
    "storageUri",
    "storageUris",
    "storage",
    "protocolVersion",
)


def expected_deployment(service: Object, runtime: Object) -> Object:
    """Replicas, strategy and pod spec as the service and its runtime request them; KServe adds more."""
    predictor = service["spec"]["predictor"]
    base = {key: value for key, value in runtime["spec"].items() if key in _POD_FIELDS}
    over = {key: value for key, value in predictor.items() if key not in _PREDICTOR_FIELDS}
    spec = merge(base, over)
    container = merge_serving_container(service, runtime)
    name = drift.serving_container(runtime["spec"]).get("name")
    spec["containers"] = [
        container if one.get("name") == name else one for one in spec.get("containers") or [container]
    ]
    expected: Object = {"template": {"spec": drift.replace_placeholders(spec, service)}}
    if predictor.get("deploymentStrategy"):
        expected["strategy"] = predictor["deploymentStrategy"]
    if "minReplicas" in predictor:
        expected["replicas"] = predictor["minReplicas"]
    return {"kind": "Deployment", "metadata": {"name": f"{objects.name_of(service)}-predictor"}, "spec": expected}


def merge_serving_container(service: Object, runtime: Object) -> Object:
    """The runtime's serving container with what the service's model changes of it; its arguments come after those."""
    model = service["spec"]["predictor"].get("model") or {}
    own = {key: value for key, value in model.items() if key not in _MODEL_FIELDS}
    serving = drift.serving_container(runtime["spec"])
    return dict(merge(serving, own)) | {"args": [*(serving.get("args") or []), *(own.get("args") or [])]}


def merge(base: Any, over: Any, field: str = "") -> Any:
    """Merge as Kubernetes does strategically: maps by field, lists by their items' key, all else replaced."""
    if isinstance(base, dict) and isinstance(over, dict):
        return base | {key: merge(base[key], value, key) if key in base else value for key, value in over.items()}
    key = ITEM_KEYS.get(field, "")
    if key and isinstance(base, list) and isinstance(over, list):
        items = {item.get(key): item for item in base}
        for item in over:
            items[item.get(key)] = merge(items.get(item.get(key), {}), item)
        return list(items.values())
    return over

"""Which revision of an InferenceService answers: the one that results belong to."""

from __future__ import annotations

import re
from dataclasses import dataclass

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.drift import SERVING_CONTAINER
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.reader import StageReader

_KNATIVE_LABEL = "serving.knative.dev/revision"
_API_KEY = re.compile(r"(--api-key[= ])\S+")


@dataclass(frozen=True)
class Revision:
    """What runs.

    Attributes:
        name: Knative's revision, or in Standard mode the ReplicaSet, whose name changes with the pods' template.
        created_at: When it was created, in Kubernetes' format; empty where that is not known.
    """

    name: str
    created_at: str


@dataclass(frozen=True)
class Serving:
    """The running engine, as far as the cluster shows it; an empty string means unknown.

    Attributes:
        image: The engine's image as the node's runtime names it, by digest.
        arguments: The engine's command line, without the value of an API key.
        gpu: The product that the node's labels name, or the processors of a node without one.
    """

    image: str = ""
    arguments: str = ""
    gpu: str = ""


def serving(reader: StageReader, service_name: str) -> Serving:
    """What the first Ready pod of an InferenceService runs; unknown where none is Ready."""
    pods = sorted(reader.listed("Pod", {objects.SERVICE_LABEL: service_name}), key=objects.name_of)
    ready = [pod for pod in pods if objects.is_true(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")]
    if not ready:
        return Serving()
    pod = ready[0]
    containers = pod["spec"]["containers"]
    engine = next((one for one in containers if one["name"] == SERVING_CONTAINER), containers[0])
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    image = next((str(one.get("imageID") or "") for one in statuses if one["name"] == engine["name"]), "")
    node = next((one for one in reader.everywhere("Node") if objects.name_of(one) == pod["spec"].get("nodeName")), {})
    arguments = [*(engine.get("command") or []), *(engine.get("args") or [])]
    return Serving(image, _API_KEY.sub(r"\1***", " ".join(map(str, arguments))), _processors(node))


def _processors(node: Object) -> str:
    product = (node.get("metadata", {}).get("labels") or {}).get("nvidia.com/gpu.product")
    cores = ((node.get("status") or {}).get("capacity") or {}).get("cpu")
    return str(product or (f"none, {cores} processors" if cores else ""))


def running(reader: StageReader, service: Object) -> Revision:
    """The one revision whose pods are Ready.

    Raises:
        StageFailure: none is, or several are, so that the answering one is unknown.
    """
    name = objects.name_of(service)
    pods = reader.listed("Pod", {objects.SERVICE_LABEL: name})
    ready = [pod for pod in pods if objects.is_true(pod, "Ready") and not pod["metadata"].get("deletionTimestamp")]
    found = {_identify_revision(pod) for pod in ready}
    if len(found) == 1:
        revision, owner = found.pop()
        made = reader.get("ReplicaSet", owner) if owner else None
        return Revision(revision, str(made["metadata"].get("creationTimestamp", "")) if made else "")
    latest = _latest(service)
    if not found and latest:
        return Revision(latest, "")  # scaled to zero: the next request starts it
    several = ", ".join(sorted(revision for revision, _ in found)) or "none"
    raise StageFailure(
        f"inferenceservice/{name}: revisions with Ready pods: {several}; expected one",
        hint=f"{reader.cluster.kubectl_for(reader.namespace)} get pods -l {objects.SERVICE_LABEL}={name}",
    )


def _identify_revision(pod: Object) -> tuple[str, str]:
    """The revision's name, and the ReplicaSet."""
    meta = pod["metadata"]
    owner = next((ref["name"] for ref in meta.get("ownerReferences") or [] if ref.get("kind") == "ReplicaSet"), "")
    return (meta.get("labels") or {}).get(_KNATIVE_LABEL) or owner or objects.name_of(pod), owner


def _latest(service: Object) -> str:
    components = (service.get("status") or {}).get("components") or {}
    return str((components.get("predictor") or {}).get("latestReadyRevision") or "")

"""Objects that act on the stage and that no manifest declares: pure functions over objects."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.checks.stage.drift.owners import find_owner
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object

#: Kinds of objects that select pods, share volumes or Services, or scale workloads, and so act on a stage.
ACTING_KINDS = (
    "NetworkPolicy",
    "Service",
    "Pod",
    "Deployment",
    "StatefulSet",
    "DaemonSet",
    "ReplicaSet",
    "Ingress.networking.k8s.io",
    "Route.route.openshift.io",
    "HTTPRoute.gateway.networking.k8s.io",
    "VirtualService.networking.istio.io",
    "AuthorizationPolicy.security.istio.io",
    "RequestAuthentication.security.istio.io",
    "PeerAuthentication.security.istio.io",
    "InferenceService",
    "HorizontalPodAutoscaler",
    "ScaledObject",
    "VerticalPodAutoscaler",
    "PodDisruptionBudget",
    "ResourceQuota",
    "LimitRange",
)


def find_strangers(
    found: Mapping[str, Sequence[Object]], declared: list[Object], pods: Sequence[Object], services: Sequence[Object]
) -> list[str]:
    """One line for each object that is newer than the stage, that no object owns, and that acts on the stage.

    What the namespace had before the stage was deployed is its policy; what a controller makes has an owner.

    Args:
        found: The namespace's live objects by kind.
        declared: The manifests.
        pods: The stage's live pods.
        services: The live InferenceServices.
    """
    deployed = min((_created(one) for one in services), default="")
    added = [
        (kind, item)
        for full_name, items in found.items()
        for kind in [full_name.partition(".")[0]]
        for item in items
        if _created(item) > deployed
        and not item["metadata"].get("ownerReferences")
        and render.named(declared, kind, objects.name_of(item)) is None
    ]
    strange = [item for _, item in added]
    stage = Stage(
        [pod for pod in pods if pod not in strange],
        [one for one in found.get("Service", ()) if one not in strange],
        [one for one in services if one not in strange],
    )
    return [line for kind, item in added for line in _describe(kind, item, stage)]


#: Workloads whose pods a Service may select.
_WORKLOADS = ("Deployment", "StatefulSet", "DaemonSet", "ReplicaSet")
_ROUTES = ("Ingress", "Route", "HTTPRoute", "VirtualService")
_MESH_POLICIES = ("AuthorizationPolicy", "RequestAuthentication", "PeerAuthentication")


#: Managers of policies and routes that a platform makes for every namespace with a model, without an owner:
#: OpenShift AI's odh-model-controller does. A controller built with kubebuilder calls itself manager.
_CONTROLLERS = re.compile(r"manager|.*-controller(?:-manager)?|.*-operator|istiod|pilot-discovery")


@dataclass(frozen=True)
class Stage:
    """The stage's own live objects: its pods, its Services and its InferenceServices."""

    pods: Sequence[Object]
    services: Sequence[Object]
    models: Sequence[Object]

    @property
    def names_of_models(self) -> set[str]:
        """The Services that KServe makes for a model."""
        return {f"{objects.name_of(one)}{end}" for one in self.models for end in ("", "-predictor")}


def _created(item: Object) -> str:
    return str(item["metadata"].get("creationTimestamp") or "")


def _describe(kind: str, item: Object, stage: Stage) -> Iterator[str]:
    owner = find_owner(item, ("spec",))
    by = f"created at {_created(item)}, {'set ' + str(owner) if owner.manager else 'by an unknown client'}"
    is_platforms = kind in ("NetworkPolicy", *_MESH_POLICIES, *_ROUTES) and _CONTROLLERS.fullmatch(owner.manager)
    text = "" if is_platforms else _explain_effect(kind, item, stage)
    if text:
        yield f"{kind}/{objects.name_of(item)}: live, not declared: it {text}; {by}"


def _explain_effect(kind: str, item: Object, stage: Stage) -> str:
    """What an object does to the stage; empty where it does nothing."""
    spec, pods = item.get("spec") or {}, stage.pods
    if kind == "NetworkPolicy":
        hit = _selected(pods, spec.get("podSelector") or {})
        types = ", ".join(spec.get("policyTypes") or ["Ingress"])
        return f"restricts {types} of {_names(hit)}" if hit else ""
    if kind == "Service":
        hit = _selected(pods, {"matchLabels": spec["selector"]}) if spec.get("selector") else []
        return f"sends requests to {_names(hit)}" if hit else ""
    if kind in _ROUTES:
        # Models are there to be reached, and how is their clients' affair; a mesh's route may change what they get.
        open_to_all = stage.names_of_models if kind != "VirtualService" else set()
        names = {objects.name_of(one) for one in stage.services} & set(_find_backends(spec)) - open_to_all
        return f"routes requests to service {', '.join(sorted(names))}" if names else ""
    if kind in _MESH_POLICIES:
        hit = _selected(pods, spec.get("selector") or {})
        action = f" (action {spec.get('action', 'ALLOW')})" if kind == "AuthorizationPolicy" else ""
        return f"restricts requests to {_names(hit)}{action}" if hit else ""
    if kind in ("Pod", *_WORKLOADS):
        made = item if kind == "Pod" else spec["template"]
        selecting = [one for one in stage.services if _selects(one, made)]
        return f"receives requests of service {objects.name_of(selecting[0])}" if selecting else ""
    if kind == "InferenceService":
        shared = [one for one in stage.models if _storage_of(one) and _storage_of(one) == _storage_of(item)]
        return f"serves {_storage_of(item)} of InferenceService/{objects.name_of(shared[0])} too" if shared else ""
    if kind == "PodDisruptionBudget":
        hit = _selected(pods, spec.get("selector") or {})
        blocked = hit and not (item.get("status") or {}).get("disruptionsAllowed")
        return f"allows no disruption of {_names(hit)}, so that a node drain never ends" if blocked else ""
    if kind in ("HorizontalPodAutoscaler", "ScaledObject", "VerticalPodAutoscaler"):
        if (spec.get("updatePolicy") or {}).get("updateMode") == "Off":
            return ""  # it only recommends, as those that Goldilocks adds to every workload
        target = (spec.get("scaleTargetRef") or spec.get("targetRef") or {}).get("name", "")
        return f"changes the scale of {target}" if any(_belongs(pod, target) for pod in pods) else ""
    return "applies to every pod that is created from now on"


def _find_backends(value: Any) -> Iterator[str]:
    """The Services that a route of any kind sends requests to, by the fields in which it names them."""
    for item in value if isinstance(value, list) else []:
        yield from _find_backends(item)
    if not isinstance(value, dict):
        return
    for field, inner in value.items():
        if field in ("service", "to", "backendRefs", "alternateBackends"):  # of an Ingress, an HTTPRoute or a Route
            named = inner if isinstance(inner, list) else [inner]
            yield from (str(one["name"]) for one in named if isinstance(one, dict) and "name" in one)
        elif field == "destination" and isinstance(inner, dict):  # of a VirtualService
            yield str(inner.get("host", "")).partition(".")[0]
        yield from _find_backends(inner)


def _selects(service: Object, made: Object) -> bool:
    labels = (service.get("spec") or {}).get("selector")
    return bool(labels) and bool(_selected([made], {"matchLabels": labels}))


def _storage_of(service: Object) -> str:
    return str((service["spec"]["predictor"].get("model") or {}).get("storageUri") or "")


def _selected(pods: Iterable[Object], selector: Mapping[str, Any]) -> list[Object]:
    """The pods that a label selector matches; an empty one matches all."""
    return [pod for pod in pods if _matches(pod["metadata"].get("labels") or {}, selector)]


def _matches(labels: Mapping[str, str], selector: Mapping[str, Any]) -> bool:
    expressions = selector.get("matchExpressions") or []
    return (selector.get("matchLabels") or {}).items() <= labels.items() and all(
        _holds(labels, str(one.get("key")), str(one.get("operator")), one.get("values") or []) for one in expressions
    )


def _holds(labels: Mapping[str, str], key: str, operator: str, values: Sequence[str]) -> bool:
    if operator in ("Exists", "DoesNotExist"):
        return (key in labels) == (operator == "Exists")
    return (labels.get(key) in values) == (operator == "In")


def _belongs(pod: Object, workload: str) -> bool:
    return bool(workload) and objects.name_of(pod).startswith(f"{workload}-")


def _names(pods: Sequence[Object]) -> str:
    names = [objects.name_of(pod) for pod in pods]
    return f"pod {names[0]}" if len(names) == 1 else f"{len(names)} pods, {names[0]} among them"

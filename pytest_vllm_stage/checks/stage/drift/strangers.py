"""Objects that act on the stage and that no manifest declares: pure functions over objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence

from pytest_vllm_stage.checks.stage.drift.owners import find_owner
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object

#: Kinds of objects that select pods or scale workloads, and so act on a stage without being part of it.
ACTING_KINDS = (
    "NetworkPolicy",
    "Service",
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
    return [
        line
        for kind, items in found.items()
        for item in items
        if _created(item) > deployed
        and not item["metadata"].get("ownerReferences")
        and render.named(declared, kind, objects.name_of(item)) is None
        for line in _describe(kind, item, pods)
    ]


def _created(item: Object) -> str:
    return str(item["metadata"].get("creationTimestamp") or "")


def _describe(kind: str, item: Object, pods: Sequence[Object]) -> Iterator[str]:
    spec = item.get("spec") or {}
    owner = find_owner(item, ("spec",))
    by = f"created at {_created(item)}, {'set ' + str(owner) if owner.manager else 'by an unknown client'}"
    name = f"{kind}/{objects.name_of(item)}"
    if kind == "NetworkPolicy":
        hit = _selected(pods, (spec.get("podSelector") or {}).get("matchLabels") or {})
        types = ", ".join(spec.get("policyTypes") or ["Ingress"])
        text = f"restricts {types} of {_names(hit)}" if hit else ""
    elif kind == "Service":
        hit = _selected(pods, spec.get("selector") or {}) if spec.get("selector") else []
        text = f"sends requests to {_names(hit)}" if hit else ""
    elif kind == "PodDisruptionBudget":
        hit = _selected(pods, (spec.get("selector") or {}).get("matchLabels") or {})
        blocked = hit and not (item.get("status") or {}).get("disruptionsAllowed")
        text = f"allows no disruption of {_names(hit)}, so that a node drain never ends" if blocked else ""
    elif kind in ("HorizontalPodAutoscaler", "ScaledObject", "VerticalPodAutoscaler"):
        target = (spec.get("scaleTargetRef") or spec.get("targetRef") or {}).get("name", "")
        text = f"changes the scale of {target}" if any(_belongs(pod, target) for pod in pods) else ""
    else:
        text = "applies to every pod that is created from now on"
    if text:
        yield f"{name}: live, not declared: it {text}; {by}"


def _selected(pods: Iterable[Object], labels: Mapping[str, str]) -> list[Object]:
    return [pod for pod in pods if labels.items() <= (pod["metadata"].get("labels") or {}).items()]


def _belongs(pod: Object, workload: str) -> bool:
    return bool(workload) and objects.name_of(pod).startswith(f"{workload}-")


def _names(pods: Sequence[Object]) -> str:
    names = [objects.name_of(pod) for pod in pods]
    return f"pod {names[0]}" if len(names) == 1 else f"{len(names)} pods, {names[0]} among them"

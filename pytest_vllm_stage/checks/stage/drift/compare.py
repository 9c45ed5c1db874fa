"""Compares live objects with what they were made from, link by link: pure functions over objects.

The links are manifest to live object, InferenceService and ServingRuntime to the Deployment that KServe generates, and
ReplicaSet to pod. A difference is reported at the link where it began, with the manager that has the field.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pytest_vllm_stage.checks.stage.drift import platform
from pytest_vllm_stage.checks.stage.drift.expected import expected_deployment
from pytest_vllm_stage.checks.stage.drift.fields import MISSING, Difference, Path, find_differences, render_path
from pytest_vllm_stage.checks.stage.drift.owners import Owner, find_owner, last_person, owned_by_persons
from pytest_vllm_stage.checks.stage.drift.platform import Surroundings, explain_addition, explain_change, limit_defaults
from pytest_vllm_stage.core import secret
from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import runbook

#: Metadata that describes an object's history and not its content.
_NOT_COMPARED = ("status", "apiVersion", "kind")
_METADATA = ("labels", "annotations", "finalizers")
#: Kinds that a cluster may remove when they have ended, or that other checks report.
_MAY_BE_GONE = ("Job", "Secret")
#: A variable of such a name holds a secret, whatever the manifests say.
_SECRET_NAME = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
_SECRET_ARGUMENT = re.compile(r"(--[\w-]*(?:key|token|secret|password)[= ])\S+", re.IGNORECASE)
LONGEST_VALUE = 120


def compare_declared(manifest: Object, live: Object | None, around: Surroundings) -> list[str]:
    """The fields of a declared object that are not live, and those of the live one that are not declared."""
    name = f"{manifest['kind']}/{objects.name_of(manifest)}"
    if live is None:
        return [] if manifest["kind"] in _MAY_BE_GONE else [f"{name}: declared, but it does not exist"]
    found = find_differences(_content(manifest), _content(live))
    return [f"{name} {line}" for line in _describe(live, _without_harmless(manifest, live, found), around)]


def compare_generated(service: Object, runtime: Object, deployment: Object, around: Surroundings) -> list[str]:
    """The fields of a generated Deployment that its InferenceService and ServingRuntime do not request.

    KServe adds fields of its own: what a controller alone has is its addition. A value that differs from the request is
    reported for every owner: the controller has not processed the request, or someone changed the result.
    """
    expected, controllers = expected_deployment(service, runtime), _controllers_of(deployment)
    found = [
        one
        for one in find_differences(expected["spec"], deployment["spec"], ("spec",))
        if not (one.declared is MISSING and find_owner(deployment, one.path).manager in controllers)
        and not _is_allowed_scale(service, one)
    ]
    name = f"Deployment/{objects.name_of(deployment)}"
    return [f"{name} {line}" for line in _describe(deployment, found, around)]


def compare_pod(replica_set: Object, pod: Object, around: Surroundings) -> list[str]:
    """The fields of a pod that its ReplicaSet's template does not have, and the reverse."""
    template = replica_set["spec"]["template"]
    found = [
        *find_differences(_metadata(template), _metadata(pod), ("metadata",)),
        *find_differences(template["spec"], pod["spec"], ("spec",)),
    ]
    return [f"Pod/{objects.name_of(pod)} {line}" for line in _describe(pod, found, around)]


def find_manual_changes(generated: Object) -> list[str]:
    """The fields of a generated object that a person owns; ``kubectl rollout restart`` does not count."""
    name = f"{generated['kind']}/{objects.name_of(generated)}"
    return [
        f"{name} {render_path(path)}: live, not generated: {_show(path, _value_at(generated, path))}; set {owner}"
        for path, owner in owned_by_persons(generated)
        if not platform.is_restart(render_path(path)) and not (generated["kind"] == "Deployment" and path[0] == "spec")
    ]


def _value_at(item: Any, path: Path) -> Any:
    for step in path:
        item = item.get(step) if isinstance(item, dict) and not step.startswith("[") else None
    return MISSING if item is None else item


def _controllers_of(generated: Object) -> set[str]:
    """The manager that made the object its owner's, and Kubernetes' own controllers."""
    return {find_owner(generated, ("metadata", "ownerReferences")).manager, "kube-controller-manager"} - {""}


def _is_allowed_scale(service: Object, found: Difference) -> bool:
    """An autoscaler moves the number of replicas within the declared limits."""
    if found.path != ("spec", "replicas"):
        return False
    predictor = service["spec"]["predictor"]
    least = predictor.get("minReplicas", 1)
    return bool(found.live is MISSING or least <= found.live <= max(predictor.get("maxReplicas") or least, least))


def _content(item: Object) -> Object:
    """What is compared of an object; of a Secret only the names of its keys."""
    content = {key: value for key, value in item.items() if key not in (*_NOT_COMPARED, "metadata", "spec")}
    content["metadata"] = _metadata(item)
    if item["kind"] == "Secret":
        keys = [*(item.get("data") or {}), *(item.get("stringData") or {})]
        content = {"metadata": content["metadata"], "data": dict.fromkeys(keys, "a value")}
    elif item["kind"] == "Namespace":
        return {"metadata": content["metadata"]}
    elif item.get("spec") is not None:
        content["spec"] = item["spec"]
    return content


def _metadata(item: Object) -> Object:
    return {key: (item.get("metadata") or {}).get(key) for key in _METADATA}


def _without_harmless(manifest: Object, live: Object, found: Iterable[Difference]) -> Iterator[Difference]:
    """Leave out what a deployer added when it applied the object, and what no one reads."""
    part = "data" if manifest["kind"] in ("Secret", "ConfigMap") else "metadata"
    deployers = {find_owner(live, one).manager for one in _leaves(_content(manifest).get(part) or {}, (part,))} - {""}
    for one in found:
        added, owner = one.declared is MISSING, find_owner(live, one.path)
        if added and manifest["kind"] in ("Secret", "ConfigMap") and owner.manager in deployers:
            continue  # one object may serve others too: its deployer put the key there
        if added and manifest["kind"] == "Namespace" and not owner.is_person:
            continue  # the platform labels namespaces
        yield one


def _leaves(value: Object, path: Path) -> Iterator[Path]:
    for key, item in value.items():
        yield from _leaves(item, (*path, key)) if isinstance(item, dict) else [(*path, key)]


def _describe(live: Object, found: Iterable[Difference], around: Surroundings) -> Iterator[str]:
    """One line for each difference that no part of the platform explains."""
    for one in found:
        owner = find_owner(live, one.path)
        if one.declared is MISSING:
            if not explain_addition(live, one, owner, around):
                by = _set_by(live, one, owner, around)
                yield f"{one.where}: live, not declared: {_show(one.path, one.live)}; {by}"
        elif one.live is MISSING:
            person = last_person(live)
            by = f"; the object was last changed {person}" if person else ""
            yield f"{one.where}: declared, not live: {_show(one.path, one.declared)}{by}"
        elif not explain_change(live, one):
            yield from _describe_change(live, one, owner, around)


def _describe_change(live: Object, found: Difference, owner: Owner, around: Surroundings) -> Iterator[str]:
    by = _set_by(live, found, owner, around)
    if found.path[-1] in ("args", "command") and isinstance(found.live, list) and isinstance(found.declared, list):
        for line in drift.compare_args(tuple(map(str, found.declared)), tuple(map(str, found.live))):
            yield f"{found.where}: {_hide(line)}; {by}"
        return
    declared, shown = _show(found.path, found.declared), _show(found.path, found.live)
    if declared == shown:
        declared, shown = _show_first_change(found.declared, found.live)
    yield f"{found.where}: declared {declared}, live {shown}; {by}"


def _set_by(live: Object, found: Difference, owner: Owner, around: Surroundings) -> str:
    """Who set a field; a LimitRange by name where it explains the value."""
    if not owner.manager and found.path[-2:-1] in (("requests",), ("limits",)):
        kind = "default" if found.path[-2] == "limits" else "defaultRequest"
        ranges = [*around.later_limit_ranges, *around.limit_ranges]
        name = limit_defaults(ranges, kind, found.path[-1]).get(found.live)
        if name:
            return f"set by LimitRange {name}"
    if not owner.manager and live.get("kind") == "Pod":
        return "set by an admission plugin or webhook when the pod was created"
    return f"set {owner}"


def _show(path: Path, value: Any) -> str:
    """A value in a few words, without secrets."""
    if value is MISSING:
        return "(absent)"
    if path[-2:-1] == ("env",) and isinstance(value, dict):
        return _show_variable(path[-1], value)
    if len(path) > 2 and path[-3] == "env" and _SECRET_NAME.search(path[-2]):
        return secret.MASK
    if isinstance(value, dict) and "image" in value:
        return f"image {value['image']}"
    if isinstance(value, str) and "\n" in value:
        return f"{len(value.splitlines())} lines"
    text = value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)
    return runbook.cut(secret.redact(_hide(text)), LONGEST_VALUE)


def _show_variable(name: str, entry: Object) -> str:
    if "value" in entry:
        shown = secret.MASK if _SECRET_NAME.search(name) else secret.redact(str(entry["value"]))
        return f"value {runbook.cut(shown, LONGEST_VALUE)}"
    return f"from {', '.join(entry.get('valueFrom') or {}) or 'nothing'}"


def _show_first_change(declared: Any, live: Any) -> tuple[str, str]:
    """The first line in which two long texts differ, by number; the contents may be private."""
    sides = str(declared).splitlines(), str(live).splitlines()
    pairs = enumerate(zip(*sides, strict=False), start=1)
    number = next((index for index, (one, other) in pairs if one != other), min(map(len, sides)) + 1)
    return f"{len(sides[0])} lines", f"{len(sides[1])} lines that differ from line {number} on"


def _hide(text: str) -> str:
    return _SECRET_ARGUMENT.sub(rf"\1{secret.MASK}", text)


def surroundings(limit_ranges: Sequence[Object], services: Sequence[Object]) -> Surroundings:
    """Divide the namespace's LimitRanges into those that the stage was deployed under, and newer ones."""
    deployed = min((str(one["metadata"].get("creationTimestamp") or "") for one in services), default="")
    earlier = [one for one in limit_ranges if str(one["metadata"].get("creationTimestamp") or "") <= deployed]
    return Surroundings(earlier, [one for one in limit_ranges if one not in earlier])

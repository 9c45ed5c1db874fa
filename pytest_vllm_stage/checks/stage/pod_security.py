"""Pod security levels that running pods would not pass any more: pure functions over objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from pytest_vllm_stage.checks.stage.drift.owners import find_owner
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object

ENFORCE = "pod-security.kubernetes.io/enforce"
#: https://kubernetes.io/docs/concepts/security/pod-security-standards
_SHARED_NAMESPACES = ("hostNetwork", "hostPID", "hostIPC")
_RESTRICTED_VOLUMES = (
    "configMap",
    "csi",
    "downwardAPI",
    "emptyDir",
    "ephemeral",
    "image",
    "persistentVolumeClaim",
    "projected",
    "secret",
)


def check_level(namespace: Object, pods: Iterable[Object]) -> list[str]:
    """Report pods that are older than the namespace's enforced level, and violate it.

    A pod that is younger was admitted under it: its user, or its runtime class, may be exempt.
    """
    level = (namespace["metadata"].get("labels") or {}).get(ENFORCE, "")
    changed_at = find_owner(namespace, ("metadata", "labels", ENFORCE)).time
    if level not in ("baseline", "restricted") or not changed_at:
        return []
    lines = []
    for pod in pods:
        created_at = str(pod["metadata"].get("creationTimestamp") or "")
        problems = list(_find_violations(pod["spec"], level)) if "" < created_at < changed_at else []
        if problems:
            more = f" and {len(problems) - 2} more" if len(problems) > 2 else ""
            lines.append(
                f"namespace {objects.name_of(namespace)} enforces pod security level {level} since {changed_at}, which "
                f"refuses pod {objects.name_of(pod)}: {', '.join(problems[:2])}{more}; a replacement is not admitted"
            )
    return lines


def _find_violations(spec: Object, level: str) -> Iterator[str]:
    yield from (f"{field}" for field in _SHARED_NAMESPACES if spec.get(field))
    for volume in spec.get("volumes") or []:
        kind = next((key for key in volume if key != "name"), "emptyDir")
        if kind == "hostPath" or (level == "restricted" and kind not in _RESTRICTED_VOLUMES):
            yield f"volume {volume.get('name')} ({kind})"
    for container in [*(spec.get("initContainers") or []), *(spec.get("containers") or [])]:
        name, own = container["name"], container.get("securityContext") or {}
        if own.get("privileged"):
            yield f"container {name} (privileged)"
        if any(port.get("hostPort") for port in container.get("ports") or []):
            yield f"container {name} (hostPort)"
        if level == "restricted":
            yield from (
                f"container {name} ({what})" for what in _find_unrestricted(own, spec.get("securityContext") or {})
            )


def _find_unrestricted(own: Object, of_pod: Object) -> Iterator[str]:
    def effective(field: str) -> Any:
        return own.get(field, of_pod.get(field))

    if own.get("allowPrivilegeEscalation") is not False:
        yield "allowPrivilegeEscalation is not false"
    if effective("runAsNonRoot") is not True:
        yield "runAsNonRoot is not true"
    if effective("runAsUser") == 0:
        yield "runAsUser is 0"
    if "ALL" not in ((own.get("capabilities") or {}).get("drop") or []):
        yield "capabilities are not dropped"
    if (effective("seccompProfile") or {}).get("type") not in ("RuntimeDefault", "Localhost"):
        yield "no seccompProfile"

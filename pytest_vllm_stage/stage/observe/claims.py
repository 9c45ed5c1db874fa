"""Why a PersistentVolumeClaim is not bound: pure functions over objects and events."""

from __future__ import annotations

from collections.abc import Iterable

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import runbook
from pytest_vllm_stage.stage.observe.trouble import Trouble, warnings_of
from pytest_vllm_stage.stage.quantities import parse_quantity


def explain_pending_claim(
    claim: Object, classes: list[Object], volumes: list[Object], events: Iterable[Object]
) -> Trouble | None:
    """Why a PersistentVolumeClaim cannot bind; None where it is bound, or may still become so."""
    phase, name, spec = (claim.get("status") or {}).get("phase"), objects.name_of(claim), claim["spec"]
    if phase == "Lost":
        return Trouble(f"PVC {name} is Lost: its PersistentVolume {spec.get('volumeName')} no longer exists", times=3)
    if phase != "Pending":
        return None
    class_name, wants = spec.get("storageClassName"), spec["resources"]["requests"]["storage"]
    storage_class = next((found for found in classes if objects.name_of(found) == class_name), None)
    if class_name and classes and storage_class is None:
        known = ", ".join(sorted(map(objects.name_of, classes)))
        return Trouble(f"PVC {name} cannot bind: there is no StorageClass {class_name} (existing: {known})", times=2)
    static = storage_class is not None and storage_class.get("provisioner") == "kubernetes.io/no-provisioner"
    if static and not any(_fits(volume, claim) for volume in volumes):
        cause = f"PVC {name} cannot bind: no PersistentVolume of StorageClass {class_name} offers {wants}"
        return Trouble(cause, times=3)
    for event in warnings_of(claim, events):
        if event.get("reason") in ("ProvisioningFailed", "FailedBinding"):
            return Trouble(f"PVC {name} cannot bind: {runbook.cut(event.get('message', ''))}", times=3)
    return None


def _fits(volume: Object, claim: Object) -> bool:
    """A static volume could take the claim, or has it already."""
    owner = volume["spec"].get("claimRef") or {}
    if owner and owner.get("uid") != claim["metadata"].get("uid"):
        return False
    same_class = volume["spec"].get("storageClassName") == claim["spec"].get("storageClassName")
    wanted = parse_quantity(claim["spec"]["resources"]["requests"]["storage"])
    return same_class and parse_quantity(volume["spec"]["capacity"]["storage"]) >= wanted

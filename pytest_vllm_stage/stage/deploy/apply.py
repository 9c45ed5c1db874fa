"""Server-side apply of this run's objects; existing objects of other owners are not taken over."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllm_stage.cluster.api_errors import KindNotServed, RequestRejected, retry_while_busy
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy import secrets
from pytest_vllm_stage.stage.objects import Object

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

RUN_ID_LABEL = "vllm-stage/run-id"
EXPIRES_ANNOTATION = "vllm-stage/expires-at"
#: How long objects of a run may stay when the run itself does not delete them.
LIFETIME = datetime.timedelta(hours=24)


@dataclass(frozen=True)
class Ownership:
    """The run that owns objects, and until when.

    Attributes:
        run_id: The run that creates them.
        expires_at: RFC 3339 time after which they are leftovers; fixed once per run, since KServe copies an
            InferenceService's metadata into its pod template, where a new value would restart the pods.
    """

    run_id: str
    expires_at: str

    @classmethod
    def for_run(cls, run_id: str) -> Ownership:
        """Ownership that begins now."""
        expiry = datetime.datetime.now(datetime.UTC) + LIFETIME
        return cls(run_id, expiry.strftime("%Y-%m-%dT%H:%M:%SZ"))

    def mark(self, manifest: Object) -> Object:
        """The manifest with the run's label and expiry; on the object itself, its children inherit by owner."""
        metadata = dict(manifest["metadata"])
        metadata["labels"] = {**(metadata.get("labels") or {}), RUN_ID_LABEL: self.run_id}
        metadata["annotations"] = {**(metadata.get("annotations") or {}), EXPIRES_ANNOTATION: self.expires_at}
        return {**manifest, "metadata": metadata}


def run_id_of(item: Object) -> str | None:
    """The run that created an object; None where no run of this plugin did."""
    label = (item["metadata"].get("labels") or {}).get(RUN_ID_LABEL)
    return str(label) if label else None


def apply(
    kube: DynamicClient, manifests: list[Object], namespace: str, ownership: Ownership, values: Mapping[str, Secret]
) -> list[Object]:
    """Apply manifests as this run's; return the objects as the server holds them.

    Raises:
        ConfigError: an object of that name exists and belongs to another owner, which the error names.
        RequestRejected: the server does not accept a manifest.
    """
    for manifest in manifests:
        _refuse_foreign(kube, manifest, namespace, ownership.run_id)
    return [_apply_one(kube, ownership.mark(manifest), namespace, values) for manifest in manifests]


def _refuse_foreign(kube: DynamicClient, manifest: Object, namespace: str, run_id: str) -> None:
    existing = objects.get(kube, objects.kind_of(manifest), objects.name_of(manifest), namespace)
    if existing is not None and run_id_of(existing) != run_id:
        raise ConfigError(
            f"{objects.reference(manifest)} in namespace {namespace} exists already and belongs to "
            f"{describe_owner(existing)}: it is not taken over",
            hint="choose another namespace (--stage-namespace), validate the existing stage (without --stage-deploy), "
            "or remove it first",
        )


def describe_owner(item: Object) -> str:
    """The owner of an object, for messages."""
    run_id = run_id_of(item)
    if run_id:
        expiry = (item["metadata"].get("annotations") or {}).get(EXPIRES_ANNOTATION, "an unknown time")
        return f"run {run_id} (expires {expiry})"
    managers = sorted({str(entry.get("manager")) for entry in item["metadata"].get("managedFields") or []})
    return f"field manager {', '.join(managers)}" if managers else "an unknown owner"


def _apply_one(kube: DynamicClient, manifest: Object, namespace: str, values: Mapping[str, Secret]) -> Object:
    what = objects.reference(manifest)
    try:
        return retry_while_busy(f"apply {what}", lambda: objects.apply(kube, secrets.fill(manifest, values), namespace))
    except KindNotServed as error:
        raise ConfigError(f"{what} cannot be applied: {error.message}", hint="kubectl api-resources") from None
    except RequestRejected as error:
        if error.code == 409:
            raise ConfigError(f"{what} in namespace {namespace} has fields of another owner: {error.message}") from None
        if error.code in (400, 422) and manifest["kind"] != "Namespace":
            raise ConfigError(f"the cluster rejects {what}: {error.message}") from None
        raise

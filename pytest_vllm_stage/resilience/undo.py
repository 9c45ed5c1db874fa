"""What a disruption has changed, recorded in the cluster before the change, so that any later run can undo it.

The record is a ConfigMap next to the stage: a run that is killed in the middle leaves it behind, and the next run with
--stage-disrupt reads it, whichever machine it runs on.
"""

from __future__ import annotations

import json
import signal
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pytest_vllm_stage.resilience import processes
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient

NAME = "vllm-stage-disruption"


@dataclass(frozen=True)
class Undo:
    """How to undo one change.

    Attributes:
        kind: Of the changed object; a ``Pod`` is one whose processes were suspended.
        name: Its name.
        patch: The merge patch that restores it.
        container: The container whose processes continue; empty for others.
    """

    kind: str
    name: str
    patch: Object
    container: str = ""

    @property
    def reference(self) -> str:
        """The object as kubectl names it."""
        return f"{self.kind.lower()}/{self.name}"


def record(kube: DynamicClient, namespace: str, run_id: str, undo: Undo) -> None:
    """Record how a change is undone, before it is made."""
    manifest = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": NAME, "namespace": namespace, "labels": {"vllm-stage/run-id": run_id}},
        "data": {"run": run_id, "undo": json.dumps(asdict(undo))},
    }
    objects.apply(kube, manifest, namespace)


def undo_recorded(kube: DynamicClient, namespace: str) -> str:
    """Undo what is recorded, if anything is; return what was undone, and for which run."""
    found = objects.get(kube, "ConfigMap", NAME, namespace)
    if found is None:
        return ""
    undo = Undo(**json.loads(found["data"]["undo"]))
    if undo.container:
        processes.signal_container(undo.container, signal.SIGCONT)
    if undo.patch and objects.get(kube, undo.kind, undo.name, namespace) is not None:
        objects.patch(kube, undo.kind, undo.name, namespace, undo.patch)
    # At once: what is recorded next must not end up in an object that is still being deleted.
    objects.delete(kube, found, namespace, "Background")
    return f"{undo.reference} of run {found['data']['run']}"

"""A healthy simulated stage, as a real API server gave it: manifests and live objects with their managed fields."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pytest_vllm_stage.checks.stage.drift import compare, strangers
from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.deploy import render

Object = dict[str, Any]
DATA = Path(__file__).parents[1] / "data" / "simulated-stage.json.gz"
MODEL = "smollm2-135m"
#: After everything that the recording holds.
LATER = "2026-11-26T05:00:00Z"


@cache
def _recorded() -> str:
    return gzip.decompress(DATA.read_bytes()).decode()


@dataclass
class RecordedStage:
    """The objects of one copy of the recording, to be changed by a test."""

    declared: list[Object]
    live: list[Object]

    @classmethod
    def load(cls) -> RecordedStage:
        data = json.loads(_recorded())
        return cls(data["declared"], data["live"])

    def listed(self, kind: str) -> list[Object]:
        return render.select_kind(self.live, kind)

    def get(self, kind: str, name: str) -> Object:
        found = render.named(self.live, kind, name)
        assert found is not None, f"{kind}/{name} is not recorded"
        return found

    def pod_of(self, workload: str) -> Object:
        """The running pod of a Deployment."""
        return next(
            pod
            for pod in self.listed("Pod")
            if objects.name_of(pod).startswith(f"{workload}-")
            and any(owner["kind"] == "ReplicaSet" for owner in pod["metadata"]["ownerReferences"])
        )

    def find_drift(self) -> list[str]:
        """Every line of the checks of suites/deployment/test_drift.py."""
        return list(self._lines())

    def _lines(self) -> Iterator[str]:
        services = self.listed("InferenceService")
        declared = [one for one in services if render.named(self.declared, "InferenceService", objects.name_of(one))]
        around = compare.surroundings(self.listed("LimitRange"), services)
        for manifest in self.declared:
            yield from compare.compare_declared(
                manifest, render.named(self.live, manifest["kind"], objects.name_of(manifest)), around
            )
        for service in declared:
            runtime = self.get("ServingRuntime", drift.runtime_name(service))
            deployment = self.get("Deployment", f"{objects.name_of(service)}-predictor")
            yield from compare.compare_generated(service, runtime, deployment, around)
        for owner in self.listed("ReplicaSet"):
            for pod in objects.owned_by(self.listed("Pod"), owner):
                yield from compare.compare_pod(owner, pod, around)
        found = {kind: self.listed(kind.partition(".")[0]) for kind in strangers.ACTING_KINDS}
        yield from strangers.find_strangers(found, self.declared, self.listed("Pod"), services)


def owned(item: Object, manager: str, *path: str, operation: str = "Update") -> None:
    """Record that a manager has a field, and that no other has."""
    for entry in item["metadata"].get("managedFields") or []:
        _remove(entry.get("fieldsV1") or {}, path)
    tree: Object = {}
    leaf = tree
    for step in path:
        leaf = leaf.setdefault(step, {})
    entry = {"manager": manager, "operation": operation, "time": LATER, "fieldsType": "FieldsV1", "fieldsV1": tree}
    item["metadata"].setdefault("managedFields", []).append(entry)


def _remove(tree: Object, path: tuple[str, ...]) -> None:
    if path[0] in tree and len(path) == 1:
        del tree[path[0]]
    elif tree.get(path[0]):
        _remove(tree[path[0]], path[1:])

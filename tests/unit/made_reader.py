"""A reader of given objects in place of a cluster."""

from __future__ import annotations

from typing import Any

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import reader

CLUSTER = ClusterFacts("local", "kc", "ctx", "v1", "kubectl", True, True)


class Snapshot(reader.StageReader):
    """A view of given objects, events and one log."""

    def __init__(self, *there: Object, log: list[str] | None = None, events: list[Object] | None = None) -> None:
        nothing: Any = None
        super().__init__(nothing, CLUSTER, "ns", events or [])
        self.there = there
        self.log = log or []

    def get(self, kind: str, name: str) -> Object | None:
        return next((i for i in self.there if i["kind"] == kind and i["metadata"]["name"] == name), None)

    def listed(self, kind: str, labels: dict[str, str] | None = None) -> list[Object]:
        return [item for item in self.there if item["kind"] == kind]

    def everywhere(self, kind: str) -> list[Object]:
        return self.listed(kind)

    @property
    def logs(self) -> Any:
        return lambda *_: self.log

"""How conditions observe the stage, and what one observation gives."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from pytest_vllm_stage.cluster.api_errors import ApiServerUnreachable, RequestRejected
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import diagnose
from pytest_vllm_stage.stage.observe.scheduling import PlacementFacts
from pytest_vllm_stage.stage.observe.trouble import Trouble

if TYPE_CHECKING:
    from kubernetes.dynamic import DynamicClient


@dataclass(frozen=True)
class ConditionStatus:
    """What one observation of a condition showed.

    Attributes:
        done: The condition holds.
        state: The state in a few words.
        trouble: A state that may never change by waiting.
        subjects: Objects whose warning events explain it.
    """

    done: bool
    state: str
    trouble: Trouble | None = None
    subjects: Sequence[Object] = ()


@dataclass
class StageReader:
    """Reads one namespace of a cluster; ``events`` are those of the current observation."""

    kube: DynamicClient
    cluster: ClusterFacts
    namespace: str
    events: list[Object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._logs: diagnose.Logs | None = None

    @property
    def logs(self) -> diagnose.Logs:
        """Reads logs, without the namespace's secret values."""
        if self._logs is None:
            redact = diagnose.redactor(self.kube, self.namespace)
            self._logs = diagnose.Logs(self.kube, self.namespace, redact)
        return self._logs

    def read_ended_log(self, pod: str, container: str, previous: bool) -> list[str]:
        """The log of a container's instance that ended, long enough to hold what it died of."""
        return self.logs(pod, container, previous, diagnose.LINES_OF_AN_END)

    def get(self, kind: str, name: str) -> Object | None:
        """One object of the namespace."""
        return objects.get(self.kube, kind, name, self.namespace)

    def listed(self, kind: str, labels: dict[str, str] | None = None) -> list[Object]:
        """Objects of the namespace."""
        return objects.listed(self.kube, kind, self.namespace, labels)

    def listed_where_allowed(self, kind: str) -> list[Object]:
        """Objects of the namespace; empty where this user may not list them, or the cluster has no such kind."""
        try:
            return self.listed(kind)
        except ApiServerUnreachable:
            raise
        except (EnvironmentUnusable, RequestRejected):
            return []

    def is_readable(self, kind: str, name: str) -> bool:
        """Whether this user may read an object, which need not exist."""
        try:
            self.get(kind, name)
        except ApiServerUnreachable:
            raise
        except EnvironmentUnusable:
            return False
        return True

    def get_where_allowed(self, kind: str, name: str) -> Object | None:
        """One object; None where it does not exist, or this user may not read it."""
        try:
            return self.get(kind, name)
        except ApiServerUnreachable:
            raise
        except (EnvironmentUnusable, RequestRejected):
            return None

    def everywhere(self, kind: str) -> list[Object]:
        """Cluster-wide objects; empty where this user may not list them."""
        try:
            return objects.listed(self.kube, kind)
        except ApiServerUnreachable:
            raise
        except EnvironmentUnusable:
            return []

    def placement(self, *, with_pods: bool = True) -> PlacementFacts:
        """What decides where the pods of the namespace can run; ``with_pods`` lists those of all namespaces too."""
        return PlacementFacts(
            nodes=self.everywhere("Node"),
            pods=self.everywhere("Pod") if with_pods else (),
            claims=self.listed_where_allowed("PersistentVolumeClaim"),
            volumes=self.everywhere("PersistentVolume"),
        )


class Condition(Protocol):
    """Something about one object that is to become true."""

    what: str
    timeout_s: float

    @property
    def failing(self) -> str:
        """The failure in words: ``job/download cannot complete``."""

    def observe(self, reader: StageReader) -> ConditionStatus:
        """Observe it once."""

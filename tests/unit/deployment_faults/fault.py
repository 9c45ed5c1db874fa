"""What a planted fault is, and the objects that several of them need.

The texts are those of Kubernetes 1.34, KServe 0.20, containerd and runc.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.stage.observe import conditions
from pytest_vllm_stage.stage.observe.reader import Condition
from tests.unit.made_objects import condition, container_status, deployment, pod, runtime, service, waiting
from tests.unit.made_reader import Snapshot

Object = dict[str, Any]
RUNNING = container_status(ready=False)


@dataclass(frozen=True)
class Fault:
    """A planted fault.

    Attributes:
        planted: What is wrong, in a few words.
        line: The first line of the report, whole.
        there: The objects that show it.
        log: The lines of every log.
        events: The events.
        of: The condition that is waited for.
    """

    planted: str
    line: str
    there: tuple[Object, ...]
    log: tuple[str, ...] = ()
    events: tuple[Object, ...] = ()
    of: Callable[[str, float], Condition] = conditions.InferenceServiceReady

    def first_line(self) -> str:
        """What the run reports first."""
        awaited = self.of(self.there[0]["metadata"]["name"], 300)
        status = awaited.observe(Snapshot(*self.there, log=list(self.log), events=list(self.events)))
        assert status.trouble is not None, f"{self.planted}: {status.state}"
        return f"{awaited.failing}: {status.trouble.cause}"


NOT_READY = service(ready="False")
READY = "inferenceservice/m cannot become Ready"


def model(made: Object, *more: Object) -> tuple[Object, ...]:
    """An InferenceService that is not Ready, its runtime, its Deployment and a pod."""
    return (NOT_READY, runtime(), deployment(availableReplicas=0), made, *more)


def unscheduled(message: str, **spec: Any) -> Object:
    reason = condition("PodScheduled", "False", reason="Unschedulable", message=message)
    return pod(ready=False, statuses=[], conditions=[reason], spec=spec)


def changed(item: Object, part: str, **fields: Any) -> Object:
    item[part] |= fields
    return item


STARTING = pod(ready=False, statuses=[waiting("ContainerCreating")])

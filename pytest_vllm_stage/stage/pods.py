"""What a pod of a model says of its serving container, next to which a platform may put others, proxies for example."""

from __future__ import annotations

from pytest_vllm_stage.stage.drift import SERVING_CONTAINER, serving_container
from pytest_vllm_stage.stage.objects import Object

#: KServe's port of a serving container that declares none.
DEFAULT_PORT = 8080


def find_serving_port(pod: Object) -> int:
    """The port of the engine itself: the first one that its container declares, as KServe takes it."""
    ports = serving_container(pod["spec"]).get("ports") or [{}]
    return int(ports[0].get("containerPort", DEFAULT_PORT))


def count_restarts(pod: Object) -> int:
    """How often the serving container was restarted; all containers count where none has KServe's name."""
    statuses = (pod.get("status") or {}).get("containerStatuses") or []
    named = [one for one in statuses if one.get("name") == SERVING_CONTAINER]
    return sum(int(one.get("restartCount") or 0) for one in named or statuses)

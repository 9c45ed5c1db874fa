"""Detects states that cannot heal by waiting: pure functions over objects, events and log lines."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import messages, probes, rollout, runbook, scheduling
from pytest_vllm_stage.stage.observe.scheduling import PlacementFacts

#: (pod, container, of the previous instance) to its log lines.
Logs = Callable[[str, str, bool], list[str]]
#: A container that ended this often without a known cause is in a crash loop.
RESTARTS_OF_A_LOOP = 2
#: What shells and container runtimes mean by an exit code; a program that a signal ends logs nothing itself.
_EXIT_CODES = {
    126: "the command is not executable",
    127: "the command does not exist",
    132: "SIGILL: the image needs instructions that the node's processor lacks",
    134: "SIGABRT",
    135: "SIGBUS: for example /dev/shm is full",
    137: "SIGKILL: ended from outside the container",
    139: "SIGSEGV",
    143: "SIGTERM: asked to end from outside the container",
}
#: Reasons of a container that waits for its image, with the consecutive observations that count: the kubelet retries.
_PULL_FAILURES = {
    "ErrImageNeverPull": 1,
    "InvalidImageName": 1,
    "ImageInspectError": 4,
    "ErrImagePull": 4,
    "ImagePullBackOff": 2,
    "RegistryUnavailable": 4,
    "SignatureValidationFailed": 2,
}
#: Reasons of a container whose process was never started; the cause is in the message, and there is no log.
_NEVER_STARTED = ("StartError", "ContainerCannotRun")
_UNKNOWN = PlacementFacts()


@dataclass(frozen=True)
class Trouble:
    """A state that will not heal by waiting.

    Attributes:
        cause: What is wrong, in the runbook's terms, in one line.
        pod: The pod whose log and events explain it; empty where there is none.
        container: The container in it.
        previous: The log is that of the container's previous instance.
        times: In how many consecutive observations it must appear: some states disappear by themselves at start.
        action: What to do about it, where the runbook knows.
    """

    cause: str
    pod: str = ""
    container: str = ""
    previous: bool = False
    times: int = 1
    action: str = ""


def find_pod_trouble(
    pods: Iterable[Object], events: list[Object], logs: Logs, placement: PlacementFacts = _UNKNOWN
) -> Trouble | None:
    """The first trouble among pods that are not being deleted; a pod that was removed counts while none replaced it."""
    present = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    current = [pod for pod in present if not describe_removal(pod)]
    found = (find_trouble_of_pod(pod, events, logs, placement) for pod in current or present)
    return next((trouble for trouble in found if trouble), None)


def find_trouble_of_pod(
    pod: Object, events: list[Object], logs: Logs, placement: PlacementFacts = _UNKNOWN
) -> Trouble | None:
    """The reason why a pod does not run or has failed."""
    name, status = objects.name_of(pod), pod.get("status") or {}
    removal = describe_removal(pod)
    if removal:
        return Trouble(f"pod {name} {removal}", name)
    mine = warnings_of(pod, events)
    scheduling = _unschedulable(pod, events, placement)
    if scheduling:
        return scheduling
    for container in [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]:
        found = _find_probe_trouble(pod, container, events, logs) or _find_container_trouble(pod, container, logs)
        if found:
            return replace(found, cause=found.cause + _describe_pull_secrets(found, mine))
    return _find_mount_trouble(pod, mine) or _find_stalled_trouble(pod)


def _describe_pull_secrets(found: Trouble, warnings: Iterable[Object]) -> str:
    """The pull secrets that the kubelet could not read, where an image cannot be pulled; to be appended."""
    reason = "FailedToRetrieveImagePullSecret"
    texts = [str(event.get("message", "")) for event in warnings if event.get("reason") == reason]
    names = re.search(r"\(([^)]+)\)", texts[-1]) if texts and found.cause.startswith("image ") else None
    return f" (pull secret {names[1]} does not exist)" if names else ""


def find_node_trouble(pods: Iterable[Object], nodes: Iterable[Object]) -> Trouble | None:
    """A pod that is not Ready on a node that is not Ready either."""
    by_name = {objects.name_of(node): node for node in nodes}
    for pod in pods:
        node = by_name.get(str(pod["spec"].get("nodeName")))
        ready = objects.condition(node, "Ready") if node else {}
        if ready.get("status") in ("False", "Unknown") and not objects.is_true(pod, "Ready"):
            name, where = objects.name_of(pod), pod["spec"]["nodeName"]
            why = runbook.cut(str(ready.get("message") or ready.get("reason") or "no reason given"))
            return Trouble(f"pod {name} runs on node {where}, which is not Ready: {why}", name, times=10)
    return None


def _find_stalled_trouble(pod: Object) -> Trouble | None:
    """A pod that waits for something that does not exist, which no event reports."""
    name, scheduler = objects.name_of(pod), pod["spec"].get("schedulerName", "default-scheduler")
    scheduled, ready = objects.condition(pod, "PodScheduled"), objects.condition(pod, "Ready")
    if not scheduled and not pod["spec"].get("nodeName") and scheduler != "default-scheduler":
        return Trouble(f"pod {name} waits for scheduler {scheduler}, which has not processed it", name, times=20)
    if scheduled.get("reason") == "SchedulingGated":
        gates = ", ".join(str(gate.get("name")) for gate in pod["spec"].get("schedulingGates") or [])
        return Trouble(f"pod {name} is held back by scheduling gate {gates}", name, times=60)
    if ready.get("reason") == "ReadinessGatesNotReady":
        return Trouble(f"pod {name} is not Ready: {runbook.cut(ready.get('message', ''))}", name, times=40)
    return None


def describe_removal(pod: Object) -> str:
    """Describe the removal of a pod by a node or the scheduler, with the reason; empty where it was not removed."""
    status = pod.get("status") or {}
    disrupted = objects.condition(pod, "DisruptionTarget")
    reason = status.get("reason") or (disrupted.get("reason") if disrupted.get("status") == "True" else "")
    if not reason or reason == "DeadlineExceeded" or (status.get("phase") != "Failed" and reason != "Evicted"):
        return ""
    message = status.get("message") or disrupted.get("message") or disrupted.get("reason") or "no reason given"
    node = f" from node {pod['spec']['nodeName']}" if pod["spec"].get("nodeName") else ""
    verb = "was evicted" if reason == "Evicted" else f"was ended ({reason})"
    return f"{verb}{node}: {runbook.cut(message)}"


def _find_probe_trouble(pod: Object, container: Object, events: list[Object], logs: Logs) -> Trouble | None:
    """A probe that can never succeed, or that restarts the container."""
    name, who = objects.name_of(pod), container["name"]
    uid = pod["metadata"].get("uid")
    mine = [event for event in events if (event.get("involvedObject") or {}).get("uid") == uid]
    spec = _spec_of(pod, who) or {"name": who}
    if container.get("restartCount"):
        killed = probes.killed_cause(spec, mine)
        if killed:
            return Trouble(killed, name, who, previous=True, times=10)
    if "running" in (container.get("state") or {}) and not container.get("ready"):
        cause = probes.unready_cause(spec, warnings_of(pod, mine), lambda: logs(name, who, False))
        if cause:
            return Trouble(cause, name, who, times=10)
    return None


def find_job_pod_trouble(pods: Iterable[Object]) -> Trouble | None:
    """A Job's pod that cannot complete: its work is done, but another container still runs."""
    for pod in pods:
        statuses = (pod.get("status") or {}).get("containerStatuses") or []
        ended = [one["name"] for one in statuses if "terminated" in (one.get("state") or {})]
        running = [one["name"] for one in statuses if "running" in (one.get("state") or {})]
        if ended and running:
            name = objects.name_of(pod)
            cause = f"container {', '.join(ended)} of pod {name} has ended, but {', '.join(running)} still runs"
            return Trouble(f"{cause}: the Job completes when all containers have ended", name, running[0], times=20)
    return None


def warnings_of(item: Object, events: Iterable[Object]) -> list[Object]:
    """The warning events about an object, by uid."""
    uid = item["metadata"].get("uid")
    return [
        event
        for event in events
        if event.get("type") == "Warning" and (event.get("involvedObject") or {}).get("uid") == uid
    ]


def _unschedulable(pod: Object, events: list[Object], placement: PlacementFacts) -> Trouble | None:
    scheduled = objects.condition(pod, "PodScheduled")
    if scheduled.get("status") != "False" or scheduled.get("reason") != "Unschedulable":
        return None
    uid = pod["metadata"].get("uid")
    if any(e.get("reason") == "TriggeredScaleUp" and e["involvedObject"].get("uid") == uid for e in events):
        return None  # the autoscaler is adding a node
    name, message = objects.name_of(pod), str(scheduled.get("message", ""))
    known = scheduling.explain_unschedulable(pod, placement)
    if known:
        counts = runbook.cut(message.partition(" preemption: ")[0])
        waits_for = rollout.describe_predecessor(pod, placement.pods)
        return Trouble(f"pod {name} cannot be scheduled: {known} (scheduler: {counts}){waits_for}", name, times=5)
    selector = ", ".join(f"{key}={value}" for key, value in (pod["spec"].get("nodeSelector") or {}).items())
    where = f" (node selector {selector})" if selector else ""
    return Trouble(f"pod {name} cannot be scheduled{where}: {runbook.cut(message)}", name, times=5)


def _find_container_trouble(pod: Object, container: Object, logs: Logs) -> Trouble | None:
    waiting = (container.get("state") or {}).get("waiting") or {}
    found = _explain_waiting(pod, container, waiting)
    if found:
        return found
    ended, previous = _last_end(container)
    return _explain_end(pod, container, ended, previous, logs) if ended else _find_early_end(pod, container)


def _find_early_end(pod: Object, container: Object) -> Trouble | None:
    """A server that ends without an error: its command is not a server's."""
    before = (container.get("lastState") or {}).get("terminated")
    served = any(spec["name"] == container["name"] for spec in pod["spec"]["containers"])
    restarts = container.get("restartCount", 0)
    waits = (container.get("state") or {}).get("waiting")
    if not (before and served and waits) or restarts < RESTARTS_OF_A_LOOP:
        return None
    name, who = objects.name_of(pod), container["name"]
    cause = f"container {who} ends with exit code 0 and was restarted {restarts} times: it does not keep running"
    return Trouble(cause, name, who, previous=True)


def _explain_waiting(pod: Object, container: Object, waiting: Object) -> Trouble | None:
    name, reason, message = objects.name_of(pod), waiting.get("reason", ""), waiting.get("message", "")
    who = container["name"]
    if reason == "CreateContainerConfigError":
        known = messages.describe_config_error(message)
        if known:
            return Trouble(known, name, who, times=3)
        # For example a kubelet that has not seen a new Secret in time: it tries again.
        return Trouble(f"container {who} cannot be configured: {message}", name, who, times=20)
    if reason in _PULL_FAILURES:
        image = _spec_of(pod, who).get("image", container.get("image"))
        times = _PULL_FAILURES[reason]
        return Trouble(
            f"image {image} cannot be pulled: {runbook.cut(messages.describe_pull_error(message) or reason)}",
            name,
            who,
            times=times,
        )
    if reason in ("CreateContainerError", "RunContainerError"):
        cause = runbook.cut(messages.innermost(message))
        return Trouble(f"container {who} cannot be started: {cause}", name, who, times=2)
    return None


def _last_end(container: Object) -> tuple[Object | None, bool]:
    """The container's last end that was a failure, and whether a newer instance has begun or waits to."""
    now = (container.get("state") or {}).get("terminated")
    before = (container.get("lastState") or {}).get("terminated")
    for ended, previous in ((now, False), (before, True)):
        if ended and ended.get("exitCode"):
            return ended, previous
    return None, False


def _explain_end(pod: Object, container: Object, ended: Object, previous: bool, logs: Logs) -> Trouble | None:
    name, who = objects.name_of(pod), container["name"]
    if ended.get("reason") == "OOMKilled":
        limit = _spec_of(pod, who).get("resources", {}).get("limits", {}).get("memory", "none")
        return Trouble(f"container {who} was OOM-killed (memory limit {limit})", name, who, previous)
    if ended.get("reason") in _NEVER_STARTED and ended.get("message"):
        cause = runbook.cut(messages.innermost(ended["message"]))
        return Trouble(f"container {who} cannot be started: {cause}", name, who, previous, times=2)
    # The kubelet keeps the end of a log as the message, where the container asks for it.
    lines = logs(name, who, previous) or str(ended.get("message") or "").splitlines()
    known = runbook.find_symptom(lines)
    if known:
        return Trouble(known.cause, name, who, previous, action=known.action)
    restarts = container.get("restartCount", 0)
    if restarts >= RESTARTS_OF_A_LOOP or pod["spec"].get("restartPolicy") == "Never":
        again = f" and restarted {restarts} times" if restarts else ""
        last = messages.last_error(lines)
        why = f": {last}" if last else ""
        code = ended["exitCode"]
        meaning = f" ({_EXIT_CODES[code]})" if code in _EXIT_CODES else ""
        return Trouble(f"container {who} ended with exit code {code}{meaning}{again}{why}", name, who, previous)
    return None


def _spec_of(pod: Object, container: str) -> Object:
    specs = [*(pod["spec"].get("initContainers") or []), *pod["spec"]["containers"]]
    return next((dict(spec) for spec in specs if spec["name"] == container), {})


def _find_mount_trouble(pod: Object, warnings: list[Object]) -> Trouble | None:
    """A volume that cannot be mounted; only while no container has begun."""
    states = [status.get("state") or {} for status in (pod.get("status") or {}).get("containerStatuses") or []]
    if any("waiting" not in state for state in states):
        return None
    for event in warnings:
        message = event.get("message", "")
        if event.get("reason") == "FailedCreatePodSandBox":
            cause = f"pod {objects.name_of(pod)}: its network or sandbox cannot be created: "
            return Trouble(cause + runbook.cut(messages.innermost(message)), objects.name_of(pod), times=60)
        if event.get("reason") in ("FailedMount", "FailedAttachVolume"):
            known = messages.describe_config_error(message)
            cause = known or f"a volume cannot be mounted: {runbook.cut(message)}"
            # A kubelet that has not seen a new ConfigMap in time, or a disk that is detaching: it tries again.
            return Trouble(f"pod {objects.name_of(pod)}: {cause}", objects.name_of(pod), times=10 if known else 60)
    return None

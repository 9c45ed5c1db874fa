"""The disruptions of one model's service: each makes its change, and returns when its new state is reached."""

from __future__ import annotations

import signal
import subprocess
import time
from abc import ABC, abstractmethod
from typing import ClassVar

from pytest_vllm_stage.cluster.api_errors import RequestRejected
from pytest_vllm_stage.core.skips import does_not_apply
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.resilience import processes
from pytest_vllm_stage.resilience.site import Site, has_restarted, serves
from pytest_vllm_stage.resilience.undo import Undo
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.drift import SERVING_CONTAINER
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import health, rollout

#: On the pods of the revision that a rolling restart makes.
RESTARTED = "vllm-stage/restarted-at"
_EXEC_TIMEOUT_S = 30


class Disruption(ABC):
    """A change of a stage, which `Site.undo` takes back.

    Attributes:
        name: Its name in --stage-disrupt.
        notes: What was seen, for the table.
        problems: What was wrong with the stage itself, whatever the traffic showed.
    """

    name: ClassVar[str]

    def __init__(self, site: Site) -> None:
        self.site = site
        self.notes: list[str] = []
        self.problems: list[str] = []

    def check_possible(self) -> None:  # noqa: B027 - most are possible everywhere
        """Skip the test where this cluster does not allow the disruption."""

    @abstractmethod
    def carry_out(self) -> None:
        """Make the change, and wait until the stage is in the new state.

        Raises:
            WaitFailed: the new state is not reached.
        """

    def clean_up(self) -> None:  # noqa: B027 - most leave nothing behind
        """Remove what the disruption left outside the stage, after its window was judged or it failed."""


class Rollout(Disruption):
    """A rolling restart: a new generation of the service, whose pods replace the old ones."""

    name = "rollout"

    def carry_out(self) -> None:
        """Set an annotation of the pods, and wait until only pods with it exist."""
        old = {objects.name_of(pod) for pod in self.site.pods()}
        mark = f"{time.time():.0f}"
        before = (self.site.inference_service()["spec"]["predictor"].get("annotations") or {}).get(RESTARTED)
        self.site.patch_service(_annotated(mark), _annotated(before))
        taken_s = self.site.await_pods("only pods of the new revision", lambda pods: self._is_alone(pods, mark))
        self.notes.append(f"the new revision serves alone after {taken_s:.1f} s, {len(old)} old pods are gone")

    def _is_alone(self, pods: list[Object], mark: str) -> bool:
        deployment = self.site.deployment()
        new = all((pod["metadata"].get("annotations") or {}).get(RESTARTED) == mark and serves(pod) for pod in pods)
        return bool(pods) and new and (deployment is None or rollout.rolled_out(deployment)[0])


def _annotated(mark: str | None) -> Object:
    return {"spec": {"predictor": {"annotations": {RESTARTED: mark}}}}


class PodKilled(Disruption):
    """The oldest pod is deleted, with its grace period."""

    name = "pod"

    def carry_out(self) -> None:
        """Delete it, and wait until as many pods serve as before."""
        before = self.site.ready_pods()
        victim = before[0]
        objects.delete(self.site.reader.kube, {"kind": "Pod", **victim}, self.site.reader.namespace, "Background")
        taken_s = self.site.await_pods("a replaced pod is Ready", lambda pods: _replaced(pods, victim, len(before)))
        self.notes.append(f"pod {objects.name_of(victim)} was replaced after {taken_s:.1f} s")


def _replaced(pods: list[Object], victim: Object, count: int) -> bool:
    gone = all(pod["metadata"]["uid"] != victim["metadata"]["uid"] for pod in pods)
    return gone and sum(serves(pod) for pod in pods) >= count


class EngineKilled(Disruption):
    """SIGKILL to the engine of the oldest pod, as from the kernel when memory runs out; the kubelet restarts it."""

    name = "engine"

    def carry_out(self) -> None:
        """Kill it, and wait until the container was restarted and is Ready; the restart must be noticed."""
        victim = self.site.ready_pods()[0]
        name, began_at = objects.name_of(victim), time.time()
        self._kill(victim)
        taken_s = self.site.await_pods(
            f"container {SERVING_CONTAINER} of pod {name} restarted and Ready",
            lambda pods: _is_ready([pod for pod in pods if has_restarted(pod, victim)], name),
        )
        self.notes.append(f"the engine was restarted and Ready after {taken_s:.1f} s")
        # The kubelet's times are whole seconds.
        seen = health.find_ends_since(self.site.pods(), self.site.reader.listed("Event"), began_at - 1.5)
        self.notes += seen
        if not seen:
            self.problems.append(f"the restart of pod {name} is not in its status: a check of restarts would miss it")

    def _kill(self, pod: Object) -> None:
        if self.site.reader.cluster.kind == "local":
            processes.signal_container(processes.container_id(pod), signal.SIGKILL)
            return
        # Process 1 of a container ignores SIGKILL from inside; the engine core is its child, and it ends with it.
        _exec(self.site, objects.name_of(pod), "kill -9 -1")


def _exec(site: Site, pod: str, command: str) -> None:
    """Run a shell command in a pod; its exit status says nothing, since it may kill its own shell."""
    cluster = site.reader.cluster
    place = [] if cluster.in_cluster else ["--kubeconfig", cluster.kubeconfig, "--context", cluster.context]
    subprocess.run(
        [cluster.kubectl, *place, "-n", site.reader.namespace, "exec", pod, "--", "/bin/sh", "-c", command],
        capture_output=True,
        timeout=_EXEC_TIMEOUT_S,
        check=False,
    )


class Drain(Disruption):
    """The node of the oldest pod is cordoned, and the service's pods on it are evicted; pods of others stay."""

    name = "drain"

    def carry_out(self) -> None:
        """Cordon, evict, uncordon once the pods run elsewhere or have nowhere to go, and wait until they serve."""
        before = self.site.ready_pods()
        node = str(before[0]["spec"]["nodeName"])
        self._cordon(node)
        evicted = [pod for pod in before if pod["spec"].get("nodeName") == node]
        for pod in evicted:
            self._evict(objects.name_of(pod))
        gone = {pod["metadata"]["uid"] for pod in evicted}
        self.site.await_pods("evicted pods are gone", lambda pods: not gone & {pod["metadata"]["uid"] for pod in pods})
        elsewhere = self._await_elsewhere(len(before))
        self.site.undo()
        taken_s = self.site.await_pods("Ready after the drain", lambda pods: _serve(pods) >= len(before))
        where = "on another node" if elsewhere else f"on {node} {taken_s:.1f} s after it was uncordoned"
        self.notes.append(f"{len(evicted)} pods of node {node} were evicted; as many serve again {where}")

    def _cordon(self, node: str) -> None:
        found = objects.get(self.site.reader.kube, "Node", node) or {}
        was = bool((found.get("spec") or {}).get("unschedulable"))
        self.site.record(Undo("Node", node, {"spec": {"unschedulable": was or None}}))
        objects.patch(self.site.reader.kube, "Node", node, "", {"spec": {"unschedulable": True}})

    def _evict(self, pod: str) -> None:
        """Evict a pod, as soon as its disruption budget allows it."""

        def look() -> Observation:
            try:
                objects.evict(self.site.reader.kube, self.site.reader.namespace, pod)
            except RequestRejected as error:
                if error.code != 429:
                    raise
                return Observation(False, error.message)
            return Observation(True, "evicted")

        wait_until(f"eviction of pod/{pod}", look, timeout_s=self.site.timeout_s, journal=self.site.run.journal)

    def _await_elsewhere(self, count: int) -> bool:
        """Wait for pods on other nodes; one node has no other, and holds them back for the profile's `hold_s`."""
        others = [node for node in self.site.reader.everywhere("Node") if not _unschedulable(node)]
        limit_s = self.site.timeout_s if others else self.site.table.hold_s
        until = time.monotonic() + limit_s

        def waited(pods: list[Object]) -> bool:
            return _serve(pods) >= count or time.monotonic() >= until

        self.site.await_pods("pods elsewhere, or held back", waited)
        return _serve(self.site.pods()) >= count


def _unschedulable(node: Object) -> bool:
    return bool((node.get("spec") or {}).get("unschedulable"))


def _serve(pods: list[Object]) -> int:
    return sum(serves(pod) for pod in pods)


class ReadinessLost(Disruption):
    """The engine of the oldest pod is suspended: it accepts connections and answers nothing, probes included."""

    name = "readiness"

    def check_possible(self) -> None:
        """Only the node's own processes can suspend process 1 of a container."""
        if self.site.reader.cluster.kind != "local":
            does_not_apply("suspending an engine needs the processes of its node: only a local cluster has them here")

    def carry_out(self) -> None:
        """Suspend it for the profile's time, and wait until it is Ready again."""
        victim = self.site.ready_pods()[0]
        name, container = objects.name_of(victim), processes.container_id(victim)
        self.site.record(Undo("Pod", name, {}, container))
        processes.signal_container(container, signal.SIGSTOP)
        until = time.monotonic() + self.site.table.unready_s
        lost: list[float] = []

        def over(pods: list[Object]) -> bool:
            if not lost and not any(objects.name_of(pod) == name and serves(pod) for pod in pods):
                lost.append(time.monotonic())
            return time.monotonic() >= until

        suspended_s = self.site.await_pods(f"pod {name} suspended for {self.site.table.unready_s:g} s", over)
        self.site.undo()
        taken_s = self.site.await_pods("Ready again", lambda pods: _serve(pods) >= 1 and _is_ready(pods, name))
        if lost:
            after_s = lost[0] - (until - self.site.table.unready_s)
            self.notes.append(f"not Ready after {after_s:.1f} s, Ready again {taken_s:.1f} s after it continued")
        else:
            self.problems.append(
                f"pod {name} stayed Ready while its engine was suspended for {suspended_s:.0f} s: its readiness probe "
                "does not ask the engine"
            )


def _is_ready(pods: list[Object], name: str) -> bool:
    return any(objects.name_of(pod) == name and serves(pod) for pod in pods)


class Scaled(Disruption):
    """One replica more, and back: each replica gets traffic."""

    name = "scale"

    def carry_out(self) -> None:
        """Scale up, await traffic at each replica, and scale down again."""
        predictor = self.site.inference_service()["spec"]["predictor"]
        lowest, highest = predictor.get("minReplicas"), predictor.get("maxReplicas")
        count = len(self.site.ready_pods())
        wanted = {"spec": {"predictor": {"minReplicas": count + 1, "maxReplicas": max(highest or 0, count + 1)}}}
        restore = {"spec": {"predictor": {"minReplicas": lowest, "maxReplicas": highest}}}
        self.site.patch_service(wanted, restore)
        up_s = self.site.await_pods(f"{count + 1} replicas serve", lambda pods: _serve(pods) == count + 1)
        before = self.site.served()
        self._await_traffic(before)
        self.site.undo()
        down_s = self.site.await_pods(f"{count} replicas remain", lambda pods: len(pods) == count == _serve(pods))
        self.notes.append(f"{count + 1} replicas served after {up_s:.1f} s, {count} remained after {down_s:.1f} s")

    def _await_traffic(self, before: dict[str, float | None]) -> None:
        """Wait until each replica has served requests; name those that did not within the settle time."""
        until = time.monotonic() + 2 * self.site.table.settle_s
        served: dict[str, float] = {}

        def enough(_pods: list[Object]) -> bool:
            served.update(grown(before, self.site.served()))
            return all(count > 0 for count in served.values()) or time.monotonic() >= until

        self.site.await_pods("each replica serves requests", enough)
        shown = ", ".join(f"{name} {count:g}" for name, count in sorted(served.items()))
        self.notes.append(f"requests served by each replica: {shown or 'not reported'}")
        self.problems += [f"replica {name} is Ready and served no request" for name, n in served.items() if n == 0]


def grown(before: dict[str, float | None], after: dict[str, float | None]) -> dict[str, float]:
    """Pod to the requests that it has served meanwhile; a pod that restarted counts from 0."""
    found = {}
    for name, count in after.items():
        earlier = before.get(name, 0.0)
        if count is not None and earlier is not None:
            found[name] = count - earlier if count >= earlier else count
    return found

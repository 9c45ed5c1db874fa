"""Why requests failed around a disruption: what samples and objects together say, a line per cause."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pytest_vllm_stage.measurement.samples import Sample
from pytest_vllm_stage.resilience.window import Marks, Promise, WindowVerdict
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.stage.objects import Object

#: After a pod is Ready, its address reaches the Service's rules on every node within this time.
PROPAGATION_S = 2.0
#: Disruptions in which a pod is deleted with its grace period.
ENDS_A_POD = ("rollout", "pod", "drain", "scale")


def explain(
    samples: Sequence[Sample], marks: Marks, promise: Promise, verdict: WindowVerdict, facts: Mapping[str, Any]
) -> list[str]:
    """The causes of a broken promise; empty where none is broken.

    Args:
        samples: Of the traffic.
        marks: When the disruption began and ended.
        promise: What was promised.
        verdict: What followed.
        facts: The disruption's ``name``, ``idle_pods``, which were Ready and served nothing before it, and the
            ``deployment``.
    """
    return list(_causes(samples, marks, promise, verdict, facts)) if verdict.outcome is Outcome.FAIL else []


def _causes(
    samples: Sequence[Sample], marks: Marks, promise: Promise, verdict: WindowVerdict, facts: Mapping[str, Any]
) -> Iterator[str]:
    for pod in facts.get("idle_pods") or ():
        yield f"pod {pod} was Ready before the disruption and served no request"
    late = [one for one in samples if promise.is_bad(one) and one.scheduled_s > marks.ended_s + PROPAGATION_S]
    if late and verdict.numbers.bad_before == 0:
        yield (
            f"{len(late)} requests failed or were slow later than {PROPAGATION_S:g} s after every pod was Ready, up to "
            f"{late[-1].scheduled_s - marks.ended_s:.1f} s: the readiness probe reports Ready before the engine serves"
        )
        return
    failed = [one for one in samples if one.failure and marks.began_s <= one.end_s]
    deployment: Object | None = facts.get("deployment")
    if failed and deployment is not None and facts.get("name") in ENDS_A_POD:
        yield from _explain_end_of_pod(deployment, facts["name"], len(failed))


def _explain_end_of_pod(deployment: Object, name: str, failed: int) -> Iterator[str]:
    """What the Deployment declares that makes requests fail when a pod ends."""
    spec = deployment["spec"]
    if name == "rollout" and (spec.get("strategy") or {}).get("type") == "Recreate":
        yield f"strategy Recreate ends every old pod before a new one starts: {failed} requests found none"
        return
    if name in ("pod", "drain") and spec.get("replicas", 1) < 2:
        yield f"the service has one replica: no other pod serves while it is replaced ({failed} requests failed)"
        return
    without = [
        container["name"]
        for container in spec["template"]["spec"]["containers"]
        if not ((container.get("lifecycle") or {}).get("preStop"))
    ]
    if without:
        yield (
            f"container {', '.join(without)} has no preStop hook: a pod that ends stops its engine before every node "
            f"has left it out of the Service, and cuts the answers in progress ({failed} requests failed)"
        )

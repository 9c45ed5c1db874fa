"""Autoscalers of a model that do not work, so that its declared range of replicas is not available: pure functions."""

from __future__ import annotations

import datetime
from collections.abc import Iterable

from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import runbook

#: A new autoscaler has no metrics for a minute or two.
SETTLED = datetime.timedelta(minutes=10)


def check_autoscalers(scalers: Iterable[Object], model: str, now: datetime.datetime) -> list[str]:
    """Report the autoscalers of a model's Deployment that can change nothing; one without a range need not.

    Args:
        scalers: HorizontalPodAutoscalers and ScaledObjects of the namespace.
        model: The InferenceService's name.
        now: The time now.
    """
    lines = []
    for item in scalers:
        spec, conditions = item.get("spec") or {}, (item.get("status") or {}).get("conditions") or []
        least = spec.get("minReplicas", spec.get("minReplicaCount", 1))
        most = spec.get("maxReplicas", spec.get("maxReplicaCount", 1))
        if (spec.get("scaleTargetRef") or {}).get("name") != f"{model}-predictor" or most <= least:
            continue
        failed = [
            f"{entry.get('reason')}: {runbook.cut(str(entry.get('message', '')))}"
            for entry in conditions
            if entry.get("type") in ("AbleToScale", "ScalingActive", "Ready")
            and entry.get("status") == "False"
            and entry.get("reason") != "ScalingDisabled"
            and _is_settled(entry, now)
        ]
        if failed:
            where = objects.reference(item)
            lines.append(f"{where} cannot scale {model}-predictor between {least} and {most} replicas: {failed[0]}")
    return lines


def _is_settled(entry: Object, now: datetime.datetime) -> bool:
    """Whether a condition has lasted; KEDA's have no time."""
    since = entry.get("lastTransitionTime")
    return since is None or now - datetime.datetime.fromisoformat(str(since)) > SETTLED

"""Whether an existing benchmark Job measured what is declared, and what runs now: pure functions over objects."""

from __future__ import annotations

from collections.abc import Sequence

from pytest_vllm_stage.benchmark import job_runs
from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.objects import Object

#: Variables of a Job that a run sets when it holds it.
_SET_BY_RUNS = ("HOLD_OBJECT", "HOLD_TIMEOUT_S")


def find_other_settings(live: Object, declared: Object) -> list[str]:
    """The settings in which a Job's measurement is not the declared one."""
    there, wanted = job_runs.settings_of(live), job_runs.settings_of(declared)
    return [
        f"job/{objects.name_of(live)} measured with {name}={there.get(name, '(none)')}, declared is "
        f"{wanted.get(name, '(none)')}"
        for name in sorted({*there, *wanted} - set(_SET_BY_RUNS))
        if (there.get(name) or "") != (wanted.get(name) or "")  # the API server drops an empty value
    ]


def find_newer_engine(job: Object, replica_sets: Sequence[Object]) -> list[str]:
    """What changed of the engine since a Job began; a restart alone changes nothing.

    Args:
        job: The Job.
        replica_sets: Those of the model's Deployments; older ones are kept for a while.
    """
    began = str((job.get("status") or {}).get("startTime") or "")
    ordered = sorted(replica_sets, key=_created_at)
    running = [one for one in ordered if one["spec"].get("replicas")] or ordered
    if not began or not running or _created_at(running[-1]) <= began:
        return []
    newest = running[-1]
    before = [one for one in ordered if _created_at(one) <= began]
    since = f"job/{objects.name_of(job)} measured at {began}, and {objects.name_of(newest)} runs since"
    if not before:
        return [f"{since} {_created_at(newest)}: its reports are of an engine that no longer exists"]
    changed = _find_changes(before[-1], newest)
    return [f"{since} {_created_at(newest)}: {'; '.join(changed)}"] if changed else []


def _created_at(item: Object) -> str:
    return str(item["metadata"].get("creationTimestamp") or "")


def _find_changes(old: Object, new: Object) -> list[str]:
    """The fields of the serving container that decide on its speed."""
    one, other = (drift.serving_container(item["spec"]["template"]["spec"]) for item in (old, new))
    return [
        f"its {field} changed"
        for field in ("image", "command", "args", "env", "resources")
        if one.get(field) != other.get(field)
    ]

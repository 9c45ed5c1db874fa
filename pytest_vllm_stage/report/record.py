"""``run.json``: the journal of a run as one record. Every other report is made from it."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest_vllm_stage
from pytest_vllm_stage.core.files import write_atomically
from pytest_vllm_stage.core.journal import read_events
from pytest_vllm_stage.core.processor import NO_AVX512_NOTICE
from pytest_vllm_stage.settings.config import DUMMY_WEIGHTS_NOTICE, SIMULATED_NOTICE, StageConfig

#: Incremented when a field changes its meaning or is removed, not when one is added.
SCHEMA_VERSION = 1

STEP_PREFIX = "step: "


def build(journal_path: Path, config: StageConfig | None = None) -> dict[str, Any]:
    """The record of a run.

    Args:
        journal_path: The run's journal.
        config: The run's settings; with None, as for a killed run, those of the journal's first event.

    Returns:
        A JSON-able dict: ``schema_version``, ``run_id``, times in seconds since the epoch, ``simulated`` (a simulated
        engine answered: nothing in it may be published as a model's), ``dummy_weights`` (the served models with random
        weights), ``no_avx512`` (the local engine runs on a processor that vLLM has no 4-bit kernel for), ``settings``
        with sources, ``versions``, ``steps`` (name to seconds), ``phases``, ``waits``, ``tests``, ``swept``,
        ``restarts`` (of model servers while the run went on), ``leftovers``, ``kept``, ``errors``, ``exit_status``,
        ``addresses`` (of each server: the way to it, and why no better one), ``benchmarks`` (one per load step),
        ``load_access`` (which tests ran during each), ``regressions`` (one comparison per load step), ``capacities``,
        ``disruptions`` (one per disruption of --stage-disrupt, with its verdict), ``authorities`` (the certificates
        that the cluster publishes, and where they were read; None unless they were asked for), ``tokens`` (whose tokens
        were requested, without them), ``publications`` (a model's published results each).
    """
    events = read_events(journal_path)
    described = (
        config.to_json() if config else {key: events[0].get(key, {}) for key in ("settings", "profile", "cluster_kind")}
    )
    phases = [_without_kind(event) for event in events if event["kind"] == "phase"]
    end = _last(events, "end")
    return {
        "schema_version": SCHEMA_VERSION,
        "run_id": events[0]["name"],
        "started_at": events[0]["at"],
        "ended_at": end.get("at"),
        "exit_status": end.get("exit_status"),
        "simulated": (config is not None and config.simulated) or any(event["kind"] == "simulated" for event in events),
        "dummy_weights": sorted({event["name"] for event in events if event["kind"] == "dummy_weights"}),
        "no_avx512": any(event["kind"] == "no_avx512" for event in events),
        **described,
        "versions": _versions(events),
        "steps": {
            phase["name"].removeprefix(STEP_PREFIX): phase["duration_s"]
            for phase in phases
            if phase["name"].startswith(STEP_PREFIX)
        },
        "phases": phases,
        "waits": [_without_kind(event) for event in events if event["kind"] == "wait"],
        "tests": [_without_kind(event) for event in events if event["kind"] == "test"],
        "swept": [event["name"] for event in events if event["kind"] == "swept"],
        "restarts": [event["name"] for event in events if event["kind"] == "restart"],
        "leftovers": [event["name"] for event in events if event["kind"] == "leftover"],
        "kept": _last(events, "kept") or None,
        "reused": _last(events, "reused").get("name"),
        "errors": [_without_kind(event) for event in events if event["kind"] == "error"],
        "addresses": list(
            {event["name"]: _without_kind(event) for event in events if event["kind"] == "address"}.values()
        ),
        "benchmarks": _latest(events, "benchmark"),
        "load_access": _load_access(events),
        "regressions": [_without_kind(event) for event in events if event["kind"] == "regression"],
        "capacities": [_without_kind(event) for event in events if event["kind"] == "capacity"],
        "authorities": _last(events, "authorities") or None,
        "tokens": [_without_kind(event) for event in events if event["kind"] == "token"],
        "disruptions": [_without_kind(event) for event in events if event["kind"] == "disruption"],
        "publications": [_without_kind(event) for event in events if event["kind"] == "published"],
    }


def notices(record: Mapping[str, Any]) -> tuple[tuple[str, str], ...]:
    """Label and text of what must be said with every number of a run: a stand-in answered, or weights were random."""
    found = [("SIMULATED", SIMULATED_NOTICE)] if record.get("simulated") else []
    if dummies := record.get("dummy_weights"):
        found.append(("DUMMY", f"{', '.join(map(str, dummies))}: {DUMMY_WEIGHTS_NOTICE}"))
    if record.get("no_avx512"):
        found.append(("STAND-IN", NO_AVX512_NOTICE))
    return tuple(found)


def _latest(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    """The events of a kind in the order of their names' first one; a later event of a name replaces an earlier one."""
    return list({event["name"]: _without_kind(event) for event in events if event["kind"] == kind}.values())


def _load_access(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Each exclusive access of a load test, and the other tests that ran during it: there must be none.

    Load tests of different simulated models may run side by side; these accesses have a role.
    """
    accesses = [_without_kind(event) for event in events if event["kind"] == "access"]
    return [
        access
        | {
            "concurrent": [
                other["name"]
                for other in accesses
                if other is not access
                and other["began_at"] < access["ended_at"]
                and access["began_at"] < other["ended_at"]
                and not _of_other_models(access, other)
            ]
        }
        for access in accesses
        if access["exclusive"]
    ]


def _of_other_models(access: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    roles = access.get("role"), other.get("role")
    return all(roles) and roles[0] != roles[1]


def _versions(events: list[dict[str, Any]]) -> dict[str, str]:
    found = {"python": platform.python_version(), "pytest_vllm_stage": pytest_vllm_stage.__version__}
    for event in events:
        if event["kind"] == "versions":
            found |= {key: value for key, value in event.items() if key not in ("at", "pid", "kind", "name")}
    return found


def _last(events: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    return next((event for event in reversed(events) if event["kind"] == kind), {})


def _without_kind(event: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != "kind"}


def write(data: dict[str, Any], path: Path) -> None:
    """Write the record atomically."""
    write_atomically(path, json.dumps(data, indent=1, sort_keys=False) + "\n")


def counts(data: dict[str, Any]) -> dict[str, int]:
    """Outcome to number of tests; a test that passed and then failed in teardown counts only as an error."""
    worst: dict[str, str] = {}
    rank = {"passed": 0, "skipped": 1, "failed": 2, "error": 3}
    for test in data["tests"]:
        before = worst.get(test["name"], "passed")
        worst[test["name"]] = max(before, test["outcome"], key=lambda outcome: rank[outcome])
    return {outcome: n for outcome in rank if (n := sum(1 for value in worst.values() if value == outcome))}

"""Stages that outlive their run: a note for each beside the cache, so that a later run attaches or a person removes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.paths import cache_dir
from pytest_vllm_stage.stage.facts import StageFacts


@dataclass(frozen=True)
class Kept:
    """A kept stage.

    Attributes:
        run_id: The run that made it.
        cluster: Where it runs.
        stage: What it is.
        fingerprint: Field to value of what was deployed.
    """

    run_id: str
    cluster: ClusterFacts
    stage: StageFacts
    fingerprint: Mapping[str, str]


def _folder() -> Path:
    return cache_dir() / "kept"


def note(kept: Kept) -> Path:
    """Write the note; return its path."""
    _folder().mkdir(parents=True, exist_ok=True)
    path = _folder() / f"{kept.run_id}.json"
    data = {
        "run_id": kept.run_id,
        "cluster": json.loads(kept.cluster.to_json()),
        "stage": json.loads(kept.stage.to_json()),
        "fingerprint": dict(kept.fingerprint),
    }
    path.write_text(json.dumps(data), encoding="utf-8")
    return path


def find(run_id: str) -> Kept:
    """The kept stage of a run, or the newest for ``latest``.

    Raises:
        ConfigError: nothing of that name is kept; the message names what is.
    """
    notes = sorted(_folder().glob("*.json"))
    for path in reversed(notes):
        if run_id in ("latest", path.stem):
            data = json.loads(path.read_text(encoding="utf-8"))
            cluster = ClusterFacts.from_json(json.dumps(data["cluster"]))
            stage = StageFacts.from_json(json.dumps(data["stage"]))
            return Kept(data["run_id"], cluster, stage, data["fingerprint"])
    names = ", ".join(path.stem for path in notes) or "none"
    raise ConfigError(
        f"--stage-reuse={run_id}: no such kept stage; kept: {names}",
        hint="keep one: pytest suites/ --stage-keep=always",
    )


def forget_ended(state_dirs: set[str]) -> None:
    """Drop the notes of local clusters that are no longer there.

    Args:
        state_dirs: The state directories of the local clusters that run.
    """
    for path in _folder().glob("*.json"):
        state_dir = json.loads(path.read_text(encoding="utf-8"))["cluster"]["state_dir"]
        if state_dir and state_dir not in state_dirs:
            path.unlink()


def removal_command(kept: Kept) -> str:
    """What a person runs to remove it."""
    if kept.cluster.state_dir:
        return f"python -m pytest_vllm_stage.cluster.local stop {Path(kept.cluster.state_dir).name}"
    return (
        f"kubectl --context {kept.cluster.context} delete namespace {kept.stage.namespace} # made by run {kept.run_id}"
    )


def differences(before: Mapping[str, str], now: Mapping[str, str], *, most: int = 12) -> list[str]:
    """The fields in which two fingerprints differ, one line each, ``most`` at most."""
    lines = [
        f"{key}: kept {before.get(key, '(absent)')}, wanted {now.get(key, '(absent)')}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    return lines if len(lines) <= most else [*lines[:most], f"... and {len(lines) - most} more"]

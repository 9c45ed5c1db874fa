"""Stages that outlive their run: a note for each in the cache, so that a later run reuses it or a person removes it."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.json_text import parse_json
from pytest_vllm_stage.core.paths import cache_dir
from pytest_vllm_stage.settings.config import StageConfig
from pytest_vllm_stage.settings.options import BY_NAME
from pytest_vllm_stage.stage.facts import StageFacts

#: Options that decide which stage a run expects; a command that reuses one repeats those that were given.
_STAGE_OPTIONS = ("profile", "engine", "namespace")


@dataclass(frozen=True)
class Kept:
    """A kept stage.

    Attributes:
        run_id: The run that created it.
        cluster: Where it runs.
        stage: The stage; without targets where its deployment failed.
        fingerprint: Field to value of the deployed configuration.
    """

    run_id: str
    cluster: ClusterFacts
    stage: StageFacts
    fingerprint: Mapping[str, str]

    @property
    def reusable(self) -> bool:
        """Whether its deployment succeeded; otherwise it can only be inspected and removed."""
        return bool(self.stage.targets)


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


def _load(path: Path) -> Kept | None:
    """The note's content; None where another version of this package wrote it."""
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
        stage = StageFacts.from_json(json.dumps(data["stage"]))
        cluster = ClusterFacts.from_json(json.dumps(data["cluster"]))
        return Kept(data["run_id"], cluster, stage, data["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _state_dir(path: Path) -> str | None:
    """The folder of the note's cluster, empty for one that no run created; None where the note does not say it."""
    try:
        return str(parse_json(path.read_text(encoding="utf-8"))["cluster"]["state_dir"] or "")
    except (OSError, ValueError, KeyError, TypeError):
        return None


def find(run_id: str) -> Kept:
    """The kept stage of a run, or for ``latest`` the newest reusable one; forgets clusters that have ended.

    Raises:
        ConfigError: there is no such kept stage, or its deployment failed; the message names the kept ones.
    """
    forget_ended()
    notes = {path.stem: kept for path in sorted(_folder().glob("*.json")) if (kept := _load(path)) is not None}
    usable = [name for name, kept in notes.items() if kept.reusable]
    if run_id == "latest" and usable:
        return notes[usable[-1]]
    if run_id in usable:
        return notes[run_id]
    if run_id in notes:
        raise ConfigError(
            f"--stage-reuse={run_id}: the deployment of that run failed, and is kept to be looked at only",
            hint=f"remove it: {removal_command(notes[run_id])}",
        )
    raise ConfigError(
        f"--stage-reuse={run_id}: no such kept stage; kept: {', '.join(usable) or 'none'}",
        hint="keep one: pytest suites/ --stage-keep=always",
    )


def forget_ended() -> None:
    """Delete the notes of created clusters that have ended, and notes that name no cluster.

    A note of another version stays while its cluster runs: that version still needs it.
    """
    paths = [path for path in _folder().glob("*.json") if path.is_file()]
    if not paths:
        return
    from pytest_vllm_stage.cluster import kind, local

    living = {record.state_dir for record in local.running()} | {str(record.path) for record in kind.running()}
    for path in paths:
        state_dir = _state_dir(path)
        if state_dir is None or (state_dir and state_dir not in living):
            path.unlink(missing_ok=True)


def reuse_options(config: StageConfig, run_id: str) -> str:
    """The options with which a later run reuses the stage."""
    given = [(name, config.settings[name]) for name in _STAGE_OPTIONS]
    options = [
        f"{BY_NAME[name].cli}={setting.value}"
        for name, setting in given
        if setting.value and setting.source != "default"
    ]
    return shlex.join([f"--stage-reuse={run_id}", *options])


def removal_command(kept: Kept) -> str:
    """The command that removes it, from any folder and without an activated environment."""
    if kept.cluster.state_dir:
        cluster_id = Path(kept.cluster.state_dir).name
        return shlex.join([sys.executable, "-m", f"pytest_vllm_stage.cluster.{kept.cluster.kind}", "stop", cluster_id])
    return shlex.join([*_kubectl(kept.cluster), "delete", "namespace", kept.stage.namespace])


def inspection_command(kept: Kept) -> str:
    """The command that shows its pods and events."""
    return shlex.join([*_kubectl(kept.cluster), "-n", kept.stage.namespace, "get", "pods,events"])


def _kubectl(cluster: ClusterFacts) -> list[str]:
    if cluster.in_cluster:
        return [cluster.kubectl]
    return [cluster.kubectl, "--kubeconfig", cluster.kubeconfig, "--context", cluster.context]


def differences(before: Mapping[str, str], now: Mapping[str, str], *, most: int = 12) -> list[str]:
    """The fields in which two fingerprints differ, one line each, at most ``most``."""
    lines = [
        f"{key}: kept {before.get(key, '(absent)')}, wanted {now.get(key, '(absent)')}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]
    return lines if len(lines) <= most else [*lines[:most], f"... and {len(lines) - most} more"]

"""Baselines: what earlier runs measured, one JSON line a run and step, only ever appended.

Two runs are comparable when their keys are equal; comparing others is refused, and the fields that differ are named.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.files import read_text

#: Raised when a field changes its meaning or goes; adding one does not raise it.
SCHEMA_VERSION = 1
#: What makes runs comparable; every key has exactly these fields, and an unknown value is the empty text.
KEY_FIELDS = (
    "model",
    "image_digest",
    "vllm_arguments",
    "gpu",
    "step",
    "prompt_set",
    "driver",
    "driver_version",
)


@dataclass(frozen=True)
class Baseline:
    """One run's numbers of one step.

    Attributes:
        run_id: The run.
        at: When, in seconds since the epoch.
        key: What makes runs comparable; see `KEY_FIELDS`.
        metrics: Metric name to value.
        state: What the gate said of the run.
        accepted: It may be compared against: neither a regression nor invalid.
    """

    run_id: str
    at: float
    key: Mapping[str, str]
    metrics: Mapping[str, float]
    state: str
    accepted: bool


def make_key(**values: str) -> dict[str, str]:
    """A key with exactly `KEY_FIELDS`.

    Raises:
        ConfigError: naming fields that are missing or unknown.
    """
    wrong = sorted(set(KEY_FIELDS) ^ set(values))
    if wrong:
        raise ConfigError(f"a baseline's key has the fields {', '.join(KEY_FIELDS)}; missing or unknown: {wrong}")
    return {name: values[name] for name in KEY_FIELDS}


def append_baseline(path: Path, baseline: Baseline) -> None:
    """Append one line, in one write, so that runs side by side never mix theirs."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(baseline)}, allow_nan=False, sort_keys=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def read_baselines(path: Path) -> list[Baseline]:
    """Every line in the order written; none where there is no file.

    Raises:
        ConfigError: naming file, line and field.
    """
    if not path.exists():
        return []
    lines = read_text(path, "baselines").split("\n")
    return [_baseline(line, f"{path}:{number}") for number, line in enumerate(lines, start=1) if line.strip()]


def _baseline(line: str, where: str) -> Baseline:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(f"{where}: schema_version: must be {SCHEMA_VERSION}")
    _check(data, where)
    return Baseline(
        run_id=data["run_id"],
        at=float(data["at"]),
        key=make_key(**data["key"]),
        metrics=data["metrics"],
        state=data["state"],
        accepted=data["accepted"],
    )


def _check(data: Mapping[str, Any], where: str) -> None:
    kinds = {"run_id": str, "at": int | float, "key": dict, "metrics": dict, "state": str, "accepted": bool}
    for name, kind in kinds.items():
        value = data.get(name)
        if not isinstance(value, kind) or (name == "at" and isinstance(value, bool)):
            raise ConfigError(f"{where}: {name}: must be {getattr(kind, '__name__', kind)}, not {value!r}")
    for name, value in data["metrics"].items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{where}: metrics.{name}: must be a number, not {value!r}")
    for name, value in data["key"].items():
        if not isinstance(value, str):
            raise ConfigError(f"{where}: key.{name}: must be a text, not {value!r}")


def differing(one: Mapping[str, str], other: Mapping[str, str]) -> dict[str, tuple[str, str]]:
    """The fields of two keys that differ, with both values."""
    return {name: (one[name], other[name]) for name in KEY_FIELDS if one[name] != other[name]}


def check_comparable(one: Mapping[str, str], other: Mapping[str, str]) -> None:
    """Return when two keys are equal.

    Raises:
        ConfigError: naming each field that differs, with both values.
    """
    differences = differing(one, other)
    if differences:
        fields = "; ".join(f"{name}: {a!r} and {b!r}" for name, (a, b) in differences.items())
        raise ConfigError(f"these runs are not comparable, they differ in {fields}")


def comparable(baselines: Sequence[Baseline], key: Mapping[str, str]) -> list[Baseline]:
    """The accepted ones with an equal key, oldest first."""
    return [baseline for baseline in baselines if baseline.accepted and not differing(baseline.key, key)]


def why_none(baselines: Sequence[Baseline], key: Mapping[str, str]) -> str:
    """Why there is nothing to compare with: which fields keep the nearest accepted run out."""
    accepted = [baseline for baseline in baselines if baseline.accepted]
    if not accepted:
        return "no run of this step was accepted yet"
    nearest = min(reversed(accepted), key=lambda baseline: len(differing(baseline.key, key)))
    fields = ", ".join(f"{name} was {old or 'unknown'!r}" for name, (_, old) in differing(key, nearest.key).items())
    return f"no accepted run is comparable; in the nearest, {nearest.run_id}, {fields or 'nothing differs'}"

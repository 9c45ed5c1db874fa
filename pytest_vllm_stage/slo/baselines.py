"""Baselines: what earlier runs measured, one JSON line per run and step; lines are only appended.

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
from pytest_vllm_stage.core.files import is_missing, read_text
from pytest_vllm_stage.core.json_text import parse_json

#: Incremented when a field changes its meaning or is removed, not when one is added.
SCHEMA_VERSION = 1
#: No metric is larger; beyond it a number is damaged, and may overflow what is computed from it.
_LARGEST = 1e15
#: What makes runs comparable; every key has exactly these fields, and an unknown value is the empty string.
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
        state: The gate's state of the run.
        accepted: Later runs may be compared with it: it is neither a regression nor invalid.
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
    """Append one line in one write, so that lines of concurrent runs are never mixed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    line = json.dumps({"schema_version": SCHEMA_VERSION, **asdict(baseline)}, allow_nan=False, sort_keys=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    try:
        os.write(descriptor, line.encode() + b"\n")
    finally:
        os.close(descriptor)


def read_baselines(path: Path) -> list[Baseline]:
    """All lines in the order written; an empty list where the file does not exist.

    Raises:
        ConfigError: naming file, line and field.
    """
    if is_missing(path):
        return []
    text = read_text(path, "baselines")
    known = _parsed.get(path)
    if known is None or not text.startswith(known.text):
        known = _ParsedText("", 0, ())
    rest = text[len(known.text) :].split("\n")
    added = [_baseline(line, f"{path}:{number}") for number, line in enumerate(rest, known.lines + 1) if line.strip()]
    found = (*known.baselines, *added)
    if text.endswith("\n"):  # a line without its end may still be written
        _parsed[path] = _ParsedText(text, known.lines + len(rest) - 1, found)
    return list(found)


@dataclass(frozen=True)
class _ParsedText:
    """What was read of a file before: a run reads it for each of its steps, and only appends to it."""

    text: str
    lines: int
    baselines: tuple[Baseline, ...]


_parsed: dict[Path, _ParsedText] = {}


def _baseline(line: str, where: str) -> Baseline:
    try:
        data = parse_json(line)
    except ValueError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from None
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        raise ConfigError(f"{where}: schema_version: expected {SCHEMA_VERSION}, got {version!r}")
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
            raise ConfigError(f"{where}: {name}: expected {getattr(kind, '__name__', kind)}, got {value!r}")
    numbers = {"at": data["at"]} | {f"metrics.{name}": value for name, value in data["metrics"].items()}
    for name, value in numbers.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ConfigError(f"{where}: {name}: expected a number, got {value!r}")
        if not 0 <= value <= _LARGEST:
            raise ConfigError(f"{where}: {name}: expected a number from 0 to {_LARGEST:g}, got {value!r:.20}")
    for name, value in data["key"].items():
        if not isinstance(value, str):
            raise ConfigError(f"{where}: key.{name}: expected a string, got {value!r}")
    if wrong := sorted(set(KEY_FIELDS) ^ set(data["key"])):
        raise ConfigError(f"{where}: key: missing or unknown: {', '.join(wrong)}; its fields: {', '.join(KEY_FIELDS)}")


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
    """Why there is nothing to compare with: the fields in which the nearest accepted run differs."""
    accepted = [baseline for baseline in baselines if baseline.accepted]
    if not accepted:
        return "no run of this step has been accepted yet"
    nearest = min(reversed(accepted), key=lambda baseline: len(differing(baseline.key, key)))
    fields = ", ".join(f"{name} was {old or 'unknown'!r}" for name, (_, old) in differing(key, nearest.key).items())
    return f"no accepted run is comparable; in the nearest, {nearest.run_id}, {fields or 'nothing differs'}"

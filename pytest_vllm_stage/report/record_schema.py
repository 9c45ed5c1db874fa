"""Checks that a record is one that this version reads, before anything is made of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import NoneType
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.report import record

Kind = type | tuple[type, ...]
_NUMBER: Kind = (int, float)
_FIELDS: Mapping[str, Kind] = {
    "run_id": str,
    "started_at": _NUMBER,
    "settings": dict,
    "profile": dict,
    "versions": dict,
    "tests": list,
    "phases": list,
    "waits": list,
    "benchmarks": list,
}
#: Lists that an earlier version did not write.
_LATER_LISTS = (
    "addresses",
    "regressions",
    "capacities",
    "disruptions",
    "publications",
    "restarts",
    "leftovers",
    "errors",
    "swept",
)
#: List to the fields that each of its entries has.
_ENTRIES: Mapping[str, Mapping[str, Kind]] = {
    "tests": {"name": str, "outcome": str, "reason": str},
    "phases": {"name": str, "at": _NUMBER},
    "waits": {"name": str, "at": _NUMBER},
    "benchmarks": {"name": str},
    "regressions": {"name": str},
    "capacities": {},
    "disruptions": {
        "name": str,
        "role": str,
        "disruption": str,
        "outcome": str,
        "why": str,
        "notes": list,
        "problems": list,
        "marks": dict,
        "promise": dict,
        "window": dict,
    },
    "publications": {},
}
#: Fields that an earlier version did not write, or that are null before the run's end.
_OPTIONAL: Mapping[str, Kind] = {
    "ended_at": _NUMBER,
    "exit_status": int,
    "simulated": bool,
    "dummy_weights": list,
    "no_avx512": bool,
}
#: List to the fields that its entries may have.
_OPTIONAL_OF_ENTRIES: Mapping[str, Mapping[str, Kind]] = {
    "tests": {"when": str, "start": _NUMBER, "duration_s": _NUMBER, "proves": str, "properties": dict},
    "phases": {"duration_s": _NUMBER},
    "waits": {"duration_s": _NUMBER},
}
#: The year 2100, in seconds since the epoch.
_LATEST = 4102444800
#: Parts of a disruption to their fields.
_DISRUPTION_PARTS: Mapping[str, Mapping[str, Kind]] = {
    "window": {
        "requests": int,
        "failed": int,
        "recovery_s": (int, float, NoneType),
        "ttft_p99_ms": (int, float, NoneType),
    },
    "marks": {"began_s": _NUMBER, "ended_s": _NUMBER},
}
_OUTCOMES = ("passed", "failed", "error", "skipped")


def check_record(data: Any, path: Path) -> None:
    """Check a record, and give it the lists that an earlier version did not write.

    Args:
        data: The record.
        path: Where it is from, for the message.

    Raises:
        ConfigError: it is not the record of a run, or of a later version, or a field is not as this version reads it.
    """
    if not isinstance(data, dict) or "schema_version" not in data or "run_id" not in data:
        raise ConfigError(f"{path}: not the record of a run: expected the fields schema_version and run_id")
    _check_version(data, path)
    for name in _LATER_LISTS:
        data.setdefault(name, [])
    _check_fields(data, _FIELDS, f"{path}: ")
    _check_fields(data, dict.fromkeys(_LATER_LISTS, list), f"{path}: ")
    _check_fields(data, {field: kind for field, kind in _OPTIONAL.items() if data.get(field) is not None}, f"{path}: ")
    for name in ("started_at", "ended_at"):
        if not 0 <= (data.get(name) or 0) <= _LATEST:
            raise ConfigError(f"{path}: {name}: expected seconds since the epoch, got {str(data[name])[:40]!r}")
    _check_entries(data, path)
    for name, setting in data["settings"].items():
        _check_fields(setting, {"value": object, "source": str}, f"{path}: settings.{name}: ")
    for place, test in enumerate(data["tests"]):
        if test["outcome"] not in _OUTCOMES:
            expected = ", ".join(_OUTCOMES)
            raise ConfigError(f"{path}: tests[{place}]: outcome: expected one of {expected}, got {test['outcome']!r}")


def _check_entries(data: Mapping[str, Any], path: Path) -> None:
    for name, fields in _ENTRIES.items():
        for place, entry in enumerate(data[name]):
            _check_fields(entry, fields, f"{path}: {name}[{place}]: ")
            optional = _OPTIONAL_OF_ENTRIES.get(name, {})
            given = {field: kind for field, kind in optional.items() if field in entry}
            _check_fields(entry, given, f"{path}: {name}[{place}]: ")
    for place, entry in enumerate(data["disruptions"]):
        _check_disruption(entry, f"{path}: disruptions[{place}]: ")


def _check_disruption(entry: Mapping[str, Any], where: str) -> None:
    for name, fields in _DISRUPTION_PARTS.items():
        _check_fields(entry[name], fields, f"{where}{name}: ")
    for name in ("notes", "problems"):
        for place, text in enumerate(entry[name]):
            if not isinstance(text, str):
                raise ConfigError(f"{where}{name}[{place}]: expected str, got {type(text).__name__}")


def _check_version(data: Mapping[str, Any], path: Path) -> None:
    version, known = data["schema_version"], record.SCHEMA_VERSION
    if isinstance(version, int) and not isinstance(version, bool) and version <= known:
        return
    versions = data.get("versions")
    writer = versions.get("pytest_vllm_stage") if isinstance(versions, dict) else None
    raise ConfigError(
        f"{path}: expected schema_version {known} or lower, got {version!r}",
        hint=f"make the report with the version that wrote it: pytest_vllm_stage {writer or '(not recorded)'}",
    )


def _check_fields(data: Any, fields: Mapping[str, Kind], where: str) -> None:
    if not isinstance(data, dict):
        raise ConfigError(f"{where}expected an object, got {type(data).__name__}")
    for name, kind in fields.items():
        if name not in data:
            raise ConfigError(f"{where}expected the field {name}, which is missing")
        if not isinstance(data[name], kind):
            raise ConfigError(f"{where}{name}: expected {_name_kind(kind)}, got {type(data[name]).__name__}")


def _name_kind(kind: Kind) -> str:
    return " or ".join(one.__name__ for one in (kind if isinstance(kind, tuple) else (kind,)))

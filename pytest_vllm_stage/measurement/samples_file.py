"""Samples on disk: gzipped JSON lines, schema-versioned, and refused by file, line and field where they are wrong."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.files import atomic_draft, decode_text
from pytest_vllm_stage.core.json_text import parse_json
from pytest_vllm_stage.measurement.plausibility import find_impossible
from pytest_vllm_stage.measurement.samples import (
    ABANDONED,
    FAILURES,
    ClientFacts,
    EarlyStop,
    Failure,
    GpuReading,
    Measurement,
    Sample,
    ServerReading,
)
from pytest_vllm_stage.measurement.step import LoadStep, step_from_json
from pytest_vllm_stage.settings.config import SAMPLES

#: Raised when a field changes its meaning or goes; adding one does not raise it. Files from before the step had a role
#: are still read: `step_from_json` takes it from the id, which ends with the load that other fields name, and refuses
#: an id that does not.
SCHEMA_VERSION = 1
SCHEMA = "vllm-stage/samples"
SUFFIX = SAMPLES
_KINDS = (*FAILURES, ABANDONED)
#: No time, count or size comes near it; larger numbers overflow what is computed from them.
_LARGEST = 1e18


def write_measurement(measurement: Measurement, path: Path) -> None:
    """Write the file, whole or not at all; the same measurement gives the same bytes."""
    with (
        atomic_draft(path) as draft,
        draft.open("wb") as raw,
        gzip.GzipFile("", "wb", mtime=0, fileobj=raw) as packed,
        io.TextIOWrapper(packed, encoding="utf-8") as text,
    ):
        for line in _lines(measurement):
            text.write(json.dumps(line, separators=(",", ":"), allow_nan=False) + "\n")


def _lines(measurement: Measurement) -> Iterator[dict[str, Any]]:
    yield {"kind": "header", "schema": SCHEMA, "schema_version": SCHEMA_VERSION, **measurement.header()}
    for sample in measurement.samples:
        yield {"kind": "sample", **_rounded(asdict(sample))}
    for reading in measurement.server:
        yield {"kind": "server", **_server_row(reading)}
    yield {"kind": "end", "samples": len(measurement.samples), "server": len(measurement.server)}


def _server_row(reading: ServerReading) -> dict[str, Any]:
    row = _rounded(asdict(reading))
    if not row["gpus"]:
        del row["gpus"]
    return row


def _rounded(row: dict[str, Any]) -> dict[str, Any]:
    """Microseconds suffice, and halve the file."""
    for key, value in row.items():
        if isinstance(value, float):
            row[key] = round(value, 6)
    if "token_times_s" in row:
        row["token_times_s"] = [round(value, 6) for value in row["token_times_s"]]
    return row


def as_saved(measurement: Measurement) -> Measurement:
    """The measurement as its file gives it back, so that numbers derived before and after are the same."""
    return replace(
        measurement,
        samples=tuple(Sample(**_as_read(asdict(sample))) for sample in measurement.samples),
        server=tuple(replace(reading, **_rounded(_plain_numbers(reading))) for reading in measurement.server),
    )


def _plain_numbers(reading: ServerReading) -> dict[str, Any]:
    return {name: value for name, value in asdict(reading).items() if name != "gpus"}


def _as_read(row: dict[str, Any]) -> dict[str, Any]:
    failure = row["failure"]
    row = _rounded(row)
    return row | {"token_times_s": tuple(row["token_times_s"]), "failure": Failure(**failure) if failure else None}


def read_measurement(path: Path) -> Measurement:
    """Read a file that `write_measurement` wrote.

    Raises:
        ConfigError: it is missing, corrupt, of another schema, or a field is wrong; names file, line and field.
    """
    rows = _rows(path)
    header = rows[0]
    _check_header(header)
    samples = [_sample(row) for row in rows if row.kind == "sample"]
    server = [_reading(row) for row in rows if row.kind == "server"]
    _check_end(rows[-1], len(samples), len(server))
    seen: set[int] = set()
    for row in rows:
        if row.kind == "sample":
            if row.data["index"] in seen:
                row.refuse("index", f"{row.data['index']} is there twice")
            seen.add(row.data["index"])
    measurement = Measurement(
        step=header.step(),
        started_at=header.take("started_at", _number),
        samples=tuple(sorted(samples, key=lambda sample: sample.index)),
        client=ClientFacts(**header.inner("client", _CLIENT)),
        server=tuple(server),
        early_stop=EarlyStop(**header.inner("early_stop", _EARLY_STOP)) if header.data.get("early_stop") else None,
        facts=header.take("facts", _mapping),
    )
    _check_possible(measurement, rows)
    return measurement


def _check_possible(measurement: Measurement, rows: list[_FileRow]) -> None:
    """Refuse what cannot have happened, by the line that it is in."""
    for found in find_impossible(measurement):
        if found.position is None:
            rows[0].refuse(found.field if found.part == "header" else f"{found.part}.{found.field}", found.problem)
        lines = [row for row in rows if row.kind == found.part]
        if found.part == "sample":
            lines.sort(key=lambda row: int(row.data["index"]))
        lines[found.position].refuse(found.field, found.problem)


class _FileRow:
    """A line of the file, which knows where it is."""

    def __init__(self, where: str, kind: str, data: dict[str, Any]) -> None:
        self.where = where
        self.kind = kind
        self.data = data

    def refuse(self, name: str, problem: str) -> NoReturn:
        raise ConfigError(f"{self.where}: {self.kind}.{name}: {problem}")

    def take(self, name: str, check: Callable[[Any], str | None]) -> Any:
        if name not in self.data:
            self.refuse(name, "is missing")
        problem = check(self.data[name])
        if problem:
            self.refuse(name, f"expected {problem}, got {str(self.data[name])[:60]!r}")
        return self.data[name]

    def step(self) -> LoadStep:
        try:
            return step_from_json(self.take("step", _mapping))
        except ConfigError as error:
            raise ConfigError(f"{self.where}: {self.kind}.{error.message}") from None

    def inner(self, name: str, checks: Mapping[str, Callable[[Any], str | None]]) -> dict[str, Any]:
        """An object of the line: the known fields that it has, each checked; a field with a default may be missing."""
        data = self.take(name, _mapping)
        inner = _FileRow(self.where, f"{self.kind}.{name}", data)
        required = {field.name for field in fields(_INNER[name]) if field.default is MISSING}
        return {key: inner.take(key, check) for key, check in checks.items() if key in data or key in required}


def _rows(path: Path) -> list[_FileRow]:
    try:
        data = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: not a readable samples file: {error}") from None
    text = decode_text(data, str(path))
    rows = []
    for number, line in enumerate(text.removesuffix("\n").split("\n") if text else (), start=1):
        try:
            row = parse_json(line, finite=True)
        except ValueError as error:
            raise ConfigError(f"{path}:{number}: not JSON: {error}") from None
        if not isinstance(row, dict):
            raise ConfigError(f"{path}:{number}: must be a JSON object")
        rows.append(_FileRow(f"{path}:{number}", str(row.get("kind")), row))
    if not rows:
        raise ConfigError(f"{path}: is empty")
    return rows


def _check_header(row: _FileRow) -> None:
    if row.kind != "header" or row.data.get("schema") != SCHEMA:
        row.refuse("schema", f"the first line must be a header of {SCHEMA}")
    if row.data.get("schema_version") != SCHEMA_VERSION:
        row.refuse("schema_version", f"is {row.data.get('schema_version')!r}; this version reads {SCHEMA_VERSION}")


def _check_end(row: _FileRow, samples: int, server: int) -> None:
    if row.kind != "end":
        raise ConfigError(f"{row.where}: the end line is missing: the file was cut off")
    for name, found in (("samples", samples), ("server", server)):
        if row.data.get(name) != found:
            row.refuse(name, f"says {row.data.get(name)!r}, and {found} are there")


def _sample(row: _FileRow) -> Sample:
    row.data.setdefault("every_token_timed", True)  # files from before the field have all times
    values = {name: row.take(name, check) for name, check in _SAMPLE.items()}
    values["token_times_s"] = tuple(values["token_times_s"])
    if values["failure"] is not None:
        values["failure"] = Failure(values["failure"]["kind"], str(values["failure"].get("text", "")))
    return Sample(**values)


def _reading(row: _FileRow) -> ServerReading:
    row.take("at_s", _number)
    values = _known(ServerReading, row.data)
    gpus = values.pop("gpus", [])
    for name in values:
        row.take(name, _number_or_none)
    if not isinstance(gpus, list) or not all(isinstance(gpu, dict) for gpu in gpus):
        row.refuse("gpus", f"expected a list of objects, got {str(gpus)[:60]!r}")
    return ServerReading(**values, gpus=tuple(_gpu(_FileRow(row.where, "server.gpus", gpu)) for gpu in gpus))


def _gpu(row: _FileRow) -> GpuReading:
    return GpuReading(
        row.take("gpu", _text), row.take("memory_used_bytes", _number_or_none), row.take("utilization", _number_or_none)
    )


def _known(cls: Any, data: Mapping[str, Any]) -> dict[str, Any]:
    names = {field.name for field in fields(cls)}
    return {name: value for name, value in data.items() if name in names}


def _number(value: Any) -> str | None:
    right = isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST
    return None if right else "a number"


def _number_or_none(value: Any) -> str | None:
    return None if value is None or _number(value) is None else "a number or null"


def _count(value: Any) -> str | None:
    right = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < _LARGEST
    return None if right else "a whole number from 0"


def _count_or_none(value: Any) -> str | None:
    return None if value is None or _count(value) is None else "a whole number from 0, or null"


def _text(value: Any) -> str | None:
    return None if isinstance(value, str) else "a string"


def _flag(value: Any) -> str | None:
    return None if isinstance(value, bool) else "true or false"


def _mapping(value: Any) -> str | None:
    return None if isinstance(value, dict) else "an object"


def _times(value: Any) -> str | None:
    if not isinstance(value, list) or any(_number(item) for item in value):
        return "a list of numbers"
    return None if all(a <= b for a, b in pairwise(value)) else "in ascending order"


def _failure(value: Any) -> str | None:
    if value is None or (isinstance(value, dict) and value.get("kind") in _KINDS):
        return None
    return f"null or an object whose kind is one of {', '.join(_KINDS)}"


_CLIENT: dict[str, Callable[[Any], str | None]] = {
    "driver": _text,
    "cpu_s": _number,
    "wall_s": _number,
    "loop_lag_p99_ms": _number_or_none,
    "connections": _count,
    "resent": _count,
    "priority": _text,
}
_EARLY_STOP: dict[str, Callable[[Any], str | None]] = {
    "at_s": _number,
    "requests": _count,
    "reason": _text,
    "saved_s": _number,
}
_INNER: dict[str, type[ClientFacts | EarlyStop]] = {"client": ClientFacts, "early_stop": EarlyStop}
_SAMPLE: dict[str, Callable[[Any], str | None]] = {
    "step": _text,
    "index": _count,
    "scheduled_s": _number,
    "sent_s": _number_or_none,
    "token_times_s": _times,
    "end_s": _number,
    "expected_prompt_tokens": _count,
    "expected_output_tokens": _count,
    "prompt_tokens": _count_or_none,
    "output_tokens": _count_or_none,
    "cached_tokens": _count_or_none,
    "status": _count_or_none,
    "failure": _failure,
    "response_id": _text,
    "prompt_digest": _text,
    "output_digest": _text,
    "resent": _flag,
    "every_token_timed": _flag,
}

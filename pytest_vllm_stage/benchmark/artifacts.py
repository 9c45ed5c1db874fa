"""What a step leaves in ``reports/<run-id>/benchmarks/``: samples, metrics with verdict, and a line for spreadsheets.

::

    quantized-rate-5.samples.jsonl.gz    the measurement; everything else is derived from it
    quantized-rate-5.json                metrics and verdict
    benchmarks.csv                       one row a step
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.files import write_atomically
from pytest_vllm_stage.measurement.metrics import Metrics, json_number
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.samples_file import SUFFIX, read_measurement, write_measurement
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.verdict import StepVerdict

#: Raised when a field changes its meaning or goes; adding one does not raise it.
SCHEMA_VERSION = 1
SCHEMA = "vllm-stage/benchmark"
CSV_NAME = "benchmarks.csv"


def write_step(folder: Path, measurement: Measurement, metrics: Metrics, verdict: StepVerdict) -> Path:
    """Write a step's files, each whole or not at all; return the one with metrics and verdict."""
    folder.mkdir(parents=True, exist_ok=True)
    name = measurement.step.id
    write_measurement(measurement, folder / f"{name}{SUFFIX}")
    result = {
        "schema": SCHEMA,
        "schema_version": SCHEMA_VERSION,
        **measurement.header(),
        "metrics": metrics.to_json(),
        "verdict": verdict.to_json(),
    }
    return _replace(folder / f"{name}.json", json.dumps(result, indent=1, allow_nan=False) + "\n")


def read_result(path: Path) -> dict[str, Any]:
    """A step's metrics and verdict.

    Raises:
        ConfigError: naming the file and the field that is wrong.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: no readable benchmark result: {error}") from None
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ConfigError(f"{path}: schema: must be {SCHEMA}")
    if data.get("schema_version") != SCHEMA_VERSION:
        raise ConfigError(f"{path}: schema_version: is {data.get('schema_version')!r}; this reads {SCHEMA_VERSION}")
    for name in ("step", "metrics", "verdict", "client", "facts"):
        if not isinstance(data.get(name), dict):
            raise ConfigError(f"{path}: {name}: must be an object")
    if data["verdict"].get("outcome") not in list(Outcome):
        raise ConfigError(f"{path}: verdict.outcome: must be one of {', '.join(Outcome)}")
    if not isinstance(data["metrics"].get("metrics"), dict):
        raise ConfigError(f"{path}: metrics.metrics: must be an object")
    return data


def read_measurements(folder: Path) -> list[Measurement]:
    """Every measurement in a folder, by step id, to be judged again without any endpoint.

    Raises:
        ConfigError: there is none, or one is wrong.
    """
    paths = sorted(folder.glob(f"*{SUFFIX}"))
    if not paths:
        raise ConfigError(f"{folder}: no samples (*{SUFFIX}) are there")
    return [read_measurement(path) for path in paths]


def write_csv(folder: Path, rows: Sequence[tuple[Measurement, Metrics, StepVerdict]]) -> Path:
    """Write one row a step; an infinite latency is the text ``inf``, an unknown value an empty cell."""
    table = [_row(*row) for row in rows]
    names = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    return _replace(folder / CSV_NAME, text.getvalue())


def _row(measurement: Measurement, metrics: Metrics, verdict: StepVerdict) -> Mapping[str, Any]:
    step = measurement.step
    plan = ("model", "arrivals", "request_rate", "concurrency", "duration_s", "prompt_tokens", "output_tokens")
    return {
        "step": step.id,
        **{name: getattr(step, name) for name in plan},
        "outcome": verdict.outcome.value,
        **{name: json_number(value) for name, value in metrics.flat().items()},
        "saturated": verdict.saturation.saturated,
        "capacity_requests_per_s": json_number(verdict.saturation.capacity_requests_per_s),
        "saved_s": json_number(verdict.saved_s),
        "why": verdict.why,
    }


def _replace(path: Path, text: str) -> Path:
    write_atomically(path, text)
    return path

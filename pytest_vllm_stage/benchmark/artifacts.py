"""What a load step leaves in ``reports/<run-id>/benchmarks/``: samples, metrics with verdict, and a spreadsheet row.

::

    quantized-rate-5.samples.jsonl.gz    the measurement
    quantized-rate-5.json                its metrics and its verdict, derived from it once
    benchmarks.csv                       one row per step

Everything that shows, compares or publishes a number reads it from the step's artifact; only the check of what was
published derives the numbers from the samples once more.
"""

from __future__ import annotations

import csv
import io
import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeGuard

from pytest_vllm_stage.benchmark.artifact_details import find_malformed_detail
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.files import write_atomically
from pytest_vllm_stage.core.json_text import parse_json
from pytest_vllm_stage.measurement.metrics import Metrics, json_number
from pytest_vllm_stage.measurement.plausibility import CLOCK_SKEW_S, EARLIEST
from pytest_vllm_stage.measurement.samples import ClientFacts, Measurement
from pytest_vllm_stage.measurement.samples_file import SUFFIX, write_measurement
from pytest_vllm_stage.measurement.server_metrics import summarise_server
from pytest_vllm_stage.measurement.step import LoadStep, step_from_json
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.verdict import StepVerdict, verdict_from_json

#: Raised when a field changes its meaning or goes; adding one does not raise it.
SCHEMA_VERSION = 1
SCHEMA = "vllm-stage/benchmark"
#: In the run directory.
FOLDER = "benchmarks"
CSV_NAME = "benchmarks.csv"
#: Of a step's artifact.
ENDING = ".json"
_PLAN = ("model", "arrivals", "request_rate", "concurrency", "duration_s", "prompt_tokens", "output_tokens")
_LARGEST = 1e18


@dataclass(frozen=True)
class StepArtifact:
    """A step that was measured, summarised and judged, without its samples.

    Attributes:
        step: The plan.
        started_at: The step's start in seconds since the epoch.
        client: The driver's facts about itself.
        early_stop: Set where the step ended before its planned duration.
        facts: What makes runs comparable or labels them.
        metrics: `Metrics.to_json`, with the numbers of `ServerMetrics` among its metrics.
        verdict: `StepVerdict.to_json`: the one that holds for the run.
        verdict_alone: The step's verdict before the run was judged as a whole; None where that changed nothing.
    """

    step: LoadStep
    started_at: float
    client: ClientFacts
    early_stop: Mapping[str, Any] | None
    facts: Mapping[str, Any]
    metrics: Mapping[str, Any]
    verdict: Mapping[str, Any]
    verdict_alone: Mapping[str, Any] | None = None

    @property
    def outcome(self) -> Outcome:
        """Of the verdict that holds."""
        return Outcome(self.verdict["outcome"])

    @property
    def vacuous(self) -> bool:
        """Not one token came."""
        return bool(self.metrics.get("vacuous"))

    @property
    def numbers(self) -> Mapping[str, float | str | None]:
        """Every metric by its full name; infinity is the string ``inf``, and what is not known is None."""
        found: Mapping[str, float | str | None] = self.metrics["metrics"]
        return found

    def own_verdict(self) -> StepVerdict:
        """The verdict of the step by itself, which the run as a whole is judged from."""
        return verdict_from_json(self.verdict if self.verdict_alone is None else self.verdict_alone)

    def with_run_verdict(self, verdict: StepVerdict) -> StepArtifact:
        """The same step with the verdict that the run as a whole gives it."""
        alone = self.own_verdict()
        if verdict == alone:
            return self
        return replace(self, verdict=_plain(verdict), verdict_alone=self.verdict_alone or self.verdict)

    def to_json(self) -> dict[str, Any]:
        """The plain data that `read_artifact` reads."""
        data = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "step": self.step.to_json(),
            "started_at": self.started_at,
            "client": asdict(self.client),
            "early_stop": self.early_stop,
            "facts": dict(self.facts),
            "metrics": dict(self.metrics),
            "verdict": dict(self.verdict),
        }
        return data | ({} if self.verdict_alone is None else {"verdict_alone": dict(self.verdict_alone)})


def artifact_of(measurement: Measurement, metrics: Metrics, verdict: StepVerdict) -> StepArtifact:
    """What is stored of a measurement next to its samples."""
    return StepArtifact(
        step=measurement.step,
        started_at=measurement.started_at,
        client=measurement.client,
        early_stop=asdict(measurement.early_stop) if measurement.early_stop else None,
        facts=measurement.facts,
        metrics=metrics_json(measurement, metrics),
        verdict=_plain(verdict),
    )


def metrics_json(measurement: Measurement, metrics: Metrics) -> dict[str, Any]:
    """A measurement's metrics as plain data, with those of the engine and the GPUs among them."""
    server = summarise_server(measurement.server, metrics.span_s).flat()
    data = metrics.to_json()
    data["metrics"] |= {name: json_number(value) for name, value in server.items()}
    return data


def _plain(verdict: StepVerdict) -> dict[str, Any]:
    """As a file gives it back: lists for tuples, strings for names."""
    data: dict[str, Any] = json.loads(json.dumps(verdict.to_json(), allow_nan=False))
    return data


def write_step(folder: Path, measurement: Measurement, metrics: Metrics, verdict: StepVerdict) -> Path:
    """Write a step's samples and its artifact, each whole or not at all; return the artifact's path."""
    folder.mkdir(parents=True, exist_ok=True)
    write_measurement(measurement, folder / f"{measurement.step.id}{SUFFIX}")
    return write_artifact(folder, artifact_of(measurement, metrics, verdict))


def write_artifact(folder: Path, artifact: StepArtifact) -> Path:
    """Write or replace a step's artifact."""
    path = folder / f"{artifact.step.id}{ENDING}"
    write_atomically(path, json.dumps(artifact.to_json(), indent=1, allow_nan=False) + "\n")
    return path


def read_artifacts(folder: Path) -> list[StepArtifact]:
    """The artifact of every step in a folder that has samples, by step id.

    Raises:
        ConfigError: one is missing or wrong.
    """
    return [read_artifact(artifact_path(path)) for path in sorted(folder.glob(f"*{SUFFIX}"))]


def artifact_path(samples: Path) -> Path:
    """Where the artifact of a samples file is."""
    return samples.with_name(samples.name.removesuffix(SUFFIX) + ENDING)


def read_artifact(path: Path) -> StepArtifact:
    """Read a step's artifact.

    Raises:
        ConfigError: naming the file and the field that is wrong.
    """
    data = read_result(path)
    names = [field.name for field in fields(ClientFacts)]
    try:
        step = step_from_json(data["step"])
        client = ClientFacts(**{name: data["client"][name] for name in names if name in data["client"]})
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    kept = {name: data.get(name) for name in ("early_stop", "facts", "metrics", "verdict", "verdict_alone")}
    return StepArtifact(step, float(data["started_at"]), client, **kept)  # type: ignore[arg-type]


def read_result(path: Path) -> dict[str, Any]:
    """A step's artifact as plain data, checked.

    Raises:
        ConfigError: naming the file and the field that is wrong.
    """
    try:
        data = parse_json(path.read_text(encoding="utf-8"), finite=True)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a readable benchmark result: {error}") from None
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
    if problem := _impossible_number(data) or find_malformed_detail(data):
        raise ConfigError(f"{path}: {problem}")
    return data


def _impossible_number(data: Mapping[str, Any]) -> str | None:
    """The first number that cannot be: not finite, negative, in the future, or contradicting another one."""
    started_at = data.get("started_at")
    if not _is_number(started_at) or not EARLIEST <= started_at <= time.time() + CLOCK_SKEW_S:
        return f"started_at: expected seconds since the epoch, got {str(started_at)[:40]!r}"
    numbers = data["metrics"]["metrics"]
    for name, value in numbers.items():
        if value not in (None, "inf") and not (_is_number(value) and value >= 0):
            return f"metrics.metrics.{name}: expected a number from 0, got {str(value)[:40]!r}"
    for name, value in data["client"].items():
        if isinstance(value, int | float) and not (_is_number(value) and value >= 0):
            return f"client.{name}: expected a number from 0, got {value!r}"
    return _contradiction(numbers)


def _contradiction(numbers: Mapping[str, Any]) -> str | None:
    requests, failed, share = (numbers.get(name) for name in ("requests", "failed", "error_rate"))
    abandoned = numbers.get("abandoned") or 0
    if _is_number(requests) and _is_number(failed) and failed > requests:
        return f"metrics.metrics.failed: is {failed} of {requests} requests"
    if _is_number(share) and share > 1:
        return f"metrics.metrics.error_rate: is {share}, and a share is at most 1"
    if _is_number(share) and _is_number(requests) and _is_number(failed):
        ended = requests - abandoned
        counted = failed / ended if ended else 0.0
        if not math.isclose(share, counted, rel_tol=1e-4):
            return f"metrics.metrics.error_rate: is {share}, and {failed} of {requests} requests failed"
    for latency, unit in (("ttft", "ms"), ("itl", "ms"), ("tpot", "ms"), ("e2e_latency", "s")):
        names = [f"{latency}_p{percent}_{unit}" for percent in (50, 90, 95, 99)]
        found = [(name, float(numbers[name])) for name in names if numbers.get(name) is not None]
        for (_, before), (name, after) in pairwise(found):
            if after < before:
                return f"metrics.metrics.{name}: is {after}, less than the percentile below it ({before})"
    return None


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < _LARGEST


def write_csv(folder: Path, artifacts: Sequence[StepArtifact]) -> Path:
    """Write one row per step; an infinite latency is the text ``inf``, an unknown value an empty cell."""
    table = [_csv_row(artifact) for artifact in artifacts]
    names = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(table)
    path = folder / CSV_NAME
    write_atomically(path, text.getvalue())
    return path


def _csv_row(artifact: StepArtifact) -> Mapping[str, Any]:
    step, verdict = artifact.step, artifact.verdict
    saturation = verdict.get("saturation") or {}
    return {
        "step": step.id,
        **{name: getattr(step, name) for name in _PLAN},
        "outcome": artifact.outcome.value,
        **artifact.numbers,
        "saturated": saturation.get("saturated"),
        "capacity_requests_per_s": saturation.get("capacity_requests_per_s"),
        "saved_s": verdict.get("saved_s"),
        "why": verdict.get("why"),
    }

"""The results that a run publishes of a model: values by property name, derived from the samples, by priority."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from pytest_vllm_stage.benchmark.artifacts import (
    StepArtifact,
    artifact_path,
    metrics_json,
    read_artifact,
    read_artifacts,
)
from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.json_text import parse_json
from pytest_vllm_stage.measurement.metrics import summarise
from pytest_vllm_stage.measurement.samples_file import SUFFIX, read_measurement
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.publication import properties as names
from pytest_vllm_stage.publication.registry.values import Value
from pytest_vllm_stage.serving.target import DUMMY_WEIGHTS, SIMULATED_ENGINE
from pytest_vllm_stage.slo.decision import Outcome

#: Incremented when a field changes its meaning or is removed, not when one is added.
SCHEMA_VERSION = 1
SCHEMA = "vllm-stage/publication"
DOCUMENT = "publication.json"
#: The verdict on a load beyond the promised one.
OBSERVED = "observed"


@dataclass(frozen=True)
class Step:
    """A measured step and its verdict.

    Attributes:
        artifact: Its stored files.
        verdict: ``pass``, ``fail``, ``inconclusive``, ``invalid`` or ``observed``.
    """

    artifact: StepArtifact
    verdict: str

    @property
    def load(self) -> tuple[str, float]:
        """``rate`` with requests per second, or ``concurrency`` with users."""
        return self.artifact.step.kind.value, self.artifact.step.level


@dataclass(frozen=True)
class ResultsSource:
    """The source of the results, and the names under which they are published.

    Attributes:
        model: The registered model.
        version: Its version.
        run: The run that measured.
        namespace: The stage's namespace.
        service: The InferenceService.
        revision: Its revision while it was measured.
        uri: Where the samples are stored.
    """

    model: str
    version: str
    run: str
    namespace: str
    service: str
    revision: str
    uri: str


@dataclass(frozen=True)
class Results:
    """A run's results of one model.

    Attributes:
        source: Their source.
        timestamp: The start of the first step, in UTC.
        values: Property to value: provenance first, then numbers and verdicts by priority.
        observations: Ids of the steps beyond the promised load.
    """

    source: ResultsSource
    timestamp: str
    values: Mapping[str, Value]
    observations: tuple[str, ...] = field(default=())

    @property
    def age_key(self) -> tuple[str, str]:
        """Orders results by time; the run decides between equal times."""
        return self.timestamp, self.source.run

    def to_bytes(self) -> bytes:
        """The artifact's document, including values for which the registry may have no room."""
        data = {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            **asdict(self.source),
            "timestamp": self.timestamp,
            "units": names.UNITS,
            "observations": list(self.observations),
            "properties": [{"name": name, "value": value} for name, value in self.values.items()],
        }
        return (json.dumps(data, indent=1, allow_nan=False) + "\n").encode()


def parse(content: bytes, where: str) -> Results:
    """The inverse of `Results.to_bytes`.

    Raises:
        StageFailure: it is corrupt or of another schema; the message names the place and the field.
    """
    try:
        data: Any = parse_json(content)
    except ValueError as error:
        raise StageFailure(f"{where}: is corrupt: {error}") from None
    if not isinstance(data, dict) or (data.get("schema"), data.get("schema_version")) != (SCHEMA, SCHEMA_VERSION):
        raise StageFailure(f"{where}: schema: expected {SCHEMA}, version {SCHEMA_VERSION}")
    texts = (*ResultsSource.__dataclass_fields__, "timestamp")
    for name in texts:
        if not isinstance(data.get(name), str):
            raise StageFailure(f"{where}: {name}: expected a string, got {data.get(name)!r}")
    try:
        values = {str(entry["name"]): _value(entry["value"]) for entry in data["properties"]}
    except (KeyError, TypeError) as error:
        raise StageFailure(f"{where}: properties: {error}") from None
    observations = data.get("observations") or []
    if not isinstance(observations, list):
        raise StageFailure(f"{where}: observations: expected a list, got {observations!r}")
    source = ResultsSource(**{name: data[name] for name in ResultsSource.__dataclass_fields__})
    return Results(source, data["timestamp"], values, tuple(map(str, observations)))


def _value(value: Any) -> Value:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise TypeError(f"expected a string or a number, got {value!r}")
    return value


def read_steps(folder: Path, service: str, outcome_of: Callable[[StepArtifact], str]) -> list[Step]:
    """The steps of a run's benchmarks folder that measured a model, as they were stored.

    Args:
        folder: ``reports/<run-id>/benchmarks``.
        service: The model's InferenceService, which is the served name.
        outcome_of: Names a step's outcome: `OBSERVED` where nothing was promised.

    Raises:
        ConfigError: a file is invalid.
    """
    return [Step(one, outcome_of(one)) for one in read_artifacts(folder) if _is_of(one.step, service)]


def derive_steps(folder: Path, service: str, outcome_of: Callable[[StepArtifact], str]) -> list[Step]:
    """The same steps with every number derived again from the samples, to check the stored numbers.

    Raises:
        ConfigError: a file is invalid.
    """
    found = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        measurement = read_measurement(path)
        if _is_of(measurement.step, service):
            stored = read_artifact(artifact_path(path))
            metrics = metrics_json(measurement, summarise(measurement.samples, measurement.step))
            derived = replace(
                stored,
                step=measurement.step,
                started_at=measurement.started_at,
                facts=measurement.facts,
                metrics=metrics,
            )
            found.append(Step(derived, outcome_of(derived)))
    return found


def _is_of(step: LoadStep, service: str) -> bool:
    """Whether it is a planned step of the model: steps of a capacity search and reruns are not published."""
    return step.model == service and not step.variant


def refusals(steps: Sequence[Step], run: str) -> list[str]:
    """Why steps must not be published as a model's results, one line each."""
    return [f"{step.artifact.step.id} {line}" for step in steps for line in _refusals(step.artifact, run)]


def _refusals(artifact: StepArtifact, run: str) -> Iterator[str]:
    facts = artifact.facts
    if facts.get("simulated") or SIMULATED_ENGINE in str(facts.get("engine_version")):
        yield "is simulated: its numbers are not a model's"
    elif facts.get("simulated") is not False:
        yield "does not record whether a simulated engine answered (facts.simulated)"
    if facts.get(DUMMY_WEIGHTS):
        yield "was measured with dummy weights: its numbers are not published as a model's"
    if facts.get("run_id") != run:
        yield f"was measured by run {facts.get('run_id')!r}, not by {run}"
    if artifact.vacuous:
        yield f"is vacuous: not one token came from {artifact.numbers['requests']} requests"


def make(steps: Sequence[Step], source: ResultsSource) -> Results:
    """The results of a model's steps.

    Raises:
        StageFailure: there is no step, a step must not be published, or two have the same load.
    """
    where = f"results of {source.service} by run {source.run}"
    wrong = refusals(steps, source.run) if steps else ["there is no step"]
    if wrong:
        raise StageFailure(f"{where} are not published: " + "\n  ".join(wrong))
    started_at = min(step.artifact.started_at for step in steps)
    timestamp = utc(started_at)
    observations = tuple(step.artifact.step.id for step in steps if step.verdict == OBSERVED)
    return Results(source, timestamp, provenance(source, timestamp) | numbers(steps), observations)


def utc(at: float) -> str:
    """Seconds since the epoch in the format of Kubernetes, so that times compare as strings."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(at))


def provenance(source: ResultsSource, timestamp: str) -> dict[str, Value]:
    """The properties that name the source of the numbers."""
    values = (source.run, timestamp, source.namespace, source.service, source.revision, source.uri)
    return dict(zip(names.PROVENANCE, values, strict=True))


def numbers(steps: Sequence[Step]) -> dict[str, Value]:
    """Every number and verdict by property name, most important first: promised rates, higher rates, concurrencies.

    Raises:
        StageFailure: two steps have the same load.
    """
    found = {step.artifact.step.id: values_of(step) for step in steps}
    made: dict[str, Value] = {}
    for group in _groups(steps):
        for name in names.PER_STEP:
            for step in group:
                key = names.step_property(*step.load, name)
                if key in made:
                    raise StageFailure(f"two steps have the load of {step.artifact.step.id}")
                if name in (values := found[step.artifact.step.id]):
                    made[key] = values[name]
    return made


def _groups(steps: Sequence[Step]) -> list[list[Step]]:
    ordered = sorted(steps, key=lambda step: step.load[1])
    rates = [step for step in ordered if step.load[0] == "rate"]
    return [
        [step for step in rates if step.verdict != OBSERVED],
        [step for step in rates if step.verdict == OBSERVED],
        [step for step in ordered if step.load[0] == "concurrency"],
    ]


def values_of(step: Step) -> dict[str, Value]:
    """A step's verdict, and its numbers if it is valid; an unknown or infinite number is absent."""
    values: dict[str, Value] = {names.VERDICT: step.verdict}
    if step.verdict == Outcome.INVALID:
        return values
    for name, metric in names.PER_STEP.items():
        number = step.artifact.numbers.get(metric) if metric else None
        if isinstance(number, int | float) and math.isfinite(number):
            values[name] = float(number)
    return values

"""A run directory as plain data for the reports: all parsing and checking of its files is here.

The directory is not changed. `RunData.problems` lists what a killed run did not write.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pytest_vllm_stage.benchmark.artifacts import FOLDER, read_result
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.journal import read_events
from pytest_vllm_stage.core.json_text import parse_json
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.samples_file import SUFFIX, read_measurement
from pytest_vllm_stage.report import record
from pytest_vllm_stage.report.record_schema import check_record
from pytest_vllm_stage.settings.urls import ENDPOINT_ROLE
from pytest_vllm_stage.slo.baselines import Baseline, read_baselines

RECORD = "run.json"
JOURNAL = "journal.jsonl"
#: The baselines that this run was compared with, copied so that the page can be made again on any machine.
HISTORY = "history.jsonl"
RATE, CONCURRENCY = "rate", "concurrency"


@dataclass(frozen=True)
class Gate:
    """One objective of a step.

    Attributes:
        objective: Its key, for example ``ttft_p50_ms``.
        limit: The promised bound.
        is_floor: The limit is a lower bound.
        observed: The measured value; None where there is none.
        interval: Two-sided 95 % confidence interval; None where the step has too few requests, or none is defined.
        outcome: ``pass``, ``fail`` or ``inconclusive``.
        n: Number of requests.
        effective_n: The effective sample size; None where the run did not record it.
        misses: Requests over the limit.
        needs: Requests that would decide; None where it is decided.
        why: The numbers in a sentence.
    """

    objective: str
    limit: float
    is_floor: bool
    observed: float | None
    interval: tuple[float, float] | None
    outcome: str
    n: int
    effective_n: int | None
    misses: float
    needs: int | None
    why: str


@dataclass(frozen=True)
class StepData:
    """One load step.

    Attributes:
        name: Its id, for example ``quantized-rate-5``.
        role: The model's role.
        model: The served name.
        kind: `RATE` or `CONCURRENCY`.
        level: Requests/s or concurrent users.
        outcome: The verdict, or ``observed`` for a step beyond the promised load.
        why: The verdict's reason.
        gates: One per objective.
        metrics: Every number by its name; ``math.inf`` where too many requests failed.
        percentiles: Name to ``value``, ``n``, ``effective_n``, ``ci95`` and ``needs``.
        findings: What was wrong or unexpected in the measurement.
        capacity: Requests/s that the server reached while it was saturated; None where it was not.
        result: The whole result file, for fields that only later versions write.
        samples: The file of samples; None where it is missing.
    """

    name: str
    role: str
    model: str
    kind: str
    level: float
    outcome: str
    why: str
    gates: tuple[Gate, ...]
    metrics: Mapping[str, float | None]
    percentiles: Mapping[str, Mapping[str, Any]]
    findings: tuple[str, ...]
    capacity: float | None
    result: Mapping[str, Any]
    samples: Path | None

    def measurement(self) -> Measurement | None:
        """The step's samples; None where the file is missing.

        Raises:
            ConfigError: the file is not a valid file of samples.
        """
        return read_measurement(self.samples) if self.samples else None

    @property
    def load(self) -> str:
        """The load with its unit, for example ``5 requests/s``."""
        one = self.level == 1
        if self.kind == RATE:
            return f"{self.level:g} {'request' if one else 'requests'}/s"
        return f"{self.level:g} concurrent {'user' if one else 'users'}"


@dataclass(frozen=True)
class RunData:
    """A run.

    Attributes:
        directory: The run directory.
        record: ``run.json``; for a killed run the same data, built from its journal.
        complete: The run reached its end.
        last_event: The last line of the journal, which shows where a killed run was.
        steps: Its load steps by model, rates before concurrencies.
        history: Lines of the baselines up to and including this run's own.
        problems: What is missing or could not be read, one line each.
    """

    directory: Path
    record: Mapping[str, Any]
    complete: bool
    last_event: Mapping[str, Any]
    steps: tuple[StepData, ...]
    history: tuple[Baseline, ...]
    problems: tuple[str, ...] = field(default=())

    @property
    def run_id(self) -> str:
        return str(self.record["run_id"])

    @property
    def simulated(self) -> bool:
        """Whether a simulated engine answered."""
        return bool(self.record.get("simulated"))

    @property
    def notices(self) -> tuple[tuple[str, str], ...]:
        """Label and text of what must be said with every number of the run; see `record.notices`."""
        return record.notices(self.record)

    @property
    def roles(self) -> tuple[str, ...]:
        """The roles with load steps, in the order of the record."""
        return tuple(dict.fromkeys(step.role for step in self.steps))

    def setting(self, name: str) -> str | None:
        """An option's value; None where it is unset or unknown."""
        value = self.record["settings"].get(name, {}).get("value")
        return None if value is None else str(value)

    def of_model(self, role: str, name: str) -> Any:
        """The value of a model's key in the profile; None where the profile does not set it."""
        profile = self.record["profile"]
        if role == ENDPOINT_ROLE:
            served = next((step.model for step in self.steps if step.role == role), None)
            role = next(
                (
                    key.split(".")[1]
                    for key, value in profile.items()
                    if key.endswith(".inference_service") and value == served
                ),
                role,
            )
        return profile.get(f"models.{role}.{name}")


def load_run(directory: Path) -> RunData:
    """Read a run directory.

    Raises:
        ConfigError: it is missing, not a run directory, written by a later version, or its record is not sound.
    """
    if directory.is_file():
        raise ConfigError(f"{directory}: expected a run directory, got a file")
    if not directory.is_dir():
        raise ConfigError(f"{directory}: no such run directory")
    events = read_events(directory / JOURNAL)
    found, complete, problems = _record(directory, events)
    try:
        _rename_former_fields(found)
        steps, step_problems = _steps(directory, found)
        history, history_problems = _history(directory, found, steps)
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        path = directory / (RECORD if (directory / RECORD).exists() else JOURNAL)
        raise ConfigError(f"{path}: not a sound record of a run: {type(error).__name__}: {error}") from None
    return RunData(
        directory=directory,
        record=found,
        complete=complete,
        last_event=events[-1] if events else {},
        steps=steps,
        history=history,
        problems=(*problems, *step_problems, *history_problems),
    )


def _record(directory: Path, events: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], bool, list[str]]:
    """The record, whether the run reached its end, and what is wrong with the files."""
    path = directory / RECORD
    ours = bool(events) and events[0].get("kind") == "run"
    if not path.exists():
        if not ours:
            raise ConfigError(f"{directory}: not a run directory: expected {RECORD} or a journal ({JOURNAL}) of a run")
        return _from_journal(directory), False, [f"{RECORD} is missing: the run did not reach its end"]
    try:
        data = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if not ours:
            raise ConfigError(f"{path}: not readable: {error}") from None
        return _from_journal(directory), False, [f"{RECORD} is not readable ({error}); the journal was used"]
    check_record(data, path)
    missing = [] if events else [f"{JOURNAL} is missing"]
    return data, data.get("ended_at") is not None, missing


def _from_journal(directory: Path) -> dict[str, Any]:
    path = directory / JOURNAL
    try:
        built = record.build(path)
    except (LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: an event is not as this version writes it: {error!r}") from None
    check_record(built, path)
    return built


def _rename_former_fields(data: Mapping[str, Any]) -> None:
    """Give the fields that earlier versions wrote their present names."""
    for regression in data["regressions"]:
        for judged in regression.get("metrics", {}).values():
            if "usual" in judged:
                judged["baseline"] = judged.pop("usual")


def _steps(directory: Path, found: Mapping[str, Any]) -> tuple[tuple[StepData, ...], list[str]]:
    folder, problems, steps = directory / FOLDER, [], []
    noted = {str(one.get("name")): one for one in found["benchmarks"]}
    names = dict.fromkeys([*noted, *(path.name.removesuffix(SUFFIX) for path in sorted(folder.glob(f"*{SUFFIX}")))])
    for name in names:
        result: dict[str, Any] = {}
        try:
            result = read_result(folder / f"{name}.json")
        except ConfigError as error:
            problems.append(f"load step {name}: {error.message}")
        if result or name in noted:
            steps.append(_step(name, noted.get(name, {}), result, folder / f"{name}{SUFFIX}"))
    order = {role: place for place, role in enumerate(dict.fromkeys(step.role for step in steps))}
    steps.sort(key=lambda step: (order[step.role], step.kind != RATE, step.level))
    return tuple(steps), problems


def read_step(directory: Path, name: str) -> StepData | None:
    """One load step of a run that may not have ended yet; None where it left no result.

    Raises:
        ConfigError: its result is not readable.
    """
    path = directory / FOLDER / f"{name}.json"
    if not path.exists():
        return None
    noted = {event.get("name"): event for event in read_events(directory / JOURNAL) if event.get("kind") == "benchmark"}
    return _step(name, noted.get(name, {}), read_result(path), directory / FOLDER / f"{name}{SUFFIX}")


def _step(name: str, noted: Mapping[str, Any], result: Mapping[str, Any], samples: Path) -> StepData:
    plan, verdict = result.get("step", {}), result.get("verdict", {})
    metrics = result.get("metrics") or noted.get("result") or {}
    role, kind, level = _load(name, noted, result)
    percentiles = metrics.get("percentiles", {})
    return StepData(
        name=name,
        role=role,
        model=str(noted.get("model") or plan.get("model", "")),
        kind=kind,
        level=level,
        outcome=str(noted.get("outcome") or verdict.get("outcome", "inconclusive")),
        why=str(noted.get("why") or verdict.get("why", "")),
        gates=tuple(_gate(gate, percentiles) for gate in verdict.get("gates", [])),
        metrics={key: _number(value) for key, value in metrics.get("metrics", {}).items()},
        percentiles=percentiles,
        findings=tuple(str(one.get("text", "")) for one in verdict.get("findings", [])),
        capacity=_number((verdict.get("saturation") or {}).get("capacity_requests_per_s")),
        result=result,
        samples=samples if samples.exists() else None,
    )


def _load(name: str, noted: Mapping[str, Any], result: Mapping[str, Any]) -> tuple[str, str, float]:
    """Role, kind and level: as recorded, else from the plan, else from the step's name."""
    plan = result.get("step", {})
    head, _, last = name.rpartition("-")
    role, _, word = head.rpartition("-")
    kind = plan.get("kind") or word
    level = plan.get("level") or plan.get("request_rate") or plan.get("concurrency") or _number(last) or 0.0
    if plan.get("arrivals"):
        kind = CONCURRENCY if plan["arrivals"] == "closed" else RATE
    role = str(plan.get("role") or noted.get("role") or role or name)
    return role, CONCURRENCY if kind == CONCURRENCY else RATE, float(level)


def _gate(gate: Mapping[str, Any], percentiles: Mapping[str, Any]) -> Gate:
    key = str(gate.get("objective", ""))
    interval = gate.get("interval") or percentiles.get(key, {}).get("ci95")
    effective = gate.get("effective_n", gate.get("worth"))
    return Gate(
        objective=key,
        limit=_number(gate.get("limit")) or 0.0,
        is_floor=key.endswith("_min"),
        observed=_number(gate.get("observed")),
        interval=_interval(interval),
        outcome=str(gate.get("outcome", "inconclusive")),
        n=int(gate.get("n") or 0),
        effective_n=None if effective is None else int(effective),
        misses=_number(gate.get("misses")) or 0.0,
        needs=gate.get("needs"),
        why=str(gate.get("why", "")),
    )


def _interval(value: Any) -> tuple[float, float] | None:
    if not isinstance(value, list) or len(value) != 2:
        return None
    low, high = (_number(end) for end in value)
    return None if low is None or high is None else (low, high)


def _number(value: Any) -> float | None:
    """A number of the result files, where infinity is the string ``inf``; None for anything else."""
    if value in ("inf", "Infinity"):
        return math.inf
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return None
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def _history(
    directory: Path, found: Mapping[str, Any], steps: Sequence[StepData]
) -> tuple[tuple[Baseline, ...], list[str]]:
    """The run's own copy of the baselines that it was compared with, otherwise those of its baselines folder."""
    folder = found["settings"].get("baselines", {}).get("value")
    path = directory / HISTORY
    if not path.exists():
        if not folder:
            return (), []
        path = Path(folder) / f"{found['profile'].get('name')}.jsonl"
    try:
        if not path.is_file():
            return (), [f"history: {path} does not exist on this machine"]
        known = read_baselines(path)
    except (ConfigError, OSError) as error:
        return (), [f"history: {error}"]
    return tuple(select_history(known, str(found["run_id"]), [step.name for step in steps])), []


def select_history(known: Sequence[Baseline], run_id: str, steps: Sequence[str]) -> Iterator[Baseline]:
    """The lines of these steps up to the end of the run: later runs are not part of its history."""
    own = [place for place, line in enumerate(known) if line.run_id == run_id]
    for line in known[: own[-1] + 1 if own else len(known)]:
        if line.key.get("step") in steps:
            yield line

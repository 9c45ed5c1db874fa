"""The stage's models side by side, and this run compared with another one."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.report.html.load_charts import found_capacity
from pytest_vllm_stage.report.run_data import RATE, RunData, StepData
from pytest_vllm_stage.report.values import format_bytes, format_number

_NOT_RECORDED = "not recorded"
#: The metrics by which two runs are compared; True where higher is better.
_COMPARED = {
    "ttft_p50_ms": False,
    "tpot_p50_ms": False,
    "e2e_latency_p90_s": False,
    "output_tokens_per_s": True,
}


@dataclass(frozen=True)
class ComparisonTable:
    """A table with a remark above it."""

    title: str
    note: str
    headers: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def compare_models(data: RunData) -> ComparisonTable | None:
    """The models of the run in columns; None where it has fewer than two, or measured nothing."""
    declared = [key.split(".")[1] for key in data.record["profile"] if key.endswith(".inference_service")]
    roles = tuple(dict.fromkeys([*data.roles, *([] if data.setting("endpoint") else declared)]))
    if len(roles) < 2 or not data.steps:
        return None
    rows = [(label, *(value(data, role) for role in roles)) for label, value in _ROWS]
    note = (
        "Measured in this run, except precision, cost and promised rate, which the profile declares. The promised "
        "rate is each model's own, so compare the levels in the charts too."
    )
    return ComparisonTable("Comparison of the models", note, ("what", *roles), tuple(rows))


def _declared(name: str, unit: str = "") -> Callable[[RunData, str], str]:
    def read(data: RunData, role: str) -> str:
        value = data.of_model(role, name)
        if isinstance(value, int | float):
            return f"{format_number(float(value))} {unit}".strip()
        return str(value) if value else "not declared"

    return read


def _size(data: RunData, role: str) -> str:
    size = _property(data, role, "weights.size_bytes")
    return format_bytes(float(size)) if isinstance(size, int | float) else _NOT_RECORDED


def _gpu_memory(data: RunData, role: str) -> str:
    peaks = [step.metrics.get("gpu_memory_peak_bytes") for step in data.steps if step.role == role]
    known = [peak for peak in peaks if peak is not None]
    return format_bytes(max(known)) if known else "no source (--stage-gpu-metrics)"


def _promised_step(data: RunData, role: str) -> StepData | None:
    limit = data.of_model(role, "rate_limit_requests_per_s")
    return next((one for one in data.steps if (one.role, one.kind, one.level) == (role, RATE, limit)), None)


def _at_promise(name: str, unit: str) -> Callable[[RunData, str], str]:
    def read(data: RunData, role: str) -> str:
        step = _promised_step(data, role)
        value = step.metrics.get(name) if step else None
        return _NOT_RECORDED if value is None else f"{format_number(value)} {unit}"

    return read


def _per_dollar(data: RunData, role: str) -> str:
    step, cost = _promised_step(data, role), data.of_model(role, "cost_per_hour_usd")
    tokens_per_s = step.metrics.get("output_tokens_per_s") if step else None
    if not isinstance(cost, int | float) or not cost:
        return "no cost declared"
    return _NOT_RECORDED if tokens_per_s is None else f"{format_number(tokens_per_s * 3600 / cost)} tokens"


def _capacity(data: RunData, role: str) -> str:
    capacity = found_capacity(data, role)
    return "not reached" if capacity is None else f"about {format_number(capacity)} requests/s"


def _score(name: str) -> Callable[[RunData, str], str]:
    def read(data: RunData, role: str) -> str:
        value = _property(data, role, name)
        return _NOT_RECORDED if value is None else str(value)

    return read


def _property(data: RunData, role: str, name: str) -> Any:
    """What a check recorded of a model; its role is in the brackets of its name."""
    for test in data.record["tests"]:
        if name in test.get("properties", {}) and role in test["name"].rpartition("[")[2].rstrip("]").split("-"):
            return test["properties"][name]
    return None


_ROWS: Sequence[tuple[str, Callable[[RunData, str], str]]] = (
    ("served model", _declared("inference_service")),
    ("precision and hardware", _declared("description")),
    ("size on disk", _size),
    ("GPU memory, largest reading", _gpu_memory),
    ("cost per hour", _declared("cost_per_hour_usd", "USD")),
    ("promised rate", _declared("rate_limit_requests_per_s", "requests/s")),
    ("capacity found", _capacity),
    ("output tokens/s at the promised rate", _at_promise("output_tokens_per_s", "tokens/s")),
    ("output tokens per USD at the promised rate", _per_dollar),
    ("TTFT P50 at the promised rate", _at_promise("ttft_p50_ms", "ms")),
    ("TPOT P50 at the promised rate", _at_promise("tpot_p50_ms", "ms")),
    ("response time P90 at the promised rate", _at_promise("e2e_latency_p90_s", "s")),
    ("golden answers: agreement with the recorded ones", _score("quality.golden_agreement")),
    ("perplexity gap to the full model, nats per token", _score("quality.gap_nats")),
    ("tokens that both models hold likeliest", _score("quality.same_token")),
)


def compare_runs(data: RunData, other: RunData) -> ComparisonTable:
    """Each step of this run compared with the same step of another one."""
    theirs = {step.name: step for step in other.steps}
    rows = [row for step in data.steps if step.name in theirs for row in _step_rows(step, theirs[step.name])]
    missing = sorted({step.name for step in data.steps} ^ set(theirs))
    notes = [f"The other run is {other.run_id}.", *_differences(data, other)]
    notes += [f"Only one of the runs has: {', '.join(missing)}."] if missing else []
    headers = ("load step", "metric", "other run", "this run", "change", "verdict then", "verdict now")
    return ComparisonTable(f"Compared with run {other.run_id}", " ".join(notes), headers, tuple(rows))


def _step_rows(step: StepData, before: StepData) -> Iterator[tuple[str, ...]]:
    for name, more_is_better in _COMPARED.items():
        old, new = before.metrics.get(name), step.metrics.get(name)
        change = _change(old, new, more_is_better=more_is_better)
        yield step.name, name, format_number(old), format_number(new), change, before.outcome, step.outcome


def _change(old: float | None, new: float | None, *, more_is_better: bool) -> str:
    if not old or new is None or not math.isfinite(old) or not math.isfinite(new):
        return "unknown"
    ratio = new / old
    word = "" if abs(ratio - 1) < 0.01 else (" better" if (ratio > 1) == more_is_better else " worse")
    return f"{100 * (ratio - 1):+.1f} %{word}"


def _differences(data: RunData, other: RunData) -> Iterator[str]:
    """The reasons why the two runs are not fully comparable, one sentence each."""
    if data.simulated != other.simulated:
        yield "One of them is SIMULATED: the numbers are not comparable."
    theirs = {step.name: step for step in other.steps}
    unlike: dict[str, None] = {}
    for step in data.steps:
        for name, (a, b) in _unlike(step, theirs.get(step.name)).items():
            unlike[f"{name} was {b!r} and is {a!r}"] = None
    if unlike:
        shown = list(unlike)
        yield f"They differ in more than the result: {'; '.join(shown[:6])}{' ...' if len(shown) > 6 else ''}."


def _unlike(step: StepData, other: StepData | None) -> Mapping[str, tuple[Any, Any]]:
    if other is None:
        return {}
    mine, theirs = _conditions(step), _conditions(other)
    return {name: (mine[name], theirs[name]) for name in mine if mine[name] != theirs[name]}


def _conditions(step: StepData) -> dict[str, Any]:
    plan, facts = step.result.get("step", {}), step.result.get("facts", {})
    names = ("duration_s", "prompt_tokens", "output_tokens", "arrivals", "api")
    return {
        "model": step.model,
        "driver": step.result.get("client", {}).get("driver"),
        "engine_version": facts.get("engine_version"),
        **{name: plan.get(name) for name in names},
    }

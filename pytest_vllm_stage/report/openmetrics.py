"""``metrics.prom``: the run's numbers as OpenMetrics text, for a Pushgateway or node-exporter's textfile collector.

Gauges only, without timestamps: so the same file is valid in Prometheus' older text format too, which both read.
Names and labels are stable; docs/reports.md lists them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from pytest_vllm_stage.report.overview import VERDICTS, summarise_run
from pytest_vllm_stage.report.run_data import RunData, StepData
from pytest_vllm_stage.report.slo_matrix import SIGNS

_PREFIX = "vllm_stage"
#: Latency to the factor from its unit to seconds.
_LATENCIES = {"ttft": ("ms", 1000.0), "itl": ("ms", 1000.0), "tpot": ("ms", 1000.0), "e2e_latency": ("s", 1.0)}
_PERCENTS = (50, 90, 95, 99)
_STATES = ("ok", "improved", "suspicious", "regression", "no-baseline", "invalid")

Sample = tuple[Mapping[str, str], float | None]


def render_metrics(data: RunData) -> str:
    """The whole file."""
    return "\n".join([*_run(data), *_steps(data), *_regressions(data), "# EOF"]) + "\n"


def _run(data: RunData) -> Iterator[str]:
    overview, common = summarise_run(data), _common(data)
    version = str(data.record["versions"].get("pytest_vllm_stage", ""))
    info = {"run_id": data.run_id, "version": version, "simulated": str(data.simulated).lower()}
    yield from _family("run_info", "The run that the file is about; always 1.", [(common | info, 1.0)])
    started = [(common, float(data.record["started_at"]))]
    yield from _family("run_started_timestamp_seconds", "When the run began, in Unix time.", started, "seconds")
    yield from _family("run_duration_seconds", "How long it took.", [(common, overview.duration_s)], "seconds")
    verdicts = [(common | {"verdict": name}, float(name == overview.verdict)) for name in VERDICTS]
    yield from _family("run_verdict", "1 for the verdict on the run, 0 for the others.", verdicts)
    outcomes = ("passed", "failed", "error", "skipped")
    checks = [(common | {"outcome": name}, float(overview.counts.get(name, 0))) for name in outcomes]
    yield from _family("run_checks", "Checks by outcome.", checks)


def _steps(data: RunData) -> Iterator[str]:
    if not data.steps:
        return
    labels = [(step, _labels(data, step)) for step in data.steps]
    latencies = [sample for step, common in labels for sample in _latencies(step, common)]
    yield from _family("step_latency_seconds", "Latency quantiles; +Inf where requests failed.", latencies, "seconds")
    plain = {
        "step_requests": ("Requests of the step.", "requests"),
        "step_failed_requests": ("Requests that failed.", "failed"),
        "step_abandoned_requests": ("Requests given up when the step ended early.", "abandoned"),
        "step_error_ratio": ("Share of the requests that failed, without abandoned ones.", "error_rate"),
        "step_requests_per_second": ("Right answers per second.", "requests_per_s"),
        "step_output_tokens_per_second": ("Generated tokens per second.", "output_tokens_per_s"),
        "step_steady_output_tokens_per_second": (
            "Generated tokens per second while all users of a closed loop were busy.",
            "steady_output_tokens_per_s",
        ),
        "step_goodput_requests_per_second": ("Answers within every limit per second.", "goodput_requests_per_s"),
        "step_stalls": ("Stalls of the token stream.", "stalls"),
    }
    for name, (text, metric) in plain.items():
        yield from _family(name, text, [(common, step.metrics.get(metric)) for step, common in labels])
    verdicts = [(common | {"verdict": one}, float(one == step.outcome)) for step, common in labels for one in SIGNS]
    yield from _family("step_verdict", "1 for the verdict on the step, 0 for the others.", verdicts)
    limits = [(common | {"objective": gate.objective}, gate.limit) for step, common in labels for gate in step.gates]
    yield from _family("objective_limit", "The promised bound, in the unit of the objective's name.", limits)
    seen = [(common | {"objective": gate.objective}, gate.observed) for step, common in labels for gate in step.gates]
    yield from _family("objective_value", "The measured value, in the unit of the objective's name.", seen)


def _latencies(step: StepData, common: Mapping[str, str]) -> Iterator[Sample]:
    for name, (unit, factor) in _LATENCIES.items():
        for percent in _PERCENTS:
            value = step.metrics.get(f"{name}_p{percent}_{unit}")
            labels = {**common, "latency": name, "quantile": f"{percent / 100:g}"}
            yield labels, None if value is None else value / factor


def _regressions(data: RunData) -> Iterator[str]:
    by_name = {step.name: step for step in data.steps}
    known = [one for one in data.record["regressions"] if one.get("name") in by_name]
    if not known:
        return
    states = [
        (_labels(data, by_name[one["name"]]) | {"state": state}, float(one.get("state") == state))
        for one in known
        for state in _STATES
    ]
    yield from _family("step_regression", "1 for the state compared with earlier runs, 0 for the others.", states)
    yield from _family(
        "baseline_value",
        "Median of the accepted runs, in the unit of the metric's name.",
        [
            (_labels(data, by_name[one["name"]]) | {"metric": metric}, judged.get("baseline"))
            for one in known
            for metric, judged in one.get("metrics", {}).items()
        ],
    )


def _common(data: RunData) -> dict[str, str]:
    return {"profile": str(data.record["profile"].get("name", ""))}


def _labels(data: RunData, step: StepData) -> dict[str, str]:
    level = f"{step.level:g}"
    return _common(data) | {"role": step.role, "model": step.model, "kind": step.kind, "level": level}


def _family(name: str, text: str, samples: Iterable[Sample], unit: str = "") -> Iterator[str]:
    """One metric family; a sample whose value is unknown is left out, and a family without samples too."""
    known = [(labels, value) for labels, value in samples if value is not None]
    if not known:
        return
    full = f"{_PREFIX}_{name}"
    yield f"# TYPE {full} gauge"
    if unit:
        yield f"# UNIT {full} {unit}"
    yield f"# HELP {full} {text}"
    for labels, value in known:
        inside = ",".join(f'{key}="{_escape(label)}"' for key, label in labels.items())
        yield f"{full}{{{inside}}} {_number(value)}"


def _escape(text: Any) -> str:
    return str(text).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return "+Inf" if math.isinf(value) else f"{value:.13g}"

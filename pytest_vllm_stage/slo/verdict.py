"""The verdict on a step: the judgement of each objective, and whether the measurement is valid."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.measurement.metrics import Metrics, json_number, summarise, with_effective_sizes
from pytest_vllm_stage.measurement.plausibility import find_impossible
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.slo.decision import ALPHA, SECOND_SHARE_OF_ALPHA, Outcome
from pytest_vllm_stage.slo.engine_load import EngineLoad
from pytest_vllm_stage.slo.gates import GateVerdict, Risks
from pytest_vllm_stage.slo.gateway import GATEWAY_FINDINGS, find_gateway_findings, judge_gateway_gate
from pytest_vllm_stage.slo.growth import HORIZON_S
from pytest_vllm_stage.slo.judgement import Judgement, judge_objectives
from pytest_vllm_stage.slo.objectives import GATEWAY_ADDED_TTFT, Objective, goodput_limits_s
from pytest_vllm_stage.slo.saturation import Saturation, saturation
from pytest_vllm_stage.slo.validity import Finding, findings

#: Incremented when a field changes its meaning or is removed, not when one is added.
SCHEMA_VERSION = 1
#: Findings that do not decide, but are part of the verdict's line.
_REMARKABLE = (
    "abandoned",
    "stalls",
    "engine_restarted",
    "several_servers",
    "measured_again",
    "measured_twice",
    "lost_rows",
    "buffered",
    "waiting",
    "ceiling",
    *GATEWAY_FINDINGS,
)


@dataclass(frozen=True)
class StepVerdict:
    """The verdict on a step.

    Attributes:
        step: Id of the step.
        outcome: Pass, fail, inconclusive or invalid.
        why: The reason in one line.
        gates: One per objective.
        findings: What was wrong or unexpected in the measurement.
        saturation: Whether the step saturated the server.
        saved_s: Sending time saved by an early decision.
        alpha: The risk of each pass, and of a false fail over all gates of the run.
    """

    step: str
    outcome: Outcome
    why: str
    gates: tuple[GateVerdict, ...]
    findings: tuple[Finding, ...]
    saturation: Saturation
    saved_s: float
    alpha: float

    def to_json(self) -> dict[str, Any]:
        """The verdict as JSON-able data; `verdict_from_json` is the inverse."""
        gates = [
            asdict(gate)
            | {"objective": gate.objective.key, "limit": gate.objective.limit, "observed": json_number(gate.observed)}
            for gate in self.gates
        ]
        return {"schema_version": SCHEMA_VERSION, **asdict(self), "gates": gates}


def verdict_from_json(data: Mapping[str, Any]) -> StepVerdict:
    """The inverse of `StepVerdict.to_json`.

    Raises:
        ConfigError: naming the field that is missing or wrong.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        gates = [gate | {"objective": {"key": gate["objective"], "limit": gate["limit"]}} for gate in data["gates"]]
        return TypeAdapter(StepVerdict).validate_python({**data, "gates": gates})
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"]))
        raise ConfigError(f"verdict: {field}: {first['msg']}") from None
    except (KeyError, TypeError) as error:
        raise ConfigError(f"verdict: gates: {error}") from None


def judge(
    measurement: Measurement,
    objectives: Sequence[Objective],
    *,
    alpha: float = ALPHA,
    gates: int | None = None,
    horizon_s: float = HORIZON_S,
    promised_rate: float | None = None,
) -> tuple[Metrics, StepVerdict]:
    """Derive the metrics and judge the step; a pure function, so saved samples are judged like live ones.

    Args:
        measurement: The measurement.
        objectives: The step's objectives; without any the verdict is inconclusive.
        alpha: Highest probability of passing a step with a broken objective, and of failing any step of a healthy run;
            a second measurement, after an inconclusive one, may spend `SECOND_SHARE_OF_ALPHA` of it.
        gates: Objectives over all steps of the run, which share the risk of a false fail; default: this step's.
        horizon_s: How long the objectives have to hold; a latency that rises beyond its limit within this time does not
            pass.
        promised_rate: Requests per second that the profile promises of the model; None where it promises none.

    Returns:
        The metrics and the verdict.
    """
    if measurement.first_outcome == Outcome.INCONCLUSIVE:
        alpha *= SECOND_SHARE_OF_ALPHA
    impossible = next(find_impossible(measurement), None)
    if impossible is not None:
        return _refuse(measurement, str(impossible), alpha)
    limits_s = goodput_limits_s(tuple(objectives))
    metrics = summarise(measurement.samples, measurement.step, limits_s=limits_s or None)
    risks = Risks.shared(alpha, gates or len(objectives))
    own = [one for one in objectives if one.key != GATEWAY_ADDED_TTFT]
    judged = judge_objectives(measurement, own, risks, observed=metrics.flat(), horizon_s=horizon_s)
    metrics = with_effective_sizes(metrics, measurement.samples, judged.effective_sizes(measurement.samples))
    added = [judge_gateway_gate(measurement, metrics, one) for one in objectives if one.key == GATEWAY_ADDED_TTFT]
    judged = replace(judged, gates=(*judged.gates, *added))
    remarks = _load_remarks(measurement, judged.load, judged.saturation, promised_rate)
    found = (*findings(measurement, metrics, objectives), *find_gateway_findings(measurement, metrics), *remarks)
    outcome, why = _overall(metrics, judged, found)
    saved_s = measurement.early_stop.saved_s if measurement.early_stop else 0.0
    verdict = StepVerdict(measurement.step.id, outcome, why, judged.gates, found, judged.saturation, saved_s, alpha)
    return metrics, verdict


def _refuse(measurement: Measurement, problem: str, alpha: float) -> tuple[Metrics, StepVerdict]:
    """An invalid verdict without numbers: a number derived from an impossible measurement might be believed."""
    empty = replace(measurement, samples=(), server=(), early_stop=None)
    finding = Finding("impossible", f"impossible measurement: {problem}", True)
    step = measurement.step
    verdict = StepVerdict(step.id, Outcome.INVALID, finding.text, (), (finding,), saturation(empty), 0.0, alpha)
    return summarise((), step), verdict


def _overall(metrics: Metrics, judged: Judgement, found: Sequence[Finding]) -> tuple[Outcome, str]:
    invalid = [finding.text for finding in found if finding.invalidates]
    if invalid:
        return Outcome.INVALID, "; ".join(invalid)
    if metrics.vacuous:
        kinds = _failures_text(metrics)
        return Outcome.FAIL, f"vacuous: not one token came from {metrics.requests} requests ({kinds})"
    outcome, reasons = judged.outcome, judged.reasons()
    if metrics.failed and any(gate.outcome is Outcome.FAIL for gate in judged.gates):
        reasons.append(f"failed requests: {_failures_text(metrics)}")
    reasons += [finding.text for finding in found if finding.name in _REMARKABLE]
    return outcome, "; ".join(reasons)


def _load_remarks(
    measurement: Measurement, load: EngineLoad, state: Saturation, promised_rate: float | None
) -> list[Finding]:
    """How the engine's batch limit affects the step: requests that wait, or a rate above the limit."""
    step, ceiling = measurement.step, load.ceiling_requests_per_s
    waiting = [Finding("waiting", state.message, False)] if state.message and not step.open_loop else []
    if ceiling is None:
        return waiting
    rates = {step.request_rate: "", promised_rate: "the promised "}
    above = [f"{text}{rate:g} requests/s" for rate, text in rates.items() if rate is not None and rate > ceiling]
    if not above:
        return waiting
    verb = "is" if len(above) == 1 else "are"
    text = f"{' and '.join(above)} {verb} above the batch limit: {load.ceiling_text()}"
    return [*waiting, Finding("ceiling", text, False)]


def _failures_text(metrics: Metrics) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in metrics.failed.items()) or "none failed"

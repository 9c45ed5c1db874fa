"""A run that was compared with earlier ones, made by hand, for tests of the reports."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from pytest_vllm_stage.slo.baselines import Baseline, append_baseline, make_key
from tests.unit.made_run import RUN_ID, make_run, steps

KEY = make_key(
    model="smollm2-135m", image_digest="", vllm_arguments="", gpu="", step="full-rate-5", prompt_set="", driver="d",
    driver_version="1",
)  # fmt: skip


def baseline(run_id: str, value: float, **changes: str) -> Baseline:
    return Baseline(run_id, 1000.0, KEY | changes, {"ttft_p50_ms": value}, "ok", accepted=True)


def make_run_with_history(tmp_path: Path) -> Path:
    """A run that is slower than five earlier ones; the history has other hardware and a later run too."""
    folder = tmp_path / "baselines"
    for number in range(5):
        append_baseline(folder / "local.jsonl", baseline(f"earlier-{number}", 100.0 + number))
    append_baseline(folder / "local.jsonl", baseline("other-gpu", 7.0, gpu="L4"))
    append_baseline(folder / "local.jsonl", replace(baseline(RUN_ID, 150.0), accepted=False))
    append_baseline(folder / "local.jsonl", baseline("later", 999.0))
    judged = {
        "kind": "regression", "name": "full-rate-5", "state": "regression", "fails": True, "runs": 5,
        "text": "full-rate-5: regression", "metrics": {"ttft_p50_ms": {"value": 150.0, "baseline": 102.0}},
    }  # fmt: skip
    settings = {"baselines": {"value": str(folder), "source": "--stage-baselines"}}
    return make_run(tmp_path / "run", judged, measurements=steps()[3:], exit_status=1, settings=settings)

"""What a step leaves, what a run makes of its steps, and the load tables of a profile."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.benchmark.artifacts import artifact_of, read_result, write_csv, write_step
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.measurement.samples_file import SUFFIX, read_measurement
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.run_verdict import judge_run
from pytest_vllm_stage.slo.verdict import StepVerdict, judge
from tests.unit.made_samples import failed, measurement, open_step, sample, with_ttfts

P99 = Objective("ttft_p99_ms", 500)


def test_saved_step_is_read_back_and_judged_again_identically(tmp_path: Path) -> None:
    samples = [sample(i, i / 10) if i % 50 else failed(i, i / 10) for i in range(600)]
    made = measurement(open_step(), samples, cpu_s=1.0, wall_s=61.0)
    metrics, verdict = judge(made, [P99])
    result = read_result(write_step(tmp_path, made, metrics, verdict))
    assert result["verdict"]["outcome"] == "fail"
    assert result["metrics"]["metrics"]["ttft_p99_ms"] == "inf"
    again = read_measurement(tmp_path / f"full-rate-10{SUFFIX}")
    assert judge(again, [P99]) == (metrics, verdict)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full-rate-10.json", "full-rate-10.samples.jsonl.gz"]


def test_csv_has_one_row_per_step(tmp_path: Path) -> None:
    rows = [artifact_of(made, *judge(made, [P99])) for made in (with_ttfts([0.1] * 400), with_ttfts([0.1] * 40))]
    with write_csv(tmp_path, rows).open() as file:
        read = list(csv.DictReader(file))
    assert [row["outcome"] for row in read] == ["pass", "inconclusive"]
    assert float(read[0]["ttft_p50_ms"]) == pytest.approx(100)
    assert read[0]["concurrency"] == ""


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": "other"}, "schema: must be vllm-stage/benchmark"),
        ({"schema_version": 7}, "schema_version: is 7; this reads 1"),
        ({"metrics": None}, "metrics: must be an object"),
        ({"metrics": {}}, "metrics.metrics: must be an object"),
        ({"verdict": {"outcome": "fine"}}, "verdict.outcome: must be one of pass, fail, inconclusive, invalid"),
    ],
)
def test_invalid_result_raises_with_the_field(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    made = with_ttfts([0.1] * 40)
    path = write_step(tmp_path, made, *judge(made, [P99]))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError) as caught:
        read_result(path)
    assert message in str(caught.value)


def test_missing_result_raises(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not a readable benchmark result"):
        read_result(tmp_path / "nothing.json")


def step_verdict(name: str, misses: int, gates: int) -> StepVerdict:
    slow = {i * 50 + 7 for i in range(misses)}
    made = with_ttfts([0.6 if i in slow else 0.1 for i in range(600)], role=name)
    return judge(made, [P99], gates=gates)[1]


def test_holms_rule_fails_a_step_that_its_own_share_of_alpha_could_not() -> None:
    """12 misses of 600 (p 0.02) are too few for a fifth of alpha, and enough after four certain fails."""
    verdicts = [step_verdict(f"s{i}", 12, 5) for i in range(1)]
    assert [found.outcome for found in verdicts] == [Outcome.INCONCLUSIVE]
    made = with_ttfts([0.6] * 600, role="broken")
    clear = [replace(judge(made, [P99], gates=5)[1], step=f"b{i}") for i in range(4)]
    together = judge_run([*verdicts, *clear])
    assert [found.outcome for found in together] == [Outcome.FAIL] * 5
    assert together[0].why == "ttft_p99_ms <= 500: 600, 12 misses of 600 requests; broken by Holm's rule over the run"
    assert together[1:] == clear
    assert judge_run([*verdicts, *clear], sequential=["s0-rate-10"])[0] == verdicts[0]


def test_holms_rule_leaves_healthy_and_invalid_steps_unchanged() -> None:
    healthy = [step_verdict(f"s{i}", 0, 5) for i in range(4)]
    open_gate = step_verdict("x", 12, 5)
    invalid = replace(open_gate, outcome=Outcome.INVALID, gates=(replace(open_gate.gates[0], p_broken=0.0),))
    assert judge_run([*healthy, invalid]) == [*healthy, invalid]
    assert judge_run([]) == []

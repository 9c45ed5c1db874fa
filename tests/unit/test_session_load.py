"""Which load steps a profile plans, what is promised of each, and what a run says of all its steps together."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.benchmark import plans, steps
from pytest_vllm_stage.benchmark.artifacts import read_result, write_step
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.journal import read_events
from pytest_vllm_stage.measurement.metrics import Metrics, summarise
from pytest_vllm_stage.measurement.samples import Measurement, Sample
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.publication import document
from pytest_vllm_stage.run.context import Run, RunIdentity
from pytest_vllm_stage.settings.config import StageConfig
from pytest_vllm_stage.settings.resolver import resolve_settings
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import measurement, open_step, sample, with_ttfts

PROFILE = """
name = "small"
overlay = "overlay"
namespace = "small"
[models.quantized]
inference_service = "q"
rate_limit_requests_per_s = 5
[models.quantized.slo]
ttft_p50_ms = 300
[models.quantized.slo.rate-5]
ttft_p50_ms = 400
e2e_latency_p50_s = 9
[models.full]
inference_service = "f"
[models.full.load]
rates = [1, 4]
concurrencies = [2]
[models.full.slo]
error_rate = false
[load]
rates = [1]
duration_s = 2
prompt_tokens = 64
output_tokens = 16
[slo]
error_rate = 0
ttft_p50_ms = 500
"""


@pytest.fixture
def config(tmp_path: Path) -> StageConfig:
    return made(tmp_path, PROFILE)


def made(tmp_path: Path, text: str, **cli: str) -> StageConfig:
    (tmp_path / "overlay").mkdir(exist_ok=True)
    (tmp_path / "overlay" / "kustomization.yaml").write_text("resources: []\n")
    (tmp_path / "small.toml").write_text(text)
    given = {"profile": "small.toml", **cli}
    return resolve_settings(given.get, {}, lambda _name: None, tmp_path)


def run_of(config: StageConfig, tmp_path: Path) -> Run:
    return Run(RunIdentity("20261124-101010-abcd", str(tmp_path / "run"), 1), lambda: config, lambda _line: None)


def test_the_promised_rate_is_measured_and_one_above_it_is_an_observation(config: StageConfig) -> None:
    planned = plans.steps_of(config, "run")
    assert [(one.step.id, one.observation) for one in planned] == [
        ("quantized-rate-1", False),
        ("quantized-rate-5", False),
        ("quantized-rate-10", True),
        ("full-rate-1", False),
        ("full-rate-4", False),
        ("full-concurrency-2", False),
    ]
    assert [one.step.model for one in planned] == ["q"] * 3 + ["f"] * 3


def test_the_load_tables_make_the_steps_of_a_model(config: StageConfig) -> None:
    steps = {one.step.id: one.step for one in plans.steps_of(config, "run")}
    rate, closed = steps["full-rate-4"], steps["full-concurrency-2"]
    assert (rate.arrivals, rate.request_rate, rate.planned_requests) == ("constant", 4, 8)
    assert (rate.model, rate.prompt_tokens, rate.output_tokens, rate.decide_early) == ("f", 64, 16, True)
    assert (closed.arrivals, closed.concurrency, closed.request_rate) == ("closed", 2, None)


def test_a_load_table_that_only_the_models_complete_is_refused_for_a_plain_server(tmp_path: Path) -> None:
    text = PROFILE.replace("rates = [1]\nduration_s = 2\n", "").replace("concurrencies = [2]", "duration_s = 2")
    text = text.replace("[models.quantized.slo]", "[models.quantized.load]\nduration_s = 2\n[models.quantized.slo]", 1)
    assert plans.steps_of(made(tmp_path, text), "run")
    with pytest.raises(ConfigError, match=r"profile small\.toml: load\.duration_s: required key is missing"):
        plans.check(made(tmp_path, text, endpoint="http://127.0.0.1:9"))


def test_inner_promises_override_outer_ones_and_false_takes_one_away(config: StageConfig) -> None:
    texts = {one.step.id: [o.text() for o in one.objectives] for one in plans.steps_of(config, "run")}
    assert texts["quantized-rate-1"] == ["error_rate <= 0", "ttft_p50_ms <= 300"]
    assert texts["quantized-rate-5"] == ["e2e_latency_p50_s <= 9", "error_rate <= 0", "ttft_p50_ms <= 400"]
    assert texts["full-rate-1"] == ["ttft_p50_ms <= 500"]
    assert plans.gates_of(plans.steps_of(config, "run")) == 2 + 3 + 3


def test_a_run_has_prompts_of_its_own_unless_a_seed_is_given(tmp_path: Path, config: StageConfig) -> None:
    one, other = (plans.steps_of(config, run_id)[0].step.seed for run_id in ("a", "b"))
    assert one != other
    given = made(tmp_path, PROFILE, load_seed="7")
    assert {plans.steps_of(given, run_id)[0].step.seed for run_id in ("a", "b")} == {7}


def test_only_whole_steps_where_they_are_asked_for(tmp_path: Path, config: StageConfig) -> None:
    assert all(one.step.decide_early for one in plans.steps_of(config, "run"))
    whole = made(tmp_path, PROFILE, full_duration="true")
    assert not any(one.step.decide_early for one in plans.steps_of(whole, "run"))


def test_a_plain_server_has_the_promises_of_the_model_that_is_named(tmp_path: Path) -> None:
    config = made(tmp_path, PROFILE, endpoint="http://127.0.0.1:9", model="q")
    planned = plans.steps_of(config, "run")
    assert [one.step.id for one in planned] == ["endpoint-rate-1", "endpoint-rate-5", "endpoint-rate-10"]
    assert [o.text() for o in planned[0].objectives] == ["error_rate <= 0", "ttft_p50_ms <= 300"]
    unnamed = made(tmp_path, PROFILE, endpoint="http://127.0.0.1:9")
    assert [one.step.id for one in plans.steps_of(unnamed, "run")] == ["endpoint-rate-1"]


@pytest.mark.parametrize(
    ("role", "rate", "model", "objectives", "observation"),
    [
        ("quantized", 5, "q", 3, False),
        ("quantized", 10, "q", 2, True),
        ("endpoint", 5, "q", 3, False),
        ("endpoint", 5, "other", 2, False),
        ("full", 1, "f", 1, False),
        ("unknown", 5, "q", 3, False),
    ],
)
def test_a_saved_step_is_judged_by_the_current_profile(
    config: StageConfig, role: str, rate: float, model: str, objectives: int, observation: bool
) -> None:
    planned = plans.saved(config, open_step(rate, role=role, model=model))
    assert (len(planned.objectives), planned.observation) == (objectives, observation)


def test_a_role_whose_name_begins_with_another_roles_keeps_its_own_promises(tmp_path: Path) -> None:
    """`full-int8-rate-5` was read as a step of `full`, and judged by the promises of `full`."""
    models = '[models.full]\ninference_service = "f"\n[models.full.slo]\nttft_p50_ms = 900\n'
    models += '[models.full-int8]\ninference_service = "i"\nrate_limit_requests_per_s = 2\n'
    config = made(tmp_path, PROFILE.split("[models.quantized]")[0] + models + "[slo]\nttft_p50_ms = 100\n")
    planned = plans.saved(config, open_step(5, role="full-int8", model="i"))
    assert planned.role == "full-int8"
    assert [objective.text() for objective in planned.objectives] == ["ttft_p50_ms <= 100"]
    assert planned.observation


def test_a_step_table_without_its_step_is_refused(tmp_path: Path) -> None:
    config = made(tmp_path, PROFILE.replace("slo.rate-5", "slo.rate-6"))
    with pytest.raises(
        ConfigError,
        match=r"models\.quantized\.slo\.rate-6: unknown load step \(did you mean rate-5\?\); valid: rate-1, rate-5",
    ):
        plans.check(config)


def measured(role: str, rate: float, slow: int, requests: int = 18) -> Measurement:
    """So many answers over an objective of 500 ms."""
    return with_ttfts([0.9] * slow + [0.1] * (requests - slow), rate, role=role)


def test_run_fails_a_step_that_its_own_verdict_leaves_undecided(tmp_path: Path) -> None:
    """13 misses of 18 have p = 0.048: undecided at half of 5 %, a fail once the other step has failed by itself."""
    text = PROFILE.split("[models.quantized]")[0] + (
        '[models.full]\ninference_service = "f"\n[slo]\nttft_p50_ms = 500\n'
        "[load]\nrates = [0.25, 0.5]\nduration_s = 72\nprompt_tokens = 64\noutput_tokens = 16\n"
    )
    run = run_of(made(tmp_path, text), tmp_path)
    objectives = plans.objectives_of(run.config, "full")
    for one in (measured("full", 0.25, 18), measured("full", 0.5, 13)):
        write_step(steps.folder_of(run), one, *judge(one, objectives, gates=2))
    before = read_result(steps.folder_of(run) / "full-rate-0.5.json")
    assert before["verdict"]["outcome"] == "inconclusive"
    (changed,) = steps.finish(run)
    assert "full-rate-0.5: fail: " in changed
    assert "broken by Holm's rule" in changed
    assert read_result(steps.folder_of(run) / "full-rate-0.5.json")["verdict"]["outcome"] == "fail"
    with (steps.folder_of(run) / "benchmarks.csv").open() as file:
        assert [row["outcome"] for row in csv.DictReader(file)] == ["fail", "fail"]
    assert steps.finish(run) == [changed], "the same again, from the verdict that the step had by itself"
    (event,) = [event for event in read_events(run.journal_path) if event["kind"] == "benchmark"]
    assert (event["name"], event["outcome"]) == ("full-rate-0.5", "fail")


def test_a_steps_metrics_are_computed_once_however_often_they_are_read(
    tmp_path: Path, config: StageConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the measurement to the journal, the reports, the run's verdict, the table and the publication."""
    counted: list[str] = []

    def counting(samples: Sequence[Sample], step: LoadStep, **limits: Any) -> Metrics:
        counted.append(step.id)
        return summarise(samples, step, **limits)

    for module in [one for name, one in sys.modules.items() if name.startswith("pytest_vllm_stage")]:
        if getattr(module, "summarise", None) is summarise:
            monkeypatch.setattr(module, "summarise", counting)
    run = run_of(config, tmp_path)
    planned = plans.steps_of(config, run.run_id)[0]
    made = measurement(planned.step, [sample(i, float(i)) for i in range(2)])
    result = steps.conclude(run, planned, made, plans.gates_of([planned]))
    steps.finish(run)
    (published,) = document.read_steps(steps.folder_of(run), "q", lambda artifact: artifact.outcome.value)
    assert document.values_of(published)["ttft_p50"] == pytest.approx(100)
    assert counted == [result.planned.step.id]
    document.derive_steps(steps.folder_of(run), "q", lambda artifact: artifact.outcome.value)
    assert counted == [result.planned.step.id] * 2, "only the witness derives the numbers once more"


def test_run_without_load_reports_nothing_about_load(tmp_path: Path, config: StageConfig) -> None:
    assert steps.finish(run_of(config, tmp_path)) == []


def test_unusable_observation_leaves_nothing_undecided(config: StageConfig) -> None:
    """Nothing was promised of it, so a strict run has nothing to fail for; its verdict still says invalid."""
    for rate, undecided in ((10, False), (5, True)):
        intime = measured("quantized", rate, 0)
        late = replace(intime, client=replace(intime.client, loop_lag_p99_ms=900.0))
        planned = plans.saved(config, open_step(rate, role="quantized", model="q"))
        result = steps.StepResult(planned, *judge(late, planned.objectives))
        assert (result.outcome, result.undecided) == ("invalid", undecided)

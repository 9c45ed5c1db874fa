"""Baselines, the regression gate with its promised error rates, and changes over the history."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.slo.baselines import (
    KEY_FIELDS,
    Baseline,
    append_baseline,
    check_comparable,
    comparable,
    make_key,
    read_baselines,
    why_none,
)
from pytest_vllm_stage.slo.regression import RegressionGate, State, accepts, gate, gate_all, how_much_worse
from pytest_vllm_stage.slo.trend import changes

STEADY = [100.0] * 10


def key(**changes: str) -> dict[str, str]:
    return make_key(**({name: name for name in KEY_FIELDS} | changes))


def baseline(run: str, accepted: bool = True, **changes: str) -> Baseline:
    return Baseline(run, 1.0, key(**changes), {"ttft_p50_ms": 100.0}, "ok", accepted)


@pytest.mark.parametrize(
    ("metric", "value", "reruns", "state", "fails"),
    [
        ("ttft_p50_ms", 109, (), "ok", False),
        ("ttft_p50_ms", 111, (), "suspicious", False),
        ("ttft_p50_ms", 111, (112, 113), "regression", True),
        ("ttft_p50_ms", 111, (100, 115), "ok", False),
        ("ttft_p50_ms", 111, (130,), "suspicious", False),
        ("ttft_p50_ms", 90, (), "improved", False),
        ("ttft_p50_ms", float("inf"), (float("inf"), float("inf")), "regression", True),
        ("output_tokens_per_s", 92, (), "ok", False),
        ("output_tokens_per_s", 90, (), "suspicious", False),
        ("output_tokens_per_s", 90, (89, 90), "regression", True),
        ("output_tokens_per_s", 120, (), "improved", False),
        ("output_tokens_per_s", 0, (0, 0), "regression", True),
    ],
)
def test_a_metric_is_judged_against_the_median_of_the_last_ten(
    metric: str, value: float, reruns: tuple[float, ...], state: str, fails: bool
) -> None:
    found = gate(metric, value, [500.0, 500.0, *STEADY], reruns=reruns)
    assert (found.state, found.fails) == (state, fails)
    assert found.baseline == 100


def test_missing_baseline_passes_and_missing_metric_fails() -> None:
    first = gate("ttft_p50_ms", 100, [99, 101])
    assert (first.state, first.fails) == (State.NO_BASELINE, False)
    assert "2 of 3 accepted comparable runs" in first.why
    missing = gate("ttft_p50_ms", None, STEADY)
    assert (missing.state, missing.fails) == (State.INVALID, True)
    invalid = gate("ttft_p50_ms", 500, STEADY, valid=False)
    assert (invalid.state, invalid.fails) == (State.INVALID, False)


def test_a_run_is_accepted_unless_it_is_worse_or_invalid() -> None:
    def of(state: State) -> RegressionGate:
        return RegressionGate("m", state, False, 1.0, 1.0, "")

    assert accepts([of(State.OK), of(State.IMPROVED), of(State.NO_BASELINE)])
    for state in (State.SUSPICIOUS, State.REGRESSION, State.INVALID):
        assert not accepts([of(State.OK), of(state)])


def test_every_gated_metric_is_judged_by_its_own_history() -> None:
    history = [{"ttft_p50_ms": 100.0, "output_tokens_per_s": 50.0}] * 4 + [{"ttft_p50_ms": 100.0}] * 2
    gates = gate_all({"ttft_p50_ms": 100.0}, ["ttft_p50_ms", "output_tokens_per_s", "itl_p50_ms"], history)
    assert [found.state for found in gates] == [State.OK, State.INVALID, State.INVALID]
    assert how_much_worse("x_ms", 0, 0) == 1.0


def false_alarm_and_catch(noise: float, slower: float, runs: int, seed: int) -> tuple[float, float]:
    """The whole gate over simulated runs whose P50 varies by ``noise`` between runs."""
    dice = random.Random(seed)

    def run(level: float) -> float:
        return level * dice.gauss(1, noise)

    def regression(level: float) -> bool:
        history = [run(100) for _ in range(10)]
        first = gate("ttft_p50_ms", run(level), history)
        if first.state is not State.SUSPICIOUS:
            return False
        return gate("ttft_p50_ms", first.value, history, reruns=[run(level), run(level)]).fails

    return sum(regression(100) for _ in range(runs)) / runs, sum(regression(100 * slower) for _ in range(runs)) / runs


def test_gate_rarely_raises_false_alarms_and_finds_most_20_percent_regressions() -> None:
    """With 5 % noise between runs; tests/bench prints the whole table."""
    false, caught = false_alarm_and_catch(0.05, 1.20, 2000, seed=1)
    assert false <= 0.015
    assert caught >= 0.80


def test_baselines_are_appended_and_read_back(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "full-rate-5.jsonl"
    assert read_baselines(path) == []
    for run in ("a", "b"):
        append_baseline(path, baseline(run))
    assert read_baselines(path) == [baseline("a"), baseline("b")]
    assert len(path.read_text().splitlines()) == 2


def test_a_file_that_was_read_before_is_read_from_its_end_unless_it_was_edited(tmp_path: Path) -> None:
    path = tmp_path / "local.jsonl"
    for run in ("a", "b"):
        append_baseline(path, baseline(run))
    assert [one.run_id for one in read_baselines(path)] == ["a", "b"]
    append_baseline(path, baseline("c"))
    assert [one.run_id for one in read_baselines(path)] == ["a", "b", "c"], "what another run appends is seen"
    path.write_text(path.read_text().replace('"a"', '"z"'))
    assert [one.run_id for one in read_baselines(path)] == ["z", "b", "c"], "what was read before may be edited"
    with path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(ConfigError, match=f"{path.name}:4: schema_version"):
        read_baselines(path)


def test_only_accepted_runs_of_an_equal_key_are_comparable() -> None:
    runs = [baseline("a"), baseline("b", accepted=False), baseline("c", gpu="L4"), baseline("d")]
    assert [run.run_id for run in comparable(runs, key())] == ["a", "d"]


def test_comparing_different_keys_raises_with_the_differing_fields() -> None:
    check_comparable(key(), key())
    with pytest.raises(ConfigError) as caught:
        check_comparable(key(), key(gpu="L4", driver_version="2"))
    assert "they differ in gpu: 'gpu' and 'L4'; driver_version: 'driver_version' and '2'" in str(caught.value)


def test_missing_baseline_names_the_fields_in_which_the_nearest_run_differs() -> None:
    runs = [baseline("old", gpu="L4", step="x"), baseline("near", gpu="")]
    assert why_none(runs, key()) == "no accepted run is comparable; in the nearest, near, gpu was 'unknown'"
    assert why_none([], key()) == "no run of this step has been accepted yet"


def test_a_key_has_exactly_its_fields() -> None:
    with pytest.raises(ConfigError, match=r"missing or unknown: \['colour', 'gpu'\]"):
        make_key(**{name: "" for name in KEY_FIELDS if name != "gpu"}, colour="blue")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 9}, ":1: schema_version: expected 1, got 9"),
        ({"at": "noon"}, ":1: at: expected "),
        ({"accepted": 1}, ":1: accepted: expected bool, got 1"),
        ({"metrics": {"ttft_p50_ms": None}}, ":1: metrics.ttft_p50_ms: expected a number, got None"),
        ({"key": {"model": 5}}, ":1: key.model: expected a string, got 5"),
    ],
)
def test_invalid_line_is_reported_with_file_line_and_field(
    tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    path = tmp_path / "lines"
    append_baseline(path, baseline("a"))
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigError) as caught:
        read_baselines(path)
    assert message in str(caught.value)


def test_change_point_is_found_at_its_position() -> None:
    dice = random.Random(3)
    history = [dice.gauss(100, 3) for _ in range(20)] + [dice.gauss(115, 3) for _ in range(15)]
    (found,) = changes(history)
    assert abs(found.at - 20) <= 1
    assert found.ratio == pytest.approx(1.15, abs=0.03)
    assert found.p <= 0.01


def test_two_change_points_are_found_separately() -> None:
    dice = random.Random(4)
    history = [dice.gauss(level, 2) for level in (100, 130, 160) for _ in range(12)]
    assert [round(change.at / 12) for change in changes(history)] == [1, 2]


def test_noise_has_hardly_any_change_points() -> None:
    dice = random.Random(5)
    found = sum(bool(changes([dice.gauss(100, 5) for _ in range(24)], seed=i)) for i in range(20))
    assert found <= 3
    assert changes([1.0] * 5) == []

"""What cannot have happened is never judged: the two files seen, each rule, and mutations of sound files."""

from __future__ import annotations

import copy
import functools
import gzip
import json
import math
import os
import random
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.load.guidellm.reading import read_report
from pytest_vllm_stage.measurement.metrics import Metrics
from pytest_vllm_stage.measurement.plausibility import find_impossible
from pytest_vllm_stage.measurement.samples import EarlyStop, Measurement, ServerReading
from pytest_vllm_stage.measurement.samples_file import read_measurement, write_measurement
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from pytest_vllm_stage.slo.baselines import KEY_FIELDS, Baseline, make_key, read_baselines
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.regression import gate
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import failed, measurement, open_step, sample

DATA = Path(__file__).parents[1] / "data" / "impossible"
#: `STAGE_MUTATIONS=10000 pytest tests/unit/test_plausibility.py` is the long version.
MUTATIONS = int(os.environ.get("STAGE_MUTATIONS", "300"))
OBJECTIVES = [Objective("ttft_p50_ms", 5000), Objective("error_rate", 0.5)]
REPORT_STEP = LoadStep("quantized", "m", CONSTANT, 6, 64, 16, request_rate=10.0)


def sound() -> Measurement:
    rows = [failed(i, i / 10) if i == 30 else sample(i, i / 10, cached_tokens=16) for i in range(60)]
    server = [ServerReading(float(at), 1, 0, 0.5, 10.0 + at, 5.0, 100.0 + 160 * at) for at in range(7)]
    return measurement(open_step(duration_s=6.0), rows, server, cpu_s=1.0, wall_s=6.2)


def with_sample(**changes: Any) -> Measurement:
    made = sound()
    return replace(made, samples=(*made.samples[:7], replace(made.samples[7], **changes), *made.samples[8:]))


def test_a_sound_measurement_is_possible() -> None:
    assert list(find_impossible(sound())) == []
    assert judge(sound(), OBJECTIVES)[1].outcome is Outcome.PASS


def test_a_first_token_before_the_sending_is_refused_by_file_line_and_field() -> None:
    with pytest.raises(
        ConfigError, match=r"quantized-rate-1\.samples\.jsonl\.gz:2: sample\.token_times_s: begin at -0"
    ):
        read_measurement(DATA / "quantized-rate-1.samples.jsonl.gz")


def test_a_first_token_at_time_zero_is_refused_by_file_request_and_field() -> None:
    with pytest.raises(
        ConfigError, match=r"zero-times\.json: .*successful\[3\]\.info\.timings\.first_token_iteration is"
    ):
        read_report(DATA / "guidellm-zero-times.json", REPORT_STEP)


def test_a_live_report_with_times_of_zero_makes_the_step_invalid() -> None:
    live = read_report(DATA / "guidellm-zero-times.json", REPORT_STEP, refuse_impossible=False)
    metrics, verdict = judge(live, OBJECTIVES)
    assert verdict.outcome is Outcome.INVALID
    assert verdict.why.startswith("impossible measurement: request 3: token_times_s begin at -")
    assert metrics.latencies == {}


IMPOSSIBLE: dict[str, tuple[Measurement, str]] = {
    "sent early": (with_sample(sent_s=0.6), "request 7: sent_s (0.600000 s) is before scheduled_s"),
    "token early": (with_sample(sent_s=0.9), "request 7: token_times_s begin at 0.8"),
    "token at once": (with_sample(sent_s=0.8), "request 7: token_times_s begin at 0.8"),
    "tokens out of order": (with_sample(token_times_s=(0.81, 0.8, 0.82)), "request 7: token_times_s are not in asc"),
    "end before the last token": (with_sample(end_s=0.9), "request 7: end_s (0.900000 s) is before the last token"),
    "not a number": (with_sample(end_s=math.nan), "request 7: token_times_s or another time"),
    "infinite": (with_sample(token_times_s=(math.inf,)), "request 7: token_times_s or another time"),
    "before the step": (with_sample(scheduled_s=-5.0), "request 7: scheduled_s (-5 s) is before the step's start"),
    "no token": (with_sample(token_times_s=()), "request 7: token_times_s is empty, and the answer counts as whole"),
    "not sent": (with_sample(sent_s=None), "request 7: sent_s is null, and the answer counts as whole"),
    "status": (with_sample(status=500), "request 7: status is 500, and the answer counts as whole"),
    "prompt": (with_sample(prompt_tokens=65), "request 7: prompt_tokens is 65 instead of 64"),
    "output": (with_sample(output_tokens=1), "request 7: output_tokens is 1 instead of 16"),
    "cached": (with_sample(cached_tokens=65), "request 7: cached_tokens is 65, and the prompt has 64"),
    "negative": (with_sample(prompt_tokens=-64), "request 7: prompt_tokens is -64"),
    "other plan": (with_sample(expected_output_tokens=8, output_tokens=8), "request 7: expected_output_tokens"),
    "repeated": (with_sample(index=6), "request 7: index expected 7, got 6"),
    "other step": (with_sample(step="other"), "request 7: step expected 'full-rate-10', got 'other'"),
    "epoch 0": (replace(sound(), started_at=0.0), "header: started_at (0) is before"),
    "future": (replace(sound(), started_at=4e9), "header: started_at (4000000000 and 6 s) is in the future"),
    "not a time": (replace(sound(), started_at=math.nan), "header: started_at (nan)"),
    "too many": (replace(sound(), step=open_step(duration_s=3.0)), "header: step plans 30 requests (rate x duration)"),
    "client": (replace(sound(), client=replace(sound().client, cpu_s=-1.0)), "client: cpu_s is -1"),
    "stopped": (replace(sound(), early_stop=EarlyStop(3.0, 30, "pass", 3.0)), "early_stop: requests is 30, and 60"),
    "saved": (replace(sound(), early_stop=EarlyStop(3.0, 60, "pass", 9.0)), "early_stop: saved_s is 9.0 of a step"),
    "reading": (replace(sound(), server=(ServerReading(0.0, -1),)), "server reading 0: running is -1"),
    "share": (replace(sound(), server=(ServerReading(0.0, 1, 0, 1.5),)), "server reading 0: kv_cache_usage is 1.5"),
    "TTFT": (replace(sound(), server=(ServerReading(0.0, 1, ttft_sum_s=-1),)), "server reading 0: ttft_sum_s is -1"),
    "gaps": (
        replace(sound(), server=(ServerReading(0.0, 1, token_gap_count=math.nan),)),
        "server reading 0: token_gap_count is nan",
    ),
    "hits": (replace(sound(), server=(ServerReading(0.0, 1, 0, 0, 5, 6),)), "server reading 0: prefix_cache_hits"),
    "order": (replace(sound(), server=(ServerReading(2.0), ServerReading(1.0))), "server reading 1: at_s (1 s) is be"),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_what_cannot_have_happened_makes_a_step_invalid_and_leaves_no_number(name: str) -> None:
    made, text = IMPOSSIBLE[name]
    metrics, verdict = judge(made, OBJECTIVES)
    assert verdict.outcome is Outcome.INVALID
    assert verdict.why.startswith(f"impossible measurement: {text}")
    assert metrics.latencies == {}
    json.dumps([metrics.to_json(), verdict.to_json()], allow_nan=False)


def test_what_is_only_slow_late_or_failed_is_possible() -> None:
    made = with_sample(sent_s=3.0, token_times_s=tuple(9.0 + i for i in range(16)), end_s=24.5)
    assert not list(find_impossible(made))
    assert not list(find_impossible(replace(made, samples=tuple(failed(i, i / 10, sent_s=None) for i in range(60)))))


# Mutations: one number of a sound file is made another; what then passes must have metrics that can be.


def numbers_of(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all numbers of a document."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from numbers_of(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value):
            yield from numbers_of(inner, (*path, index))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path


def mutate(document: Any, path: tuple[Any, ...], change: Callable[[Any], Any]) -> None:
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = change(place[path[-1]])


CHANGES: list[Callable[[Any], Any]] = [
    lambda value: 0,
    lambda value: -value,
    lambda value: -1,
    lambda value: value * 1000,
    lambda value: value / 1000,
    lambda value: value + 0.05,
    lambda value: value - 0.05,
    lambda value: value + 1,
    lambda value: value - 1,
    lambda value: math.nan,
    lambda value: math.inf,
    lambda value: -math.inf,
    lambda value: 1e308,
    lambda value: 10**400,
    lambda value: None,
    lambda value: str(value),
    lambda value: [value],
    lambda value: True,
    lambda value: {},
]


BASELINES = [
    Baseline(f"run-{i}", 1790000000.0 + i, make_key(**dict.fromkeys(KEY_FIELDS, "x")), metrics, "ok", True)
    for i, metrics in enumerate([{"ttft_p50_ms": 100.0 + i, "output_tokens_per_s": 50.0} for i in range(5)])
]


@settings(derandomize=True, deadline=None, max_examples=MUTATIONS)
@given(seed=st.integers(0, 2**32))
def test_no_mutated_baseline_has_an_impossible_metric_or_crashes_the_gate(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dice = random.Random(seed)
    lines = [{"schema_version": 1, **asdict(one)} for one in BASELINES]
    place = dice.randrange(len(lines))
    mutate(lines[place], dice.choice(list(numbers_of(lines[place]))), dice.choice(CHANGES))
    path = tmp_path_factory.getbasetemp() / "mutated.jsonl"
    path.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    refusal, read = "", []
    try:
        read = read_baselines(path)
    except ConfigError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith(f"{path}:{place + 1}: ")
    assert all(0 <= value < math.inf for one in read for value in one.metrics.values())
    for metric, value in BASELINES[0].metrics.items():
        gate(metric, value, [one.metrics[metric] for one in read])  # it must not raise


OUTCOMES = ("refused", *(outcome.value for outcome in Outcome))


def check_possible(metrics: Metrics, made: Measurement) -> None:
    """What a passing step's numbers must look like."""
    flat = metrics.flat()
    for name, value in flat.items():
        assert value is None or value >= 0, (name, value)
    assert 0 <= metrics.error_rate <= 1
    assert flat["failed"] <= metrics.requests == len(made.samples)  # type: ignore[operator]
    for latency in metrics.latencies.values():
        values = [latency.percentiles[percent].value for percent in (50, 90, 95, 99)]
        assert values == sorted(values)
        assert latency.mean is not None
        assert 0 <= latency.mean <= (latency.maximum or 0) < 3600e3
    assert metrics.latencies["ttft"].percentiles[50].value > 0
    assert metrics.requests_per_s <= 2 * (made.step.request_rate or math.inf)


def judged(read: Callable[[], Measurement]) -> str:
    """The outcome; a refusal names the file."""
    try:
        made = read()
    except ConfigError as error:
        return "refused" if "mutated" in str(error) else f"refused without the file's name: {error}"
    metrics, verdict = judge(made, OBJECTIVES)
    if verdict.outcome is Outcome.PASS:
        check_possible(metrics, made)
    return verdict.outcome.value


@functools.cache
def sound_lines() -> list[Any]:
    with tempfile.TemporaryDirectory() as folder:
        write_measurement(sound(), Path(folder) / "samples")
        return [json.loads(line) for line in gzip.decompress((Path(folder) / "samples").read_bytes()).splitlines()]


@settings(derandomize=True, deadline=None, max_examples=MUTATIONS)
@given(seed=st.integers(0, 2**32))
def test_no_mutated_samples_file_passes_with_an_impossible_metric_or_crashes(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dice = random.Random(seed)
    document = copy.deepcopy(sound_lines())
    # The header and the end are two lines of seventy, and have the numbers that count for all of them.
    place = dice.choice([0, len(document) - 1, dice.randrange(len(document)), dice.randrange(len(document))])
    mutate(document[place], dice.choice(list(numbers_of(document[place]))), dice.choice(CHANGES))
    path = tmp_path_factory.getbasetemp() / "mutated.samples"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, document)).encode(), 1))
    assert judged(lambda: read_measurement(path)) in OUTCOMES


@functools.cache
def sound_report() -> Any:
    """The report with a possible time for each first token."""
    report = json.loads((DATA / "guidellm-zero-times.json").read_text())
    for request in report["benchmarks"][0]["requests"]["successful"]:
        times = request["info"]["timings"]
        times["first_token_iteration"] = times["first_output_token_iteration"] = times["first_request_iteration"]
    return report


def test_the_report_without_a_mutation_passes(tmp_path: Path) -> None:
    path = tmp_path / "mutated.json"
    path.write_text(json.dumps(sound_report()))
    assert judged(lambda: read_report(path, REPORT_STEP)) == "pass"


@settings(derandomize=True, deadline=None, max_examples=MUTATIONS)
@given(seed=st.integers(0, 2**32))
def test_no_mutated_report_passes_with_an_impossible_metric_or_crashes(
    seed: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    dice = random.Random(seed)
    report = copy.deepcopy(sound_report())
    mutate(report, dice.choice(list(numbers_of(report))), dice.choice(CHANGES))
    path = tmp_path_factory.getbasetemp() / "mutated.json"
    path.write_text(json.dumps(report))
    assert judged(lambda: read_report(path, REPORT_STEP)) in OUTCOMES

"""Why requests failed around a disruption, and the table of a run's disruptions."""

from __future__ import annotations

from typing import Any

from pytest_vllm_stage.measurement.samples import ServerReading
from pytest_vllm_stage.report import disruption_table
from pytest_vllm_stage.resilience.carry_out import find_counter_resets
from pytest_vllm_stage.resilience.causes import explain
from pytest_vllm_stage.resilience.disruptions import grown
from pytest_vllm_stage.resilience.window import Marks, Promise, judge_window
from pytest_vllm_stage.stage.objects import Object
from tests.unit.made_samples import measurement, open_step
from tests.unit.test_resilience_window import RATE, between, traffic

MARKS = Marks(5.0, 10.0)
NOTHING_FAILS = Promise(failed_requests_max=0, settle_s=3)


def deployment(strategy: str = "RollingUpdate", replicas: int = 1, **container: Any) -> Object:
    containers = [{"name": "kserve-container", **container}]
    spec = {"replicas": replicas, "strategy": {"type": strategy}, "template": {"spec": {"containers": containers}}}
    return {"kind": "Deployment", "spec": spec}


def causes(bad: set[int], name: str, found: Object, idle: list[str] | None = None) -> list[str]:
    samples = traffic(bad)
    verdict = judge_window(measurement(open_step(RATE, 30), samples), MARKS, NOTHING_FAILS)
    return explain(samples, MARKS, NOTHING_FAILS, verdict, {"name": name, "deployment": found, "idle_pods": idle})


def test_a_rollout_without_a_pre_stop_hook_is_named() -> None:
    (line,) = causes(between(9, 10), "rollout", deployment())
    assert line.startswith("container kserve-container has no preStop hook: ")
    assert "(6 requests failed)" in line
    hook = {"preStop": {"sleep": {"seconds": 5}}}
    assert causes(between(9, 10), "rollout", deployment(lifecycle=hook)) == []


def test_the_strategy_or_the_single_replica_explains_more_than_a_missing_hook() -> None:
    (line,) = causes(between(9, 10), "rollout", deployment("Recreate"))
    assert line == "strategy Recreate ends every old pod before a new one starts: 6 requests found none"
    (line,) = causes(between(9, 10), "pod", deployment())
    assert line.startswith("the service has one replica: ")
    (line,) = causes(between(9, 10), "pod", deployment(replicas=2))
    assert "preStop" in line


def test_a_readiness_probe_that_lies_is_named() -> None:
    """Every pod was Ready at 10 s, and requests failed until 15 s."""
    (line,) = causes(between(9, 15), "rollout", deployment())
    assert line == (
        "15 requests failed or were slow later than 2 s after every pod was Ready, up to 5.0 s: "
        "the readiness probe reports Ready before the engine serves"
    )


def test_a_killed_engine_is_not_explained_by_hooks() -> None:
    assert causes(between(5, 9), "engine", deployment()) == []


def test_a_ready_pod_that_serves_nothing_is_named_first() -> None:
    lines = causes({0, 2, 4, 30}, "pod", deployment(replicas=2), ["full-predictor-a"])
    assert lines[0] == "pod full-predictor-a was Ready before the disruption and served no request"


def test_a_window_that_keeps_its_promises_is_not_explained() -> None:
    assert causes(set(), "rollout", deployment()) == []


def test_requests_of_a_restarted_engine_count_from_zero() -> None:
    before = {"a": 10.0, "b": 10.0, "c": None}
    assert grown(before, {"a": 12.0, "b": 3.0, "c": 5.0, "d": 4.0, "e": None}) == {"a": 2.0, "b": 3.0, "d": 4.0}


def test_the_table_has_a_row_per_disruption_and_says_what_broke() -> None:
    window = {"requests": 332, "failed": 143, "recovery_s": 11.51, "ttft_p99_ms": None}
    failed = {
        "role": "full",
        "disruption": "rollout",
        "outcome": "fail",
        "why": "143 failed",
        "window": window,
    }
    good = {**failed, "disruption": "pod", "outcome": "pass", "window": {**window, "failed": 0, "ttft_p99_ms": 91.2}}
    data = {"disruptions": [{**failed, "problems": ["no preStop hook"]}, {**good, "problems": []}]}
    assert disruption_table.lines(data) == [
        "disruption    requests  failed  recovery s  TTFT P99 ms  verdict",
        "full rollout  332       143     11.5        -            FAIL",
        "full pod      332       0       11.5        91           pass",
        "full rollout: 143 failed",
        "full rollout: no preStop hook",
        "",
    ]
    assert disruption_table.lines({"disruptions": []}) == []


def test_a_restart_of_the_engine_shows_in_its_counters() -> None:
    samples = traffic(set())
    grows = [ServerReading(float(at_s), 1, 0, generation_tokens=16.0 * at_s) for at_s in range(1, 30)]
    restarts = [*grows[:10], ServerReading(12.0, 1, 0, generation_tokens=16.0), *grows[13:]]
    step = open_step(RATE, 30)
    assert find_counter_resets(measurement(step, samples, grows)) == []
    (line,) = find_counter_resets(measurement(step, samples, restarts))
    assert "counters fell" in line

"""The summary fits a terminal, and one cause of many failures is one line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pytest_vllm_stage.report import slo_table, terminal


def percentile(value: float, *, interval: bool) -> dict[str, Any]:
    return {
        "value": value,
        "ci95": [value * 0.9, value * 1.1] if interval else None,
        "needs": None if interval else 368,
    }


def benchmark(name: str, why: str = "", outcome: str = "pass") -> dict[str, Any]:
    percentiles = {f"ttft_p{percent}_ms": percentile(30413.0, interval=percent == 50) for percent in (50, 90, 99)}
    percentiles["e2e_latency_p90_s"] = percentile(119.0, interval=True)
    metrics = {"requests": 1200, "output_tokens_per_s": 1768.2, "running_mean": 23.4, "running_max": 24.0}
    return {
        "name": name,
        "outcome": outcome,
        "why": why,
        "objectives": ["ttft_p90_ms <= 2000", "tpot_p90_ms <= 100", "error_rate <= 0"],
        "saved_s": 0.0,
        "gpu_metrics": True,
        "engine_metrics": True,
        "result": {"percentiles": percentiles, "metrics": metrics},
    }


def record(**changes: Any) -> dict[str, Any]:
    data: dict[str, Any] = {
        "simulated": False,
        "settings": {"endpoint": {"value": None}},
        "profile": {"name": "local", "namespace": "vllm-stage"},
        "reused": None,
        "versions": {"kubernetes": "v1.34.4", "kserve": "v0.20.0"},
        "tests": [],
        "steps": {f"step {n}": 100.0 for n in range(12)},
        "started_at": 0.0,
        "ended_at": 10.0,
        "exit_status": 1,
        "publications": [],
        "swept": [],
        "restarts": [],
        "addresses": [],
        "authorities": None,
        "leftovers": [],
        "kept": None,
        "benchmarks": [],
        "capacities": [],
        "regressions": [],
        "load_access": [],
    }
    return data | changes


def failed(name: str, reason: str) -> dict[str, Any]:
    return {"name": name, "outcome": "failed", "reason": reason, "when": "call", "start": 0.0, "duration_s": 1.0}


def test_no_line_is_wider_than_the_terminal() -> None:
    why = "25 requests/s is past capacity, about 1.1 at this length (48/4 tokens): " * 4
    steps = [benchmark("quantized-concurrency-25"), benchmark("full-rate-10", why, "fail")]
    data = record(benchmarks=steps, tests=[failed(f"test_{n}", why) for n in range(3)])
    shown = terminal.summary(data, Path("reports/run"))
    assert len(shown) > 15
    assert max(map(len, shown)) <= slo_table.WIDTH


def test_tests_that_overlap_in_workers_count_once() -> None:
    tests = [failed(f"test_{n}", "no") | {"start": start, "duration_s": 3.0} for n, start in enumerate((5.0, 1.0, 2.0))]
    shown = " ".join(terminal.summary(record(tests=tests), Path("reports/run")))
    assert "tests 7.0 s, whole run 10.0 s" in " ".join(shown.split())


def test_effective_sample_size_follows_the_requests_where_it_is_smaller() -> None:
    shown = benchmark("full-rate-10")
    shown["result"]["percentiles"]["ttft_p50_ms"] |= {"n": 1200, "effective_n": 85}
    lines = slo_table.lines(record(benchmarks=[shown, benchmark("full-rate-5")]))
    assert "full-rate-10  1200 (85)  " in lines[1]
    assert "full-rate-5        1200  " in lines[2]
    assert "n: the effective sample size follows where requests depend on each other" in lines
    assert not [line for line in slo_table.lines(record(benchmarks=[benchmark("a")])) if line.startswith("n: ")]


def test_percentile_of_too_few_requests_is_marked_and_explained() -> None:
    shown = slo_table.lines(record(benchmarks=[benchmark("full-rate-10")]))
    assert "30413 [27372-33454]  30413?" in shown[1]
    assert "? too few requests for a 95 % confidence interval" in shown


def test_percentile_of_abandoned_requests_is_marked_as_a_lower_bound_and_explained() -> None:
    one = benchmark("full-rate-25")
    one["result"]["percentiles"]["ttft_p99_ms"]["at_least"] = True
    shown = slo_table.lines(record(benchmarks=[one]))
    assert "30413?  >30413" in shown[1]
    assert "> at least: requests were abandoned when the step ended early" in shown
    assert not [line for line in slo_table.lines(record(benchmarks=[benchmark("a")])) if line.startswith("> ")]


def test_failures_of_one_cause_are_one_line() -> None:
    cause = "stage failed: PVC m is Pending\n  next: kubectl get pvc"
    tests = [failed("test_a", cause), failed("test_b", cause), failed("test_c", "expected a, got b")]
    tests += [failed(f"test_{n}", f"reply = Reply()\n>   assert ok\nE   AssertionError: HTTP {n}") for n in (500, 503)]
    shown = [
        line
        for line in terminal.summary(record(tests=tests), Path("reports/run"))
        if "test_" in line or "FAILED" in line
    ]
    assert shown == [
        "FAILED    2 tests: stage failed: PVC m is Pending",
        "          test_a and 1 more",
        "FAILED    2 tests: HTTP 500",
        "          test_500 and 1 more",
    ]


def test_folder_of_diagnostics_is_named_where_there_is_one(tmp_path: Path) -> None:
    assert not any("diagnosed" in line for line in terminal.summary(record(), tmp_path))
    (tmp_path / "diagnostics").mkdir()
    assert any(line.startswith("diagnosed") for line in terminal.summary(record(), tmp_path))


def test_the_way_to_each_server_is_one_line_where_it_is_not_the_clusters_service(tmp_path: Path) -> None:
    near = {"name": "full", "way": "Service", "url": "http://10.0.0.7:80"}
    far = {"name": "minio", "way": "Route", "url": "https://minio.apps.test"}
    none = {"name": "other", "way": "", "url": ""}
    assert not any(line.startswith("reached") for line in terminal.summary(record(addresses=[near]), tmp_path))
    lines = terminal.summary(record(addresses=[near, far, none]), tmp_path)
    (line,) = [line for line in lines if line.startswith("reached")]
    assert "full: Service http://10.0.0.7:80, minio: Route" in line


def test_authorities_that_may_not_be_read_are_named_and_those_that_do_not_exist_are_not(tmp_path: Path) -> None:
    absent = "configmap stage/openshift-service-ca.crt (key service-ca.crt): does not exist"
    refused = (
        "configmap openshift-config-managed/default-ingress-cert (key ca-bundle.crt): missing right: get configmaps"
    )
    for lines, shown in (([absent], False), ([absent, refused], True)):
        text = " ".join(" ".join(terminal.summary(record(authorities={"refused": lines}), tmp_path)).split())
        assert ("authorities that this user may not read: configmap openshift-config-managed/" in text) is shown
        assert "openshift-service-ca.crt" not in text


def test_a_server_that_ended_stands_above_the_failures_that_follow_from_it() -> None:
    tests = [failed("test_a", "connection refused"), failed("test_b", "connection refused")]
    restarts = ["engine of full died at 22:46:13: ValueError: a; container c of pod p was restarted once"]
    shown = terminal.summary(record(tests=tests, restarts=restarts), Path("reports/run"))
    assert shown[:2] == [f"RESTARTED {restarts[0]}", "FAILED    2 tests: connection refused"]


def test_an_engine_without_its_kernels_is_a_stand_in(tmp_path: Path) -> None:
    lines = terminal.summary(record(no_avx512=True), tmp_path)
    assert lines[0].startswith("STAND-IN  this processor has no AVX-512")
    assert not [line for line in terminal.summary(record(), tmp_path) if line.startswith("STAND-IN")]

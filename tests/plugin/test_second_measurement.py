"""suites/slo measures an undecided step once more: a disturbance that has passed fails no strict run."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.forked_runs import run_pytest
from tests.unit.sim_engine import Sim, running_sim

SUITE = Path(__file__).parents[2] / "suites" / "slo"
STEP = "endpoint-rate-14"
#: A P90 of 42 requests passes without a miss and fails with 9.
PROFILE = """
name = "small"
overlay = "overlay"
namespace = "small"
[models.quantized]
inference_service = "sim"
[load]
rates = [14]
duration_s = 3
prompt_tokens = 64
output_tokens = 4
warmup_requests = 2
second_times = {times}
[slo]
ttft_p90_ms = 500
"""
#: The requests of the first quarter of a second of each stall miss: 3 or 4 in each of a step's 3 s.
DISTURBED = {"fault": "stall", "duration_s": 0.75, "every_s": 3.0}
UNDECIDED = Path("run", "benchmarks", "undecided", f"{STEP}.json")


@pytest.fixture
def sim() -> Iterator[Sim]:
    with running_sim("--ttft-ms", "10", "--itl-ms", "3") as engine:
        engine.faults(DISTURBED)
        yield engine


def run(place: pytest.Pytester, engine: Sim) -> pytest.RunResult:
    return run_pytest(
        place, SUITE, "-p", "no:cacheprovider", f"--rootdir={place.path}", f"--stage-profile={place.path}/small.toml",
        f"--stage-run-dir={place.path}/run", f"--stage-endpoint={engine.url}", "--stage-model=sim", "--stage-strict",
        "--stage-full-duration", timeout=300,
    )  # fmt: skip


def read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def test_a_disturbance_that_has_passed_fails_no_strict_run(bare_place: pytest.Pytester, sim: Sim) -> None:
    (bare_place.path / "small.toml").write_text(PROFILE.format(times=2))
    with ThreadPoolExecutor(1) as pool:
        finished = pool.submit(run, bare_place, sim)
        await_file(bare_place.path / UNDECIDED)
        sim.faults()
        result = finished.result()
    result.assert_outcomes(passed=1)
    result.stderr.fnmatch_lines([f"*{STEP}: inconclusive (ttft_p90_ms <= 500: *), *measured once more, for 6 s"])
    result.stdout.fnmatch_lines([f"{STEP}: measured twice, the second time for 6 s: inconclusive at first"])
    second = read(bare_place.path / "run" / "benchmarks" / f"{STEP}.json")
    first = read(bare_place.path / UNDECIDED)
    assert (first["verdict"]["outcome"], second["verdict"]["outcome"]) == ("inconclusive", "pass")
    assert second["facts"]["undecided_before"] == {"outcome": "inconclusive", "why": first["verdict"]["why"]}
    assert second["step"]["seed"] != first["step"]["seed"], "the same prompts would be in the prefix cache"

    judged_again = run_pytest(
        bare_place, SUITE, "-p", "no:cacheprovider", f"--rootdir={bare_place.path}",
        f"--stage-profile={bare_place.path}/small.toml", f"--stage-results={bare_place.path}/run",
        f"--stage-run-dir={bare_place.path}/again",
    )  # fmt: skip
    judged_again.assert_outcomes(passed=1)
    again = read(bare_place.path / "again" / "benchmarks" / f"{STEP}.json")
    assert again["verdict"]["alpha"] == second["verdict"]["alpha"] == pytest.approx(0.01)


def test_a_profile_may_forbid_a_second_measurement(bare_place: pytest.Pytester, sim: Sim) -> None:
    (bare_place.path / "small.toml").write_text(PROFILE.format(times=0))
    result = run(bare_place, sim)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines([f"*{STEP}: inconclusive: ttft_p90_ms <= 500: *"])
    assert not (bare_place.path / UNDECIDED).exists()


def await_file(path: Path) -> None:
    until = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < until, f"no {path.name} after 60 s, only {sorted(path.parents[1].rglob('*'))}"
        time.sleep(0.02)

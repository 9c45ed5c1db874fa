"""--stage-baselines against the simulated engine: what is slower than it used to be, measured again, fails."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.forked_runs import run_pytest
from tests.unit.sim_engine import Sim, running_sim

SUITES = Path(__file__).parents[2] / "suites"

PROFILE = """
name = "small"
overlay = "overlay"
namespace = "small"
[models.quantized]
inference_service = "sim"
[load]
rates = [5, 10]
duration_s = 1.5
prompt_tokens = 64
output_tokens = 4
warmup_requests = 2
[slo]
error_rate = 0
ttft_p50_ms = 100000
[regression]
metrics = ["ttft_p50_ms"]
worse = {worse}
"""
#: Too short for a correlation or a trend of their requests to be estimated, which a busy machine could cause.
STEPS = ["endpoint-rate-5", "endpoint-rate-10"]
#: What the lines of all runs so far have in their key's prompt_set.
KEY_FIELDS = {
    "api", "arrivals", "decide_early", "duration_s", "output_tokens", "prompt_tokens", "request_rate",
    "request_timeout_s", "shared_prefix_tokens", "warmup_requests",
}  # fmt: skip
#: The slow engine takes ten times as long as the fast one: no load of this machine hides or causes that.
WORSE = 3


@pytest.fixture(scope="module")
def fast() -> Iterator[Sim]:
    with running_sim("--ttft-ms", "50", "--itl-ms", "3") as engine:
        yield engine


@pytest.fixture(scope="module")
def slow() -> Iterator[Sim]:
    with running_sim("--ttft-ms", "500", "--itl-ms", "3") as engine:
        yield engine


@pytest.fixture
def place(bare_place: pytest.Pytester) -> pytest.Pytester:
    (bare_place.path / "small.toml").write_text(PROFILE.format(worse=WORSE))
    return bare_place


def run(place: pytest.Pytester, engine: Sim, *options: str, folder: str = "run") -> pytest.RunResult:
    return run_pytest(
        place, SUITES / "slo", "-p", "no:cacheprovider", f"--rootdir={place.path}",
        f"--stage-profile={place.path}/small.toml",
        f"--stage-run-dir={place.path / folder}", f"--stage-endpoint={engine.url}", "--stage-model=sim",
        f"--stage-baselines={place.path / 'baselines'}", *options, timeout=300,
    )  # fmt: skip


def file(place: pytest.Pytester) -> Path:
    return place.path / "baselines" / "small.jsonl"


def lines(place: pytest.Pytester) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file(place).read_text().splitlines()]


def repeat(place: pytest.Pytester, times: int, **changes: str) -> None:
    """Pretend that the runs so far were made several times, on what the changed fields of the key say."""
    made = [
        line | {"run_id": f"earlier-{number}", "key": line["key"] | changes}
        for number in range(times)
        for line in lines(place)
    ]
    file(place).write_text("".join(json.dumps(line) + "\n" for line in made))


def regressions(place: pytest.Pytester, folder: str) -> dict[str, dict[str, Any]]:
    record = json.loads((place.path / folder / "run.json").read_text())
    return {one["name"]: one for one in record["regressions"]}


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_first_run_has_no_baseline_and_is_accepted(place: pytest.Pytester, fast: Sim, workers: str) -> None:
    result = run(place, fast, workers)
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["compared with earlier runs: 2 of 2 steps have no baseline yet: 0 accepted comparable runs at most"]
    )
    kept = {line["key"]["step"]: line for line in lines(place)}
    assert sorted(kept) == sorted(STEPS)
    assert {line["accepted"] for line in kept.values()} == {True}
    assert all(line["metrics"]["ttft_p50_ms"] >= 50 for line in kept.values())
    prompt_set = kept["endpoint-rate-10"]["key"]["prompt_set"]
    assert "request_rate=10" in prompt_set
    names = {part.partition("=")[0] for part in prompt_set.split()}
    assert names == KEY_FIELDS, "with other fields no earlier run is comparable any more"
    assert kept["endpoint-rate-10"]["key"]["image_digest"] == "simulated"


def test_slower_step_is_measured_again_and_fails(place: pytest.Pytester, fast: Sim, slow: Sim) -> None:
    run(place, fast).assert_outcomes(passed=2)
    repeat(place, 5)

    result = run(place, slow, folder="slower")
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            f"*{step}: regression compared with 5 accepted runs; ttft_p50_ms: * (the mean of 2 reruns after *"
            for step in STEPS
        ]
    )
    assert {one["reruns"] for one in regressions(place, "slower").values()} == {2}
    assert len(list((place.path / "slower" / "benchmarks" / "reruns").glob("*.samples.jsonl.gz"))) == 4
    benchmarks = json.loads((place.path / "slower" / "run.json").read_text())["benchmarks"]
    assert [one["name"] for one in benchmarks] == STEPS, "reruns are not steps of the run"

    run(place, fast, folder="after").assert_outcomes(passed=2)
    assert {one["state"] for one in regressions(place, "after").values()} == {"ok"}
    assert {one["runs"] for one in regressions(place, "after").values()} == {5}, (
        "later runs are not compared with the slow one"
    )
    assert [line["accepted"] for line in lines(place)[-4:]] == [False, False, True, True]


def test_runs_with_another_key_are_not_compared(place: pytest.Pytester, fast: Sim, slow: Sim) -> None:
    run(place, fast).assert_outcomes(passed=2)
    repeat(place, 4, gpu="NVIDIA-L4")
    result = run(place, slow, folder="other")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*have no baseline yet: 0 *; no accepted run is comparable; in the nearest*gpu was 'NVIDIA-L4'*"]
    )


def test_invalid_line_is_a_usage_error_before_any_request(place: pytest.Pytester, fast: Sim) -> None:
    file(place).parent.mkdir()
    file(place).write_text('{"schema_version": 1, "run_id": 7}\n')
    fast.call("/sim/requests", method="DELETE")
    result = run(place, fast)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*small.jsonl:1: run_id: expected str, got 7"])
    assert not fast.truth()


def test_baselines_option_that_is_a_file_is_a_usage_error(place: pytest.Pytester, fast: Sim) -> None:
    (place.path / "baselines").write_text("")
    result = run(place, fast)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--stage-baselines: '*' is not a folder"])


@pytest.mark.parametrize(
    ("rule", "says"),
    [
        ("worse = 1", "regression.worse: expected a factor above 1, got 1"),
        ('metrics = ["ttft"]', "regression.metrics.0: unknown metric 'ttft'; valid: *ttft_p50_ms*"),
        ("metrics = []", "regression.metrics: expected at least one metric, got an empty list"),
        ("factor = 2", "regression.factor: unknown key; valid: metrics, worse"),
    ],
)
def test_invalid_rule_is_a_usage_error_before_any_request(
    place: pytest.Pytester, fast: Sim, rule: str, says: str
) -> None:
    text = PROFILE.split("[regression]")[0] + f"[regression]\n{rule}\n"
    (place.path / "small.toml").write_text(text)
    fast.call("/sim/requests", method="DELETE")
    result = run(place, fast)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*profile small.toml: {says}"])
    assert not fast.truth()


def test_saved_results_are_not_compared(place: pytest.Pytester, fast: Sim) -> None:
    run(place, fast).assert_outcomes(passed=2)
    result = run_pytest(
        place, SUITES / "slo", f"--rootdir={place.path}",
        f"--stage-profile={place.path}/small.toml", "--stage-baselines=b",
        f"--stage-results={place.path / 'run'}", timeout=300,
    )  # fmt: skip
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--stage-results measures nothing: it cannot go with --stage-baselines"])

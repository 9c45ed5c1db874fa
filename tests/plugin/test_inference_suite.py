"""The inference suite as a user runs it, on the simulated engine; the defects that it catches are in tests/defects."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.forked_runs import run_pytest

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "suites" / "inference"
MODEL = "sim-model"

CONTEXT = "test_context_length_is_the_declared_one"
LISTED = "test_served_model_is_listed"

#: Faults of timing are not faults of correctness: a slow server passes.
SLOW: list[Any] = [
    {"fault": "stall", "duration_s": 0.2, "every_s": 0.5},
    {"fault": "slow_start", "for_s": 2.0, "delay_s": 0.3},
    {"fault": "slow_requests", "share": 0.3, "delay_s": 0.1},
]

#: A target of which the model and its context length are declared, as a stage declares them.
DECLARED = """
from pytest_vllm_stage.serving.target import Target
from pytest_vllm_stage.session import targets

def declared(run):
    return {"endpoint": Target("endpoint", "sim-model", run.config.endpoint, max_model_len=4096)}

targets.find_endpoint_targets = declared
"""


@pytest.fixture(scope="module")
def simulator() -> Iterator[str]:
    """The URL of a simulated engine, as fast as leaves time between two tokens."""
    command = [sys.executable, "-m", "pytest_vllm_stage.standins.engine", "--model", MODEL, "--max-model-len", "2048"]
    with subprocess.Popen([*command, "--ttft-ms", "4", "--itl-ms", "4"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def script(simulator: str, *faults: Any) -> None:
    """Exchange the simulator's faults."""
    request = urllib.request.Request(  # noqa: S310 - the simulator's own URL
        f"{simulator}/sim/faults", json.dumps(faults).encode(), {"content-type": "application/json"}, method="PUT"
    )
    with urllib.request.urlopen(request) as response:  # noqa: S310
        assert len(json.load(response)) == len(faults)


def check(pytester: pytest.Pytester, simulator: str, *arguments: str) -> tuple[set[str], int, str]:
    """The names of the checks that failed, the number of those that passed, and the output."""
    pytester.makepyfile(short_lanes=(ROOT / "tests" / "defects" / "short_lanes.py").read_text())
    result = run_pytest(
        pytester, SUITE, "-p", "short_lanes",
        f"--stage-endpoint={simulator}", f"--stage-run-dir={pytester.path / 'run'}", "-p", "no:cacheprovider",
        "-p", "no:hypothesispytest", "-rfE", *arguments,
    )  # fmt: skip
    output = result.stdout.str()
    failed = set(re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", output, re.MULTILINE))
    return failed, result.parseoutcomes().get("passed", 0), output


@pytest.fixture(autouse=True)
def _own_options(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_ADDOPTS", raising=False)


# Without workers, tests/defects run it on a healthy engine, and a test below with slow lanes.
@pytest.mark.parametrize("workers", [pytest.param("0", marks=pytest.mark.nightly), "2"])
def test_a_healthy_engine_passes(pytester: pytest.Pytester, simulator: str, workers: str) -> None:
    script(simulator)
    failed, passed, output = check(pytester, simulator, "-n", workers)
    assert not failed, output
    assert passed > 30, f"only {passed} checks ran"


#: Two thirds of the requests; they compare texts, and none of them looks at times.
WITHOUT_RELATIONS = f"--ignore={SUITE / 'test_relations.py'}"


@pytest.mark.parametrize(
    ("faults", "options"),
    [
        pytest.param(SLOW, (WITHOUT_RELATIONS,), id="all"),
        *(pytest.param([one], (), marks=pytest.mark.nightly, id=one["fault"]) for one in SLOW),
    ],
)
def test_a_slow_engine_is_not_a_wrong_one(
    pytester: pytest.Pytester, simulator: str, faults: list[Any], options: tuple[str, ...]
) -> None:
    script(simulator, *faults)
    failed, passed, output = check(pytester, simulator, *options)
    assert not failed, output
    assert passed > 30, f"only {passed} checks ran"


def test_a_declared_context_length_that_is_not_served_is_caught(pytester: pytest.Pytester, simulator: str) -> None:
    script(simulator)
    pytester.makepyfile(declared=DECLARED)
    failed, _, output = check(pytester, simulator, "-p", "declared", "-k", "test_models")
    assert failed == {CONTEXT}
    assert "declared is max_model_len 4096, served is 2048" in output


def test_a_model_that_is_not_listed_is_caught(pytester: pytest.Pytester, simulator: str) -> None:
    script(simulator, "wrong_model_listed")
    pytester.makepyfile(declared=DECLARED)
    failed, _, output = check(pytester, simulator, "-p", "declared", "-k", LISTED)
    assert failed == {LISTED}
    assert "sim-model is not served here; served: ['some-other-model']" in output


#: The timeout of a dead engine, short for the test; what is seen before it leaves a busy machine seconds.
IMPATIENT = """
from pytest_vllm_stage.checks.inference import liveness

liveness.ANSWER_TIMEOUT_S, liveness.OBSERVED_AFTER = 6.0, 0.1
"""


def test_an_engine_that_never_answers_is_named_once(pytester: pytest.Pytester, simulator: str) -> None:
    script(simulator, {"fault": "slow_requests", "share": 1.0, "delay_s": 600})
    pytester.makepyfile(impatient=IMPATIENT)
    failed, passed, output = check(pytester, simulator, "-p", "impatient", "-rsfE", "-m", "smoke")
    script(simulator)
    assert (failed, passed) == ({"test_engine_answers"}, 0), output
    assert "/health is 200, 1 requests run and 0 wait, none answered in 6 s" in output
    assert "the engine is dead: /health is 200" in output


CANNOT = """
name = "weak"
overlay = "overlay"
namespace = "weak"
[models.full]
inference_service = "sim-model"
[models.full.cannot]
structured_outputs = "no grammar backend"
tools = "no tool parser"
"""


def test_what_the_profile_says_cannot_be_is_skipped_for_that_reason(pytester: pytest.Pytester, simulator: str) -> None:
    script(simulator, "ignored_structure", "tool_calls_as_text")
    (pytester.path / "weak.toml").write_text(CANNOT)
    (pytester.path / "overlay").mkdir()
    (pytester.path / "overlay" / "kustomization.yaml").write_text("resources: []\n")
    profile = f"--stage-profile={pytester.path / 'weak.toml'}"
    failed, passed, output = check(pytester, simulator, profile, "-rs", "-k", "test_structure or test_characters")
    assert not failed, output
    assert passed == 0
    assert "sim-model cannot do structured_outputs: no grammar backend" in output
    assert "sim-model cannot do tools: no tool parser" in output


def test_a_failed_check_is_its_message_and_its_place(
    pytester: pytest.Pytester, simulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    script(simulator, "off_by_one_usage")
    only = ("-k", "test_completion_tokens_equal")
    failed, _, output = check(pytester, simulator, *only)
    assert failed == {"test_completion_tokens_equal_the_tokens_generated"}
    first, *_ = re.findall(
        r"^usage reports 13 completion tokens, expected 12\n  at \S+test_usage.py:\d+\n_", output, re.M
    )
    assert first
    assert not [noise for noise in ("def test_", "endpoint = ", ">   ", "\nassert ") if noise in output]
    assert re.search(r"^FAILED \S+to-the-limit\] - usage reports 13 completion tokens, expected 12$", output, re.M)
    assert re.search(r"^FAILED \S+to-its-end\] - the same cause as \S+to-the-limit\]$", output, re.M)
    pytester.path.joinpath("run").rename(pytester.path / "first run")
    assert "def test_" in check(pytester, simulator, *only, "--tb=long")[2]

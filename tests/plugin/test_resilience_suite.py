"""suites/resilience over a fake stage: when it runs, what skips it, and what fails it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.plugin.forked_runs import run_pytest

SUITE = Path(__file__).parents[2] / "suites" / "resilience"

#: Carries nothing out: each disruption has the outcome of its own name in FAKE_OUTCOMES, else pass.
FAKE_DISRUPT = """

import json
import pytest
from pytest_vllm_stage import DisruptionResult
from pytest_vllm_stage.resilience.window import WindowNumbers, WindowVerdict
from pytest_vllm_stage.slo.decision import Outcome

@pytest.fixture
def disrupt(stage_run, stage):
    outcomes = json.loads(os.environ.get("FAKE_OUTCOMES", "{}"))

    def act(name, role):
        numbers = WindowNumbers(40, 2, {"connection": 2}, 0.1, 0.3, 0.5, 0.05, 90.0, 25, 0, 0)
        verdict = WindowVerdict(Outcome(outcomes.get(name, "pass")), "as the fake says", numbers)
        return DisruptionResult(name, role, verdict, ("a note",), ())

    return act
"""
OTHERS = """
import pytest

@pytest.mark.after_load
def test_reads(stage_run): ...

@pytest.mark.load
def test_load(stage_run, stage): ...

def test_plain(stage_run): ...
"""


@pytest.fixture
def suite(place: pytest.Pytester) -> pytest.Pytester:
    """The suite, in a folder that stands before that of other tests."""
    folder = place.path / "a" / "resilience"
    folder.mkdir(parents=True)
    for source in SUITE.glob("*.py"):
        shutil.copy(source, folder / source.name)
    conftest = folder / "conftest.py"
    conftest.write_text(conftest.read_text().replace("import pytest\n", "import os\nimport pytest\n", 1) + FAKE_DISRUPT)
    (place.path / "b").mkdir()
    (place.path / "b" / "test_others.py").write_text(OTHERS)
    return place


def run(suite: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return run_pytest(suite, "-p", "no:cacheprovider", "--stage-run-dir=run", *arguments)


def recorded_tests(suite: pytest.Pytester) -> list[dict[str, str]]:
    found: list[dict[str, str]] = json.loads((suite.path / "run" / "run.json").read_text())["tests"]
    return found


def test_without_the_option_it_is_one_skipped_test_that_strict_accepts(suite: pytest.Pytester) -> None:
    result = run(suite, "--stage-strict", "-rs")
    result.assert_outcomes(passed=3, skipped=1)
    assert result.ret == 0
    assert "a stage is disrupted only on request: --stage-disrupt=all" in result.stdout.str()


def test_a_stage_that_is_only_read_is_refused_before_anything_runs(suite: pytest.Pytester, kubeconfig: Path) -> None:
    result = run(suite, "--stage-context=c", "--stage-disrupt=all")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--stage-context is only read without --stage-deploy: it cannot go with *disrupt*"])
    assert not (suite.path / "calls.log").exists()


@pytest.mark.parametrize("workers", ["0", "2"])
def test_disruptions_run_exclusively_and_after_everything_else(suite: pytest.Pytester, workers: str) -> None:
    result = run(suite, "--stage-disrupt=pod,rollout", f"-n{workers}")
    result.assert_outcomes(passed=5)
    names = sorted((test for test in recorded_tests(suite) if test["when"] == "call"), key=lambda test: test["start"])
    assert [test["name"].partition("::")[2] for test in names][-2:] == [
        "test_window_keeps_its_objectives[quantized-rollout]",
        "test_window_keeps_its_objectives[quantized-pod]",
    ]
    events = [json.loads(line) for line in (suite.path / "run" / "journal.jsonl").read_text().splitlines()]
    held = [event for event in events if event["kind"] == "access"]
    disruptive = [event for event in held if "resilience" in event["name"]]
    assert [event["exclusive"] for event in disruptive] == [True, True]
    others_ended_at = max(event["ended_at"] for event in held if "test_others" in event["name"])
    assert all(event["began_at"] >= others_ended_at for event in disruptive)


@pytest.mark.parametrize(
    ("outcome", "strict", "expected"),
    [("fail", (), "failed"), ("inconclusive", (), "skipped"), ("inconclusive", ("--stage-strict",), "failed")],
)
def test_the_verdict_decides_the_test(
    suite: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, outcome: str, strict: tuple[str, ...], expected: str
) -> None:
    monkeypatch.setenv("FAKE_OUTCOMES", json.dumps({"pod": outcome}))
    result = run(suite, "--stage-disrupt=pod,engine", "a", *strict)
    result.assert_outcomes(**{"passed": 1, expected: 1})
    (test,) = [test for test in recorded_tests(suite) if test["name"].endswith("[quantized-pod]")]
    assert f"pod of quantized: {outcome}: as the fake says" in test["reason"]
    assert "a note" in test["reason"]

"""What the reports read of a run directory: whole, of a killed run, of another version, and of something else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.report.__main__ import main
from pytest_vllm_stage.report.run_data import load_run
from tests.unit.made_run import RUN_ID, check, make_run, steps


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def test_whole_run_is_read_without_a_problem_and_unchanged(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", check("a.py::test_a"), measurements=steps())
    before = snapshot(folder)
    data = load_run(folder)
    assert (data.run_id, data.complete, data.problems) == (RUN_ID, True, ())
    assert [(step.role, step.kind, step.level) for step in data.steps] == [
        ("quantized", "rate", 1.0),
        ("quantized", "rate", 5.0),
        ("quantized", "concurrency", 5.0),
        ("full", "rate", 1.0),
        ("full", "rate", 5.0),
        ("full", "concurrency", 5.0),
    ]
    (gate,) = data.steps[1].gates
    assert (gate.objective, gate.limit, gate.outcome, gate.n) == ("ttft_p50_ms", 500, "pass", 200)
    assert gate.effective_n is not None
    assert gate.interval is not None
    assert gate.interval[0] <= (gate.observed or 0) <= gate.interval[1]
    assert snapshot(folder) == before


def test_killed_run_is_read_from_its_journal(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", check("a.py::test_a"), measurements=steps()[:1], exit_status=None)
    with (folder / "journal.jsonl").open("a", encoding="utf-8") as journal:
        journal.write('{"at": 1, "kind": "te')
    data = load_run(folder)
    assert not data.complete
    assert data.problems == ("run.json is missing: the run did not reach its end",)
    assert [step.name for step in data.steps] == ["quantized-rate-1"]
    assert data.record["profile"]["name"] == "local"


def test_step_without_its_result_is_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", measurements=steps()[:2])
    (folder / "benchmarks" / "quantized-rate-5.json").unlink()
    data = load_run(folder)
    assert [problem.split(":")[0] for problem in data.problems] == ["load step quantized-rate-5"]
    assert [len(step.gates) for step in data.steps] == [1, 0]
    assert data.steps[1].metrics["ttft_p50_ms"], "the journal still has the numbers"


def test_samples_that_were_never_judged_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", exit_status=None)
    (folder / "benchmarks").mkdir()
    (folder / "benchmarks" / "full-rate-1.samples.jsonl.gz").write_bytes(b"")
    data = load_run(folder)
    assert data.steps == ()
    assert any("load step full-rate-1" in problem for problem in data.problems)


def test_missing_directory_is_one_message(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such run directory"):
        load_run(tmp_path / "none")


def test_other_directory_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"not a run directory: expected run.json or a journal"):
        load_run(tmp_path)
    (tmp_path / "run.json").write_text('{"name": "another tool\'s"}')
    with pytest.raises(ConfigError, match="not the record of a run"):
        load_run(tmp_path)


def test_later_schema_is_refused_and_names_its_writer(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "run.json"
    changed = json.loads(path.read_text()) | {"schema_version": 99, "versions": {"pytest_vllm_stage": "9.9"}}
    path.write_text(json.dumps(changed))
    with pytest.raises(ConfigError) as caught:
        load_run(folder)
    assert "expected schema_version 1 or lower, got 99" in str(caught.value)
    assert "pytest_vllm_stage 9.9" in str(caught.value)


def test_baseline_of_a_regression_is_read_under_its_former_name(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "run.json"
    former = {"name": "full-rate-5", "metrics": {"ttft_p50_ms": {"value": 120.0, "usual": 100.0}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"regressions": [former]}))
    (regression,) = load_run(folder).record["regressions"]
    assert regression["metrics"]["ttft_p50_ms"] == {"value": 120.0, "baseline": 100.0}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tests": "none"}, "tests: expected list, got str"),
        ({"tests": [{}]}, "tests[0]: expected the field name, which is missing"),
        ({"tests": ["x"]}, "tests[0]: expected an object, got str"),
        (
            {"tests": [{"name": "a", "outcome": "xpassed", "reason": ""}]},
            "tests[0]: outcome: expected one of passed, failed, error, skipped, got 'xpassed'",
        ),
        ({"settings": {"profile": "local"}}, "settings.profile: expected an object, got str"),
        ({"phases": [{"name": "deploy"}]}, "phases[0]: expected the field at, which is missing"),
        ({"benchmarks": [{}]}, "benchmarks[0]: expected the field name, which is missing"),
        ({"regressions": None}, "regressions: expected list, got NoneType"),
        ({"started_at": "today"}, "started_at: expected int or float, got str"),
        ({"schema_version": "1"}, "expected schema_version 1 or lower, got '1'"),
        ({"schema_version": True}, "expected schema_version 1 or lower, got True"),
    ],
)
def test_damaged_record_is_one_message_and_changes_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], message: str
) -> None:
    folder = make_run(tmp_path / "run", check("a.py::test_a"))
    path = folder / "run.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    before = snapshot(folder)
    assert main([str(folder)]) == 2
    assert capsys.readouterr().err.splitlines()[0] == f"{path}: {message}"
    assert snapshot(folder) == before


@pytest.mark.parametrize(
    ("event", "message"),
    [
        ({"kind": "run", "name": RUN_ID}, "an event is not as this version writes it: KeyError('at')"),
        ({"kind": "run", "name": RUN_ID, "at": "today"}, "started_at: expected int or float, got str"),
    ],
)
def test_damaged_journal_of_a_killed_run_is_one_message(tmp_path: Path, event: dict[str, Any], message: str) -> None:
    (tmp_path / "journal.jsonl").write_text(json.dumps(event) + "\n")
    with pytest.raises(ConfigError) as caught:
        load_run(tmp_path)
    assert str(caught.value) == f"{tmp_path / 'journal.jsonl'}: {message}"


def test_journal_lines_without_an_event_are_skipped(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", check("a.py::test_a"), exit_status=None)
    with (folder / "journal.jsonl").open("a", encoding="utf-8") as journal:
        journal.write('[1]\n"x"\n\x00\n')
    assert [test["name"] for test in load_run(folder).record["tests"]] == ["a.py::test_a"]


def test_file_in_place_of_the_directory_is_named(tmp_path: Path) -> None:
    (tmp_path / "report.html").touch()
    with pytest.raises(ConfigError, match="expected a run directory, got a file"):
        load_run(tmp_path / "report.html")


@pytest.mark.parametrize("options", [("--keep-reports=3",), ("--index", "--keep-reports=0")])
def test_retention_without_an_index_or_of_nothing_is_refused(tmp_path: Path, options: tuple[str, ...]) -> None:
    folder = make_run(tmp_path / "run")
    with pytest.raises(SystemExit) as ended:
        main([str(folder), *options])
    assert ended.value.code == 2
    assert not (folder / "report.html").exists()

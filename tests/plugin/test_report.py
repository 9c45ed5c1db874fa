"""The reports at the end of a run: made without being asked for, linked in the summary, and never a failure."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.plugin.forked_runs import run_pytest

TEST = '''
def test_stage(stage):
    """The stage is there.

    More text.
    """
'''


@pytest.fixture
def place(place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """The place, with reports as they are by default."""
    monkeypatch.delenv("VLLM_STAGE_REPORT")
    return place


def run(place: pytest.Pytester, *options: str) -> pytest.RunResult:
    place.makepyfile(TEST)
    return run_pytest(place, "--stage-run-dir=run", *options, timeout=300)


@pytest.mark.parametrize("workers", ["-n0", "-n2"])
def test_run_leaves_its_reports_and_says_where(place: pytest.Pytester, workers: str) -> None:
    result = run(place, workers)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines([f"report * {place.path / 'run' / 'report.html'}"])
    page = (place.path / "run" / "report.html").read_text()
    assert "<td>The stage is there.</td>" in page, "what the check proves is its docstring's first paragraph"
    assert (place.path / "run" / "report.md").read_text().startswith("## ✅ vLLM stage: pass")


def test_reports_are_left_out_on_request(place: pytest.Pytester) -> None:
    result = run(place, "--stage-report=never")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("report *")
    assert not (place.path / "run" / "report.html").exists()
    assert (place.path / "run" / "run.json").exists()


def test_job_summary_is_appended_to(place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    summary = place.path / "summary.md"
    summary.write_text("before\n")
    monkeypatch.setenv("GITHUB_STEP_SUMMARY", str(summary))
    run(place)
    assert summary.read_text() == "before\n" + (place.path / "run" / "report.md").read_text()


def test_failed_report_is_a_note_and_not_a_failure(place: pytest.Pytester) -> None:
    place.makepyfile(
        broken="from pytest_vllm_stage.report import run_end\nrun_end.report_run.__kwdefaults__ = {'timeout_s': 0.001}"
    )
    place.syspathinsert()
    result = run(place, "-p", "broken")
    result.assert_outcomes(passed=1)
    assert result.ret == 0
    result.stdout.fnmatch_lines(["report * not made within 0.001 s; again: python -m pytest_vllm_stage.report *run"])
    assert Path(place.path / "run" / "run.json").exists()


def test_index_lists_the_runs_in_the_default_place_and_keeps_the_given_number(place: pytest.Pytester) -> None:
    place.makepyfile(TEST)
    for _ in range(2):
        run_pytest(place, "--stage-keep-reports=1", timeout=300).assert_outcomes(passed=1)
    (page,) = (place.path / "reports").glob("*/report.html")
    index = (place.path / "reports" / "index.html").read_text()
    assert f'href="{page.parent.name}/report.html"' in index
    assert index.count("/report.html") == 1
    run(place)
    assert not (place.path / "index.html").exists(), "a run directory of its own has no index next to it"


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--stage-keep-reports=0"], "--stage-keep-reports: expected a whole number from 1, got 0"),
        (
            ["--stage-keep-reports=3", "--stage-run-dir=run"],
            "--stage-keep-reports is about the folder reports/: it cannot go with --stage-run-dir",
        ),
        (
            ["--stage-keep-reports=3", "--stage-report=never"],
            "--stage-keep-reports removes old runs when the reports are made: it cannot go with --stage-report",
        ),
    ],
)
def test_invalid_retention_is_refused(place: pytest.Pytester, options: list[str], says: str) -> None:
    result = run_pytest(place, *options, timeout=300)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert says in result.stderr.str()

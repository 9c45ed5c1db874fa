"""Exit code 69 wherever the environment proves unusable, whatever else fails in the run."""

from __future__ import annotations

import json

import pytest

from tests.plugin.forked_runs import run_pytest

RAISE = "raise errors.EnvironmentUnusable('the API server does not answer', hint='journalctl -u kubelet')"
CONFTEST = f"""

@pytest.fixture
def broken_connection(stage):
    {RAISE}

@pytest.fixture
def broken_teardown(stage):
    yield
    {RAISE}
"""

#: Notes each failure that pytest formats.
COUNTED = f"""

@pytest.fixture(scope="session")
def broken():
    from pytest_vllm_stage.core import errors
    {RAISE}

def pytest_itemcollected(item):
    format = item._repr_failure_py
    item._repr_failure_py = lambda *given, **named: (note("formatted"), format(*given, **named))[1]
"""

#: Where the error is raised -> the test that gets it; ``end`` is the run's own teardown.
PLACES = {
    "fixture": "def test_it(broken_connection): pass",
    "test": f"def test_it(stage):\n    from pytest_vllm_stage.core import errors\n    {RAISE}",
    "fixture teardown": "def test_it(broken_teardown): pass",
    "load test": "@pytest.mark.load\ndef test_it(broken_connection): pass",
    "end": "def test_it(stage): pass",
}


@pytest.fixture
def broken_place(place: pytest.Pytester) -> pytest.Pytester:
    conftest = place.path / "conftest.py"
    text = conftest.read_text().replace("import os\n", "import os\nimport pytest\n", 1)
    end = 'if os.environ.get("FAKE_UNUSABLE_END"):\n        ' + RAISE
    conftest.write_text(text.replace('    note("end")\n', f'    note("end")\n    {end}\n') + CONFTEST)
    return place


@pytest.mark.parametrize("other_test", ["", "def test_other(): assert False"], ids=["alone", "with a failed test"])
@pytest.mark.parametrize("raised_in", PLACES)
def test_unusable_environment_ends_with_69(
    broken_place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, raised_in: str, other_test: str
) -> None:
    if raised_in == "end":
        monkeypatch.setenv("FAKE_UNUSABLE_END", "1")
    broken_place.makepyfile(f"import pytest\n{PLACES[raised_in]}\n{other_test}\n")
    result = run_pytest(broken_place, "--stage-run-dir=here")
    assert result.ret == 69, result.stdout.str()
    record = json.loads((broken_place.path / "here" / "run.json").read_text())
    assert record["exit_status"] == 69
    if raised_in != "end":
        result.stdout.fnmatch_lines(
            ["environment unusable: the API server does not answer", "  next: journalctl -u kubelet"]
        )
        assert [test["error_kind"] for test in record["tests"] if test["name"].endswith("test_it")][-1:] == [
            "environment unusable"
        ]


@pytest.mark.parametrize("raised_in", ["fixture", "test", "fixture teardown"])
@pytest.mark.parametrize("options", [[], ["-x"]], ids=["", "-x"])
def test_unusable_environment_ends_with_69_under_two_workers(
    broken_place: pytest.Pytester, raised_in: str, options: list[str]
) -> None:
    broken_place.makepyfile(
        f"import pytest\n{PLACES[raised_in]}\n@pytest.mark.parametrize('n', range(4))\ndef test_other(n): assert n != 1"
    )
    assert run_pytest(broken_place, "-n2", *options).ret == 69


def test_unusable_environment_ends_with_69_although_a_stage_failure_is_reported(broken_place: pytest.Pytester) -> None:
    broken_place.makepyfile(
        f"{PLACES['test']}\ndef test_other(stage):\n    from pytest_vllm_stage.core import errors\n"
        "    raise errors.StageFailure('wrong answer')"
    )
    result = run_pytest(broken_place)
    assert result.ret == 69
    result.stdout.fnmatch_lines(["E *StageFailure: wrong answer"])


def test_live_line_report_and_record_use_the_same_word(place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAKE_UNUSABLE", "1")
    place.makepyfile("def test_it(stage): pass")
    result = run_pytest(place, "--stage-run-dir=here")
    result.stderr.fnmatch_lines(["?stage *s? cluster: environment unusable: no containerd here"])
    result.stdout.fnmatch_lines(["environment unusable: no containerd here", "exit 69   environment unusable: *"])
    (test,) = json.loads((place.path / "here" / "run.json").read_text())["tests"]
    assert test["reason"].startswith("environment unusable: no containerd here")


def test_plain_failure_ends_with_1(broken_place: pytest.Pytester) -> None:
    broken_place.makepyfile("def test_it(stage): assert False")
    assert run_pytest(broken_place).ret == 1


def test_a_known_cause_is_formatted_once_however_many_tests_it_prevents(broken_place: pytest.Pytester) -> None:
    """A traceback takes a tenth of a second on a slow machine: a minute for the suites, of which nothing is shown."""
    conftest = broken_place.path / "conftest.py"
    conftest.write_text(conftest.read_text() + COUNTED)
    broken_place.makepyfile("import pytest\n@pytest.mark.parametrize('n', range(9))\ndef test_it(broken, n): pass")
    result = run_pytest(broken_place, "-rs")
    result.assert_outcomes(errors=1, skipped=8)
    result.stdout.fnmatch_lines(["SKIPPED [[]8[]] * environment unusable: the API server does not answer"])
    assert (broken_place.path / "calls.log").read_text().split().count("formatted") == 1

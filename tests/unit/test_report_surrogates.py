"""Reports of texts that UTF-8 or XML cannot carry: a server that cuts an emoji in two must not cost the report."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

from pytest_vllm_stage.core.files import escape_surrogates
from pytest_vllm_stage.report import allure, index, junit
from pytest_vllm_stage.report.documents import write_reports
from tests.unit import made_run

HALF = "\ud83d"
EVENTS = (
    made_run.check(f"a.py::test_a[{HALF}]", "failed", f"E   expected 'x', got '{HALF}'"),
    made_run.check("a.py::test_b[\x1b]", "skipped", "\x00\ufffe"),
)


def test_lone_surrogates_are_escaped_and_all_else_stays() -> None:
    assert escape_surrogates(f"a{HALF}ü\U0001f600") == "a\\ud83dü\U0001f600"


def test_every_report_of_a_run_is_written(tmp_path: Path) -> None:
    run = made_run.make_run(tmp_path / made_run.RUN_ID, *EVENTS)
    written = write_reports(run)
    assert len(written) == 3
    assert all(path.read_text(encoding="utf-8") for path in written)
    assert any("got '\\ud83d'" in path.read_text(encoding="utf-8") for path in written)
    assert index.write_index(tmp_path).read_text(encoding="utf-8")


def test_junit_xml_of_such_names_is_well_formed(tmp_path: Path) -> None:
    run = made_run.make_run(tmp_path / made_run.RUN_ID, *EVENTS)
    path = tmp_path / "junit.xml"
    junit.write(json.loads((run / "run.json").read_text(encoding="utf-8")), path)
    names = [case.get("name") for case in ElementTree.parse(path).iter("testcase")]  # noqa: S314 - our own file
    assert names == ["test_a[?]", "test_b[?]"]


def test_texts_of_an_allure_result_are_escaped() -> None:
    result = SimpleNamespace(name=f"got {HALF}", steps=[f"step {HALF}"])
    allure._redact_in_place(result, [])
    assert (result.name, result.steps) == ("got \\ud83d", ["step \\ud83d"])

"""What the allure result of a load step shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from pytest_vllm_stage.report.html import svg
from pytest_vllm_stage.report.step_attachments import list_attachments
from tests.unit.made_results import rate_step
from tests.unit.made_run import MARKUP, independent, make_run

STEP = "full-rate-5"


def make_step(folder: Path, service: str = "smollm2-135m") -> Path:
    return make_run(folder, measurements=[independent(rate_step(5.0, "full", service), ttft_s=0.9)])


def test_step_has_its_verdict_its_chart_and_its_metrics(tmp_path: Path) -> None:
    found = {name: (text, kind) for name, text, kind in list_attachments(make_step(tmp_path / "run", MARKUP), STEP)}
    assert list(found) == [f"{STEP}: {what}" for what in ("verdict", "metrics and verdict", "requests over time")]
    text, kind = found[f"{STEP}: verdict"]
    assert kind == "TEXT"
    assert text.startswith("✗ FAIL: full, 5 requests/s: ")
    assert re.search(r"^ttft_p50_ms: ✗ FAIL, \d+ ms ≤ 500 ms, 95 % CI .*, n 200, effective \d+", text, re.MULTILINE)
    text, kind = found[f"{STEP}: metrics and verdict"]
    assert kind == "JSON"
    assert json.loads(text)["verdict"]["outcome"] == "fail"
    picture, kind = found[f"{STEP}: requests over time"]
    assert kind == "SVG"
    root = ET.fromstring(picture)  # noqa: S314 - our own text
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.find("{http://www.w3.org/2000/svg}title") is not None
    assert "var(" not in picture, "colours that only the page has"
    assert len(set(re.findall(r"#[0-9a-f]{6}\b", picture))) >= 4


def test_step_that_was_not_measured_has_nothing(tmp_path: Path) -> None:
    assert list(list_attachments(make_step(tmp_path / "run"), "full-rate-10")) == []


def test_without_matplotlib_there_is_no_chart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svg, "available", lambda: False)
    assert [kind for *_, kind in list_attachments(make_step(tmp_path / "run"), STEP)] == ["TEXT", "JSON"]


@pytest.mark.parametrize(
    ("file", "kinds"), [(f"{STEP}.json", ["TEXT"]), (f"{STEP}.samples.jsonl.gz", ["TEXT", "JSON", "TEXT"])]
)
def test_file_that_cannot_be_read_is_named_and_no_error(tmp_path: Path, file: str, kinds: list[str]) -> None:
    folder = make_step(tmp_path / "run")
    (folder / "benchmarks" / file).write_bytes(b"cut")
    found = list(list_attachments(folder, STEP))
    assert [kind for *_, kind in found] == kinds
    assert found[-1][0] == f"{STEP}: not readable"
    assert file in found[-1][1]

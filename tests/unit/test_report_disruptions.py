"""The disruptions of a run in its documents: a row each with its limits, and the requests around it."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.measurement.samples_file import SUFFIX, write_measurement
from pytest_vllm_stage.report.html.disruptions import disruption_section
from pytest_vllm_stage.report.html.page import render_page
from pytest_vllm_stage.report.markdown import render_markdown
from pytest_vllm_stage.report.run_data import RECORD, load_run
from pytest_vllm_stage.report.values import NONE
from pytest_vllm_stage.resilience.window import FOLDER
from tests.unit.made_run import MARKUP, make_run
from tests.unit.made_samples import failed, measurement, open_step, sample
from tests.unit.mutations import mutate

STEP = open_step(5.0, 20.0, variant="pod")


def make_disruption(**changes: Any) -> dict[str, Any]:
    """The event of a deleted pod: it began after 5 s of traffic and broke the limit of failed requests."""
    window = {"requests": 60, "failed": 12, "kinds": {"connection": 12}, "recovery_s": 2.4, "ttft_p99_ms": 110.0}
    facts = {
        "kind": "disruption",
        "name": STEP.id,
        "role": "full",
        "disruption": "pod",
        "outcome": "fail",
        "why": "12 requests failed (connection 12), at most 10 may",
        "notes": ["the pod is replaced after 2.2 s"],
        "problems": ["a single replica"],
        "marks": {"began_s": 5.0, "ended_s": 7.2},
        "promise": {"recovery_s": 15, "failed_requests_max": 10, "ttft_p99_ms": 5000, "settle_s": 5.0},
        "window": window,
    }
    return facts | changes


def make_disrupted_run(folder: Path, *disruptions: dict[str, Any], samples: bool = True) -> Path:
    run = make_run(folder, *(disruptions or (make_disruption(),)))
    if samples:
        broken = range(25, 37)
        rows = [failed(i, i / 5, "connection") if i in broken else sample(i, i / 5) for i in range(100)]
        (run / FOLDER).mkdir()
        write_measurement(measurement(STEP, rows), run / FOLDER / f"{STEP.id}{SUFFIX}")
    return run


def test_row_has_what_happened_and_each_number_with_its_limit(tmp_path: Path) -> None:
    markdown = render_markdown(load_run(make_disrupted_run(tmp_path / "run")))
    row = next(line for line in markdown.splitlines() if line.startswith("| full pod"))
    cells = [cell.strip() for cell in row.strip("|").split("|")]
    assert cells == [
        "full pod",
        "✗ FAIL",
        "the predictor's pod is deleted",
        "12 of 60 (connection 12), limit 10",
        "2.4 s, limit 15 s",
        "110 ms, limit 5,000 ms",
    ]
    assert "- full pod: a single replica" in markdown


def test_unknown_recovery_is_a_dash_and_a_missing_limit_is_left_out(tmp_path: Path) -> None:
    one = make_disruption(window=make_disruption()["window"] | {"recovery_s": None}, promise={"recovery_s": None})
    section = disruption_section(load_run(make_disrupted_run(tmp_path / "run", one)))
    assert section is not None
    assert section.charts[0].rows[0][3:] == ("12 of 60 (connection 12)", NONE, "110 ms")


def test_page_has_the_disruption_open_with_its_requests(tmp_path: Path) -> None:
    page = render_page(load_run(make_disrupted_run(tmp_path / "run")))
    section = re.search(r'<section id="disruptions">.*?</section>', page, re.DOTALL)
    assert section
    assert '<a href="#disruptions">Disruptions</a>' in page
    assert re.search(r'<details class="part" open><summary>full pod <span class="fail">', section[0])
    for text in ("at most 10 may", "a single replica", "the pod is replaced after 2.2 s"):
        assert text in section[0]
    assert section[0].count("<svg ") == 1


def test_table_of_requests_counts_each_once_by_its_time_from_the_start_of_the_disruption(tmp_path: Path) -> None:
    section = disruption_section(load_run(make_disrupted_run(tmp_path / "run")))
    assert section is not None
    rows = {row[0]: row[1:] for row in section.parts[0].charts[0].rows}
    assert next(iter(rows)) == "-5 to -4"
    assert sum(int(row[0]) for row in rows.values()) == 100
    assert rows["-1 to 0"] == ("5", "0", "100")
    assert rows["0 to 1"] == ("5", "5", NONE)
    assert rows["2 to 3"] == ("5", "2", "100")


def test_passed_disruption_is_closed_and_gives_no_reasons(tmp_path: Path) -> None:
    data = load_run(make_disrupted_run(tmp_path / "run", make_disruption(outcome="pass", problems=[])))
    section = disruption_section(data)
    assert section is not None
    assert not section.parts[0].open
    assert "\n- full pod" not in render_markdown(data)


def test_missing_samples_are_named(tmp_path: Path) -> None:
    section = disruption_section(load_run(make_disrupted_run(tmp_path / "run", samples=False)))
    assert section is not None
    assert section.parts[0].lines[-1] == "The samples of this disruption are missing."
    assert not section.parts[0].charts


def test_run_without_disruptions_has_no_section(tmp_path: Path) -> None:
    data = load_run(make_run(tmp_path / "run"))
    assert disruption_section(data) is None
    assert 'id="disruptions"' not in render_page(data)
    assert "Disruptions" not in render_markdown(data)


def test_markup_in_a_disruption_arrives_as_text(tmp_path: Path) -> None:
    one = make_disruption(role=MARKUP, why=MARKUP, notes=[MARKUP], problems=[MARKUP])
    data = load_run(make_disrupted_run(tmp_path / "run", one))
    assert "<img" not in render_page(data)
    assert "<img" not in render_markdown(data)


def test_marks_outside_of_the_samples_are_named(tmp_path: Path) -> None:
    one = make_disruption(marks={"began_s": 5.0, "ended_s": 1e30})
    section = disruption_section(load_run(make_disrupted_run(tmp_path / "run", one)))
    assert section is not None
    assert section.parts[0].lines[-1] == "The disruption is not within the time of its samples."
    assert not section.parts[0].charts


@settings(derandomize=True, deadline=None, max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_mutated_disruption_is_reported_or_refused(seed: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = make_disrupted_run(tmp_path_factory.mktemp("mutated") / "run")
    record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
    changed, _ = mutate({"disruptions": record["disruptions"]}, random.Random(seed))
    (folder / RECORD).write_text(json.dumps(record | changed), encoding="utf-8")
    try:
        data = load_run(folder)
    except ConfigError:
        return
    assert render_page(data)
    assert render_markdown(data)


def test_record_with_an_incomplete_disruption_is_refused(tmp_path: Path) -> None:
    one = make_disruption()
    del one["marks"]
    with pytest.raises(ConfigError, match=r"disruptions\[0\]: expected the field marks, which is missing"):
        load_run(make_disrupted_run(tmp_path / "run", one))

"""Comparison of the models, of two runs, and the history that a run was judged by."""

from __future__ import annotations

from pathlib import Path

from pytest_vllm_stage.report.documents import write_reports
from pytest_vllm_stage.report.html.comparison import compare_models, compare_runs
from pytest_vllm_stage.report.html.history import find_series
from pytest_vllm_stage.report.run_data import HISTORY, load_run
from tests.unit.made_history import make_run_with_history
from tests.unit.made_results import measured, rate_step
from tests.unit.made_run import RUN_ID, check, make_run, steps


def test_history_is_that_of_comparable_runs_up_to_this_one(tmp_path: Path) -> None:
    (series,) = find_series(load_run(make_run_with_history(tmp_path)))
    assert [line.run_id for line in series.lines] == [*(f"earlier-{number}" for number in range(5)), RUN_ID]
    assert (series.state, series.baseline) == ("regression", 102.0)


def test_run_keeps_its_history_and_is_reported_the_same_without_the_baselines(tmp_path: Path) -> None:
    folder = make_run_with_history(tmp_path)
    write_reports(folder)
    page = (folder / "report.html").read_text()
    assert "+47.1 %" in page
    assert "<li>full-rate-5: regression</li>" in page
    assert "full-rate-5: regression" in (folder / "report.md").read_text()
    kept = (folder / HISTORY).read_text()
    (tmp_path / "baselines" / "local.jsonl").unlink()
    write_reports(folder)
    assert (folder / "report.html").read_text().replace(HISTORY, "") == page.replace(HISTORY, "")
    assert (folder / HISTORY).read_text() == kept


def test_history_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = make_run_with_history(tmp_path)
    (tmp_path / "baselines" / "local.jsonl").unlink()
    (problem,) = load_run(folder).problems
    assert "local.jsonl does not exist on this machine" in problem


def test_models_are_compared_by_what_was_measured_and_declared(tmp_path: Path) -> None:
    sized = check("t.py::test_weights[quantized]", properties={"weights.size_bytes": 3 * 1024**3})
    data = load_run(make_run(tmp_path / "run", sized, measurements=steps()))
    table = compare_models(data)
    assert table
    assert table.headers == ("what", "quantized", "full")
    rows = {row[0]: row[1:] for row in table.rows}
    assert rows["size on disk"] == ("3 GiB", "not recorded")
    assert rows["cost per hour"] == ("1 USD", "5 USD")
    tokens_per_s = [
        next(step for step in data.steps if step.name == f"{role}-rate-5").metrics["output_tokens_per_s"] or 0
        for role in ("quantized", "full")
    ]
    cheap, dear = (
        float(cell.split()[0].replace(",", "")) for cell in rows["output tokens per USD at the promised rate"]
    )
    assert abs(cheap - tokens_per_s[0] * 3600) <= 1
    assert abs(dear - tokens_per_s[1] * 3600 / 5) <= 1


def test_one_model_has_nothing_to_be_compared_with(tmp_path: Path) -> None:
    settings = {"endpoint": {"value": "http://127.0.0.1:9", "source": "--stage-endpoint"}}
    data = load_run(make_run(tmp_path / "run", measurements=steps()[:2], settings=settings))
    assert compare_models(data) is None


def test_two_runs_are_compared_step_by_step_and_differing_conditions_named(tmp_path: Path) -> None:
    before = load_run(make_run(tmp_path / "a", measurements=[measured(rate_step(1.0), ttft_s=0.1)]))
    slower = measured(rate_step(1.0), ttft_s=0.2, engine_version="0.33.0")
    after = load_run(make_run(tmp_path / "b", measurements=[slower, measured(rate_step(5.0))]))
    table = compare_runs(after, before)
    changes = {row[1]: row[4] for row in table.rows}
    assert changes["ttft_p50_ms"].endswith(" % worse")
    assert "engine_version was '0.32.0' and is '0.33.0'" in table.note
    assert "Only one of the runs has: quantized-rate-5" in table.note

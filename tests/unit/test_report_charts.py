"""The charts: text and colours that belong to the page, ids of their own, every failed and slow request in sight."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest

from pytest_vllm_stage.report.html import svg
from pytest_vllm_stage.report.html.load_charts import load_section
from pytest_vllm_stage.report.html.page import render_page
from pytest_vllm_stage.report.html.request_panels import MOST_POINTS, RequestPanels, thin, tracks_of
from pytest_vllm_stage.report.html.step_charts import step_section
from pytest_vllm_stage.report.run_data import load_run
from tests.unit.made_run import check, make_run, steps
from tests.unit.made_samples import failed, sample


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> str:
    return render_page(load_run(make_run(tmp_path_factory.mktemp("charts") / "run", measurements=steps())))


def test_every_chart_has_a_picture_and_a_table(page: str) -> None:
    figures = re.findall(r"<figure>.*?</figure>", page, re.DOTALL)
    assert len(figures) == 6 + 6, "six over the loads, one per load step"
    for figure in figures:
        assert figure.count("<svg ") == 1
        assert "<tbody>" in figure
        assert re.search(r'role="img" aria-label="[^"]{8,}"', figure)


def test_colours_are_the_pages(page: str) -> None:
    pictures = "".join(re.findall(r"<svg .*?</svg>", page, re.DOTALL))
    assert "var(--c0)" in pictures
    assert "var(--c1)" in pictures
    assert not re.findall(r"#[0-9a-f]{6}\b", pictures)
    assert "font-family" not in pictures


def test_ids_of_all_charts_are_different_and_resolve(page: str) -> None:
    ids = re.findall(r' id="([^"]*)"', page)
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:<use href="#|url\(#)([^")]+)', page))
    assert used
    assert used <= set(ids)


def test_dots_of_a_step_are_its_requests(page: str) -> None:
    part = re.search(r"Requests of full-rate-5.*?</figure>", page, re.DOTALL)
    assert part
    dots = [path.count("h0") for path in re.findall(r'<path d="([^"]*)"', part[0]) if "h0" in path]
    assert dots == [200, 200], "TTFT and response time of each request"


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [(0.18, 7.0, ["0.2", "0.5", "1", "2", "5"]), (0.5, 2e5, ["1", "10", "100", "1000", "10000", "100000"])],
)
def test_ticks_of_a_logarithmic_axis_are_few_and_plain(low: float, high: float, expected: list[str]) -> None:
    assert labels_between(low, high) == expected


def test_ticks_of_a_short_logarithmic_axis_are_even_steps() -> None:
    labels = labels_between(0.175, 0.35)
    assert 3 <= len(labels) <= 5
    steps = [float(after) - float(before) for before, after in pairwise(labels)]
    assert steps == pytest.approx([steps[0]] * len(steps))


def labels_between(low: float, high: float) -> list[str]:
    figure, grid = svg.new_figure(3.0)
    axes = figure.add_subplot(grid[0, 0])
    axes.set_yscale("log")
    axes.set_ylim(low, high)
    svg.plain_ticks(axes.yaxis)
    return [label.get_text() for label in axes.get_yticklabels()]


def test_thinning_keeps_what_failed_and_what_was_slow() -> None:
    samples = [sample(i, i / 100, ttft_s=5.0 if i % 1000 == 7 else 0.1) for i in range(10_000)]
    samples[1234] = failed(1234, 12.34)
    shown = {one.index for one in thin(samples)}
    assert 1234 in shown
    assert {one.index for one in samples if one.index % 1000 == 7} <= shown
    assert MOST_POINTS * 0.7 < len(shown) < MOST_POINTS * 1.2
    assert thin(samples[:100]) == samples[:100]


def test_picture_of_a_step_has_nothing_of_the_step_before_it(tmp_path: Path) -> None:
    data = load_run(make_run(tmp_path / "run", measurements=steps()))
    with svg.drawing():
        alone, shared = [], RequestPanels(("requests",))
        for step in data.steps:
            measurement = step.measurement()
            assert measurement
            assert tracks_of(measurement) == ("requests",)
            alone.append(RequestPanels(("requests",)).draw(step, measurement))
            assert shared.draw(step, measurement) == alone[-1], step.name
    assert len(set(alone)) == len(data.steps) > 1


def test_report_of_a_run_without_load_imports_nothing_that_it_does_not_use(tmp_path: Path) -> None:
    program = (
        "import sys; from pytest_vllm_stage.report.__main__ import main; main(sys.argv[1:]); "
        "print(*sys.modules, file=sys.stderr)"
    )
    folder = make_run(tmp_path / "run", check("a.py::test_a"))
    done = subprocess.run([sys.executable, "-c", program, str(folder)], capture_output=True, text=True, check=True)
    assert (folder / "report.html").exists()
    heavy = {"matplotlib", "numpy", "pydantic", "httpx", "pytest", "kubernetes", "boto3", "model_registry"}
    assert not heavy & set(done.stderr.split())


def test_without_matplotlib_the_page_has_its_tables_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svg, "available", lambda: False)
    data = load_run(make_run(tmp_path / "run", measurements=steps()))
    text = render_page(data)
    assert "matplotlib is not installed" in text
    assert "Time to first token against load" in text
    assert '<div class="chart"' not in text


def test_run_without_load_has_no_charts(tmp_path: Path) -> None:
    data = load_run(make_run(tmp_path / "run"))
    assert (load_section(data), step_section(data)) == (None, None)
    assert "This run has no load steps." in render_page(data)


def test_step_with_unreadable_samples_says_so(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run", measurements=steps()[:1])
    (folder / "benchmarks" / "quantized-rate-1.samples.jsonl.gz").write_bytes(b"cut")
    assert "quantized-rate-1.samples.jsonl.gz" in render_page(load_run(folder))

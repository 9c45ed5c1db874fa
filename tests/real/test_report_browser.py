"""The reports in a real Chromium: no network request, no script but their own, accessible, and on any screen."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.measurement.samples import Measurement, ServerReading
from pytest_vllm_stage.report.documents import write_reports
from pytest_vllm_stage.report.files import PAGE
from pytest_vllm_stage.report.index import write_index
from pytest_vllm_stage.slo.objectives import Objective
from tests.real.browser.pages import MISSING, Visit, find_chromium, list_problems, visit_pages
from tests.unit.made_history import make_run_with_history
from tests.unit.made_results import rate_step, user_step
from tests.unit.made_run import MARKUP, RUN_ID, check, independent, make_markup_run, make_run, steps

pytestmark = pytest.mark.real

#: What the page of the local profile's run may take.
MOST_BYTES = 1_000_000
#: The load and the checks of the local profile.
LEVELS, DURATION_S, CHECKS = (1, 5, 10, 25), 15.0, 600
#: As many as a page of a sheet's width has columns for.
OBJECTIVES = [
    Objective(key, 60.0) for key in ("error_rate", "ttft_p50_ms", "ttft_p99_ms", "tpot_p90_ms", "e2e_latency_p90_s")
]
#: Every kind of defect that a visit reports.
DEFECTIVE = """<!doctype html><html><head><title>x</title></head><body style="width:3000px">
<main><h1>x</h1><p style="color:#ddd;background:#fff">hardly readable</p><img src="http://127.0.0.1:9/x.png"></main>
<script>alert("markup ran"); undefined_function();</script></body></html>"""


def local_steps() -> list[Measurement]:
    """As many requests and readings as the local profile's load steps have."""
    roles = {"quantized": "smollm2-135m-quantized", "full": "smollm2-135m"}
    plans = [rate_step(level, role, name, DURATION_S) for role, name in roles.items() for level in LEVELS]
    plans += [user_step(level, role, name) for role, name in roles.items() for level in LEVELS]
    readings = [
        ServerReading(float(at), at % 8, at % 5, kv_cache_usage=at % 20 / 20, gpu_memory_used_bytes=2.0**34 + at)
        for at in range(int(DURATION_S))
    ]
    return [replace(independent(plan), server=tuple(readings)) for plan in plans]


def make_local_run(folder: Path) -> Path:
    checks = [
        check(f"suites/inference/test_{n}.py::test_{n}[quantized]", proves=f"what {n} proves") for n in range(CHECKS)
    ]
    return make_run(folder, *checks, measurements=local_steps(), objectives=OBJECTIVES)


def make_failed_run(folder: Path) -> Path:
    message = f"stage failed: deployment/minio is not Available: {'secret-' * 40}\n  next: kubectl get pods"
    blocked = [check(f"x.py::test_{n}", "skipped", f"Skipped: {message.splitlines()[0]}") for n in range(30)]
    failed = check(f"deployment/test_serving.py::test_ready[{'long-' * 60}]", "error", message, when="setup")
    return make_run(folder, failed, *blocked, exit_status=1)


@pytest.fixture(scope="module")
def chromium() -> str:
    program = find_chromium()
    if program is None:
        pytest.skip(MISSING)
    return program


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders of runs with their reports."""
    folder = tmp_path_factory.mktemp("runs")
    make_local_run(folder / "local")
    make_failed_run(folder / "failed")
    make_markup_run(folder / "markup")
    make_run_with_history(folder / "regression")
    make_run(folder / "killed", measurements=steps()[:1], exit_status=None)
    for run in ("local", "failed", "markup", "killed"):
        write_reports(folder / run)
    write_reports(folder / "regression" / "run")
    make_run(folder / "index" / RUN_ID, check("a.py::test_a"), measurements=steps()[:2])
    write_index(folder / "index")
    return folder


@pytest.fixture(scope="module")
def results(chromium: str, folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Folder of the page to what the browser found: at desktop width light, at phone width dark."""
    pages = [folder / name / PAGE for name in ("failed", "markup", "killed", "regression/run")]
    pages.append(folder / "index" / "index.html")
    visits = [Visit(page, *view) for page in pages for view in ((1280, "light"), (390, "dark"))]
    visits += [Visit(folder / "local" / PAGE, width, axe=False) for width in (1280, 390)]
    found: dict[str, list[dict[str, Any]]] = {}
    for visit, result in zip(visits, visit_pages(chromium, visits), strict=True):
        found.setdefault(str(visit.file.parent.relative_to(folder)), []).append(result)
    return found


@pytest.mark.parametrize("run", ["local", "failed", "markup", "killed", "regression/run", "index"])
def test_page_loads_nothing_fits_and_is_accessible(results: dict[str, list[dict[str, Any]]], run: str) -> None:
    assert len(results[run]) == 2
    for result in results[run]:
        assert list_problems(result) == [], f"{run} at {result['width']} px, {result['scheme']}"
        assert result["axe"] is None or result["axe"]["passes"] > 20


def test_markup_of_model_error_and_test_arrives_as_text(results: dict[str, list[dict[str, Any]]]) -> None:
    for result in results["markup"]:
        assert result["elements"] == {"script": 1, "img": 0, "iframe": 0, "object": 0}, "the page's own script"
        for text in (f"a.py::test_a[{MARKUP}]", f"HTTP 500: {MARKUP}"):
            assert text in result["text"]
        assert result["text"].count(MARKUP) >= 8, "model, check, error, next step, reason, phase, publication, version"


def test_page_of_the_local_profile_is_under_1_mb(folder: Path) -> None:
    assert 300_000 < (folder / "local" / PAGE).stat().st_size < MOST_BYTES


def test_defects_of_a_page_are_reported(chromium: str, tmp_path: Path) -> None:
    page = tmp_path / "defective.html"
    page.write_text(DEFECTIVE, encoding="utf-8")
    (result,) = visit_pages(chromium, [Visit(page)])
    found = "\n".join(list_problems(result))
    for defect in (
        "request to http://127.0.0.1:9/x.png",
        "script: dialog: markup ran",
        "undefined_function is not defined",
        "px wider than the screen",
        "px wider than the sheet when printed",
        "color-contrast",
        "image-alt",
    ):
        assert defect in found

"""The page and its Markdown: verdict, causes, matrix; nothing from a server is markup, nothing is loaded."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.report.__main__ import main
from pytest_vllm_stage.report.causes import find_causes, find_gaps
from pytest_vllm_stage.report.html.page import render_page, rerun_command
from pytest_vllm_stage.report.markdown import LIMIT_BYTES, render_markdown
from pytest_vllm_stage.report.overview import summarise_run
from pytest_vllm_stage.report.run_data import load_run
from pytest_vllm_stage.report.slo_matrix import describe_step
from pytest_vllm_stage.report.values import format_interval, format_number
from tests.unit.made_results import rate_step
from tests.unit.made_run import check, independent, make_markup_run, make_run, steps


class Tags(HTMLParser):
    """Every tag with its attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))


def tags(page: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Tags()
    parser.feed(page)
    return parser.found


def broken_stage() -> list[dict[str, Any]]:
    message = (
        'stage failed: deployment/minio cannot become Available: secret minio-credentials has no key "secretkey"\n'
        "  expected keys accesskey, secretkey; got accesskey\n"
        "  next: kubectl -n vllm-stage get secret minio-credentials"
    )
    headline = message.splitlines()[0]
    return [
        check("deployment/test_serving.py::test_ready[full]", "error", message, when="setup"),
        *(check(f"x.py::test_{i}", "skipped", f"Skipped: {headline}", when="setup") for i in range(40)),
    ]


def test_one_cause_is_one_failure_however_many_checks_it_blocks(tmp_path: Path) -> None:
    data = load_run(make_run(tmp_path / "run", *broken_stage(), exit_status=1))
    (cause,) = find_causes(data)
    assert cause.headline.startswith("stage failed: deployment/minio cannot become Available")
    assert (len(cause.tests), len(cause.blocked)) == (1, 40)
    assert cause.next_steps == ("kubectl -n vllm-stage get secret minio-credentials",)
    assert "expected keys" in cause.message
    assert find_gaps(data) == []
    assert summarise_run(data).verdict == "fail"
    page = render_page(data)
    assert "40 more did not run because of it" in page
    assert "kubectl -n vllm-stage get secret minio-credentials" in page


def test_a_server_that_ended_is_the_first_cause_and_named_once(tmp_path: Path) -> None:
    line = "engine of full died at 22:46:13: ValueError: a; container c of pod p was restarted once"
    checks = [check(f"x.py::test_{i}", "failed", "connection refused") for i in range(3)]
    data = load_run(make_run(tmp_path / "run", *checks, {"kind": "restart", "name": line}, exit_status=1))
    assert [cause.headline for cause in find_causes(data)] == [line, "connection refused"]
    text = render_markdown(data)
    assert f"**{line}**\n" in text
    assert "0 checks failed" not in render_page(data) + text


def test_same_assertion_of_two_models_is_one_cause(tmp_path: Path) -> None:
    reasons = [f"def test():\n>   assert x\nE   AssertionError: expected {n} chunks, got 2\n" for n in (3, 5)]
    events = [check(f"a.py::test_a[{n}]", "failed", reason) for n, reason in enumerate(reasons)]
    data = load_run(make_run(tmp_path / "run", *events, exit_status=1))
    (cause,) = find_causes(data)
    assert cause.headline == "expected 3 chunks, got 2"
    assert cause.message == "expected 3 chunks, got 2\nexpected 5 chunks, got 2"
    assert len(cause.tests) == 2
    assert rerun_command(data, [cause]) == "pytest 'a.py::test_a[0]' 'a.py::test_a[1]' --stage-strict"


def test_two_causes_met_by_one_xdist_worker_stay_two(tmp_path: Path) -> None:
    line = "[gw0] linux -- Python 3.11.7 /venv/bin/python"
    reasons = ("environment unusable: not allowed to get role/a", "the server accepted a wrong key")
    events = [check(f"a.py::test_{n}", "failed", f"{line}\n{reason}") for n, reason in enumerate(reasons)]
    found = find_causes(load_run(make_run(tmp_path / "run", *events, exit_status=1)))
    assert {cause.headline for cause in found} == set(reasons)


def test_headline_has_the_name_of_an_exception_without_its_module(tmp_path: Path) -> None:
    reason = "E   package.checks.asking.RelationBroken: a.b.C: streamed != plain"
    data = load_run(make_run(tmp_path / "run", check("a.py::test_a", "failed", reason), exit_status=1))
    assert [cause.headline for cause in find_causes(data)] == ["RelationBroken: a.b.C: streamed != plain"]


def test_markdown_shows_a_message_of_one_line_once(tmp_path: Path) -> None:
    data = load_run(make_run(tmp_path / "run", check("a.py::test_a", "failed", "E   no answer"), exit_status=1))
    assert render_markdown(data).count("no answer") == 2, "in the verdict's reasons and as the cause"
    assert "(1 check failed)" in render_markdown(data)


@pytest.mark.parametrize(
    ("exit_status", "event", "verdict"),
    [
        (0, check("a.py::test_a"), "pass"),
        (1, check("a.py::test_a", "failed", "E   assert 0"), "fail"),
        (69, check("a.py::test_a", "error", "environment unusable: no containerd"), "environment unusable"),
        (0, check("a.py::test_a", "skipped", "Skipped: full-rate-1: inconclusive: too few samples"), "inconclusive"),
        (2, check("a.py::test_a"), "incomplete"),
        (None, check("a.py::test_a"), "incomplete"),
    ],
)
def test_verdict_of_a_run(tmp_path: Path, exit_status: int | None, event: dict[str, Any], verdict: str) -> None:
    data = load_run(make_run(tmp_path / "run", event, exit_status=exit_status))
    assert summarise_run(data).verdict == verdict
    assert verdict in render_markdown(data)
    assert f"<title>{verdict}" in render_page(data)


def test_page_of_a_killed_run_says_what_is_missing(tmp_path: Path) -> None:
    page = render_page(load_run(make_run(tmp_path / "run", exit_status=None)))
    assert "This report is incomplete" in page
    assert "run.json is missing" in page
    assert "the run was killed, or it still runs" in page


def test_matrix_cell_has_value_limit_interval_and_sample_sizes(tmp_path: Path) -> None:
    slow = independent(rate_step(5.0, "full", "smollm2-135m"), ttft_s=0.9)
    data = load_run(make_run(tmp_path / "run", measurements=[*steps()[:2], slow]))
    (gate,), (slow_gate,) = data.steps[1].gates, data.steps[2].gates
    assert (gate.outcome, slow_gate.outcome) == ("pass", "fail")
    for text in (render_page(data), render_markdown(data)):
        cells = [re.sub(r"<[^>]*>", " ", cell) for cell in re.split(r"<td|\|", text) if "n 200" in cell and "≤" in cell]
        kept, broken = (" ".join(cell.split()) for cell in cells)
        assert f"{format_number(gate.observed)} ms ≤ 500 ms" in kept
        assert f"95 % CI {format_interval(gate.interval)}" in kept
        assert ("effective" in kept) == (gate.effective_n != gate.n)
        assert "✓" in kept
        assert "✗" in broken
        assert f"{format_number(slow_gate.observed)} ms ≤ 500 ms" in broken


@pytest.mark.parametrize(("outcome", "word"), [("pass", "kept"), ("fail", "not kept"), ("inconclusive", "not decided")])
def test_objective_of_an_observation_is_kept_or_not_or_not_decided(tmp_path: Path, outcome: str, word: str) -> None:
    made = load_run(make_run(tmp_path / "run", measurements=steps()[:2])).steps[1]
    gate = replace(made.gates[0], outcome=outcome, observed=None)
    percentile = {**made.percentiles[gate.objective], "value": 1334.0, "at_least": True}
    step = replace(
        made, outcome="observed", gates=(gate,), percentiles={**made.percentiles, gate.objective: percentile}
    )
    assert f"{gate.objective}: ○ {word}, > 1,334 ms ≤ 500 ms" in describe_step(step)


def test_markup_from_a_server_arrives_as_text(tmp_path: Path) -> None:
    data = load_run(make_markup_run(tmp_path / "run"))
    found = tags(render_page(data))
    assert [tag for tag, _ in found].count("script") == 1, "the page's own"
    assert not [tag for tag, _ in found if tag == "img"]
    assert not [name for _, attributes in found for name in attributes if name.startswith("on")]
    assert "alert(1)" in render_page(data), "it was there to be escaped"
    markdown = render_markdown(data)
    outside_code = re.sub(r"^(`{3,})text\n.*?\n\1$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    assert "<img" not in outside_code
    assert "<script" not in outside_code


def test_page_loads_nothing(tmp_path: Path) -> None:
    page = render_page(load_run(make_run(tmp_path / "run", check("a.py::test_a"), measurements=steps())))
    loading = {"src", "srcset", "data", "poster", "action", "formaction"}
    for tag, attributes in tags(page):
        assert not loading & set(attributes), (tag, attributes)
        if tag == "link":
            assert attributes["href"] == "data:,"
        if tag == "a":
            assert not re.match(r"(https?:)?//", attributes["href"] or "")
    assert not re.search(r"@import|url\((?!#)", page)
    assert "default-src 'none'" in page


def test_markdown_keeps_its_limit(tmp_path: Path) -> None:
    events = [check(f"a.py::test_{name * 200}", "failed", f"E   {name * 300}") for name in "abcdefghijklmnopqrst"]
    gaps = [check(f"a.py::test_{n}", "skipped", f"reason {chr(65 + n % 26) * 3000} {n}") for n in range(40)]
    text = render_markdown(load_run(make_run(tmp_path / "run", *events, *gaps, exit_status=1)))
    assert LIMIT_BYTES * 0.9 < len(text.encode()) <= LIMIT_BYTES
    assert text.endswith("*The rest did not fit; `report.html` has it.*\n")


def test_command_writes_the_documents_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = make_run(tmp_path / "run", check("a.py::test_a"))
    before = {path.name for path in folder.iterdir()}
    assert main([str(folder)]) == 0
    assert {"report.html", "report.md"} <= {path.name for path in folder.iterdir()} - before
    assert main([str(tmp_path / "none")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / 'none'}: no such run directory\n"

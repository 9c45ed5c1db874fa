"""The index over all runs, and the retention of old ones: what is not a run is neither shown nor removed."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pytest_vllm_stage.report.__main__ import main
from pytest_vllm_stage.report.index import read_entries, remove_old_runs, write_index
from tests.unit.made_run import check, make_run, steps


def place_run(folder: Path, run_id: str, at: float, *, exit_status: int | None = 0) -> Path:
    """A run that is named as its folder is, as the plugin does it."""
    path = make_run(folder / run_id, check("a.py::test_a"), measurements=steps()[:1], exit_status=exit_status)
    for name in ("journal.jsonl", "run.json"):
        if (path / name).exists():
            (path / name).write_text((path / name).read_text().replace("20261124-100000-aaaa", run_id))
    journal = path / "journal.jsonl"
    journal.write_text(journal.read_text().replace("1795514400.0", str(at)))
    if exit_status is not None:
        record = json.loads((path / "run.json").read_text())
        (path / "run.json").write_text(json.dumps(record | {"started_at": at, "ended_at": at + 60}))
    return path


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_index_shows_every_run_newest_first_and_nothing_else(tmp_path: Path) -> None:
    for number in (1, 3, 2):
        place_run(tmp_path, f"2026112{number}-000000-aaaa", 1000.0 * number, exit_status=number % 2)
    place_run(tmp_path, "20261124-000000-dead", 4000.0, exit_status=None)
    (tmp_path / "baselines").mkdir()
    (tmp_path / "baselines" / "local.jsonl").write_text("")
    (tmp_path / "20261121-000000-aaaa" / "report.html").write_text("")
    page = write_index(tmp_path).read_text()
    order = [page.index(name) for name in ("20261124-000000-dead", "20261123-", "20261122-", "20261121-")]
    assert order == sorted(order)
    assert "baselines" not in page
    assert 'href="20261121-000000-aaaa/report.html"' in page
    assert 'href="20261122-000000-aaaa/report.html"' not in page, "it has no page"
    assert page.count("<polyline") == 2, "TTFT and TPOT of the one promised step"
    assert "… incomplete" in page


def test_index_escapes_what_came_from_a_server(tmp_path: Path) -> None:
    path = place_run(tmp_path, "20261121-000000-aaaa", 1000.0)
    text = (path / "run.json").read_text().replace("smollm2-135m-quantized", "<script>alert(1)</script>")
    (path / "run.json").write_text(text)
    assert "<script" not in write_index(tmp_path).read_text()


def test_old_runs_are_removed_and_nothing_else(tmp_path: Path) -> None:
    for number in range(1, 6):
        place_run(tmp_path, f"2026112{number}-000000-aaaa", 1000.0 * number)
    running = place_run(tmp_path, "20261120-000000-beef", 1.0, exit_status=None)
    foreign = make_run(tmp_path / "renamed-by-a-person")
    (tmp_path / "baselines").mkdir()
    removed = remove_old_runs(tmp_path, 2, "20261121-000000-aaaa")
    assert sorted(removed) == ["20261122-000000-aaaa", "20261123-000000-aaaa"], "the current run stays, though oldest"
    assert names(tmp_path) == {
        "20261121-000000-aaaa", "20261124-000000-aaaa", "20261125-000000-aaaa", running.name, foreign.name, "baselines",
    }  # fmt: skip
    os.utime(running / "journal.jsonl", (1.0, 1.0))
    assert remove_old_runs(tmp_path, 2, "20261125-000000-aaaa") == ["20261121-000000-aaaa", running.name]


def test_command_updates_the_index_and_keeps_so_many(tmp_path: Path) -> None:
    for number in range(1, 4):
        place_run(tmp_path, f"2026112{number}-000000-aaaa", 1000.0 * number)
    assert main([str(tmp_path / "20261123-000000-aaaa"), "--index", "--keep-reports=2"]) == 0
    assert names(tmp_path) == {"index.html", "20261122-000000-aaaa", "20261123-000000-aaaa"}
    assert {entry.run_id: entry.page for entry in read_entries(tmp_path)} == {
        "20261122-000000-aaaa": False,
        "20261123-000000-aaaa": True,
    }

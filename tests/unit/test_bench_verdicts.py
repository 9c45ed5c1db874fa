"""The calibration of verdicts judges the steps that it claims, as `judge` does."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import judge
from tests.bench.bench_verdicts import (
    BenchRow,
    find_ideal,
    find_missed,
    judge_step,
    run,
    run_piece,
    table,
    write_manual,
)
from tests.bench.queues import Case, build_measurement, equal_waits, waiting_probability


def test_erlang_c_of_a_single_server_is_its_load() -> None:
    assert waiting_probability(1, 0.7) == pytest.approx(0.7)
    assert waiting_probability(16, 0.7) == pytest.approx(0.1, abs=0.03)


def test_waits_for_equal_answers_are_those_of_a_fifo_queue() -> None:
    assert equal_waits(np.array([0.0, 0.0, 0.0, 0.5, 3.0]), 2).tolist() == pytest.approx([0, 0, 1, 0.5, 0])


@pytest.mark.parametrize("queue", ["M/M", "M/D", "D/L", "sim"])
def test_steps_have_the_planned_load(queue: str) -> None:
    """The number of requests in a stationary engine is the rate times the time in it (Little's law)."""
    case = Case(queue, 0.5, 8, empty=True)
    (rows,) = case.steps(range(1), 3000)
    busy_s = sum(row.end_s - row.start_s for row in rows)
    assert busy_s / (8 * rows[-1].at_s) == pytest.approx(0.5, rel=0.15)
    assert all(row.at_s <= row.start_s < row.first_s <= row.end_s for row in rows)


def test_objectives_judged_together_have_the_verdicts_of_each_alone() -> None:
    for name in ("M/M 0.7", "M/D 1.1", "M/M 0.95"):
        row = BenchRow.parse(name)
        (rows,) = row.case.steps(range(1), 200)
        made = build_measurement(rows, row.case.arrivals)
        limits = [Objective("ttft_p90_ms", 200), Objective("ttft_p90_ms", 5000), Objective("e2e_latency_p50_s", 1.1)]
        alone = [judge(made, [one])[1] for one in limits]
        assert [one[0] for one in judge_step(made, limits)] == [one.outcome.value for one in alone]


def test_ideal_bound_passes_one_in_twenty_on_the_true_percentile() -> None:
    on = [("", "", float(misses), 1.0) for misses in range(100)]
    inside = [("", "", float(misses) / 2, 1.0) for misses in range(100)]
    assert find_ideal(on, on) == "5.0"
    assert float(find_ideal(on, inside)) == pytest.approx(10, abs=1)


def test_row_name_is_read_back() -> None:
    for name in ("M/M 0.95 n=60 empty", "sim 0.7", "D/L 1.03"):
        assert BenchRow.parse(name).name == name


def test_piece_holds_each_step_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.bench_verdicts.PIECE", 2)
    monkeypatch.setattr("tests.bench.bench_verdicts.EARLY", 1)
    piece = run_piece(BenchRow.parse("M/D 1.1 n=100"), 0, {})
    assert {len(judged) for judged in piece["judged"].values()} == {2}
    assert {len(early) for early in piece["early"].values()} == {1}


def test_pieces_do_not_depend_on_the_number_of_workers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.bench.bench_verdicts.PIECE", 1)
    rows = [BenchRow.parse("M/D 1.1 n=60"), BenchRow.parse("sim 1.3 n=60")]
    for workers in (1, 2):
        assert run(tmp_path / str(workers), rows, 2, 5.0, workers)
    one, two = ({path.name: path.read_text() for path in (tmp_path / str(n)).iterdir()} for n in (1, 2))
    assert len(one) == 4
    assert one == two


def test_rows_on_the_wrong_side_of_a_target_are_named(tmp_path: Path) -> None:
    def piece(on: Sequence[str], inside: Sequence[str], *, unsteady: str = "") -> dict[str, Any]:
        rows = {"ttft_p90_ms on": on, "ttft_p90_ms inside": inside}
        judged = {
            name: [[outcome, unsteady, float(k), 1.0] for k, outcome in enumerate(row)] for name, row in rows.items()
        }
        return {"judged": judged, "early": {}}

    good = piece(["inconclusive"] * 95 + ["pass"] * 5, ["pass"] * 90 + ["inconclusive"] * 10)
    bad = piece(["inconclusive"] * 90 + ["pass"] * 10, ["pass"] * 80 + ["inconclusive"] * 20, unsteady="not steady")
    (tmp_path / "MD 0.7 00000.json").write_text(json.dumps(good))
    (tmp_path / "MM 0.7 00000.json").write_text(json.dumps(bad))
    rows = [BenchRow.parse("M/D 0.7"), BenchRow.parse("M/M 0.7")]
    missed = list(find_missed(tmp_path, rows))
    assert [line.split(" of 100 steps ")[1] for line in missed] == [
        "pass, at most 6 % are meant to",
        "are not steady, at most 1 % are meant to",
        "pass 20 % inside, at least 85 % are meant to (ideal 5.0 %)",
    ]
    assert all(line.startswith("M/M 0.7, ttft_p90_ms: ") for line in missed)
    manual = tmp_path / "manual.md"
    manual.write_text("before\n<!-- calibration -->\nold\n<!-- end of calibration -->\nafter\n")
    for _ in range(2):
        write_manual(manual, list(table(tmp_path, rows)))
    assert manual.read_text().startswith("before\n<!-- calibration -->\n| queue, load, steps | objective | on the")
    assert manual.read_text().endswith(" |\n<!-- end of calibration -->\nafter\n")
    assert "old" not in manual.read_text()

"""How much of a build is done, and the time that remains."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.local.build_progress import BuildProgress, estimate_left_s, parse_costs, share_built

COSTS = {"runtime": 100, "net": 300, "example.org/large": 600}


def test_costs_are_those_of_the_source_files(tmp_path: Path) -> None:
    (tmp_path / "a.go").write_bytes(b"x" * 30)
    (tmp_path / "b.go").write_bytes(b"x" * 12)
    assert parse_costs([f"net|{tmp_path}|a.go|b.go", f"unsafe|{tmp_path}|"]) == {
        "net": 20_042,
        "unsafe": 20_000,
    }


@pytest.mark.parametrize(
    ("started", "costs", "share"),
    [
        (["runtime", "net"], COSTS, 0.95 * 0.4),
        (["runtime", "net", "example.org/large"], COSTS, 0.95),
        (["runtime", "# example.org/warning"], COSTS, 0.95 * 0.1),
        (["runtime"], {}, None),
        # Go's cache has the library of every program, and so it has others.
        (["example.org/large"], COSTS, None),
        ([], COSTS, None),
    ],
)
def test_share_is_weighted_by_source_size(started: list[str], costs: dict[str, int], share: float | None) -> None:
    assert share_built(started, costs) == pytest.approx(share)


@pytest.mark.parametrize(
    ("share", "elapsed_s", "left_s"), [(None, 60.0, None), (0.3, 60.0, None), (0.4, 60.0, 90.0), (0.95, 380.0, 20.0)]
)
def test_time_that_remains_follows_the_pace_so_far(share: float | None, elapsed_s: float, left_s: float | None) -> None:
    assert estimate_left_s(share, elapsed_s) == pytest.approx(left_s)


def test_progress_estimates_once_packages_are_compiled_and_their_costs_known(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log, listing, now_s = tmp_path / "log", tmp_path / "packages", 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: now_s)
    (tmp_path / "a.go").write_bytes(b"x" * 50)

    def list_packages(file: Path) -> subprocess.Popen[bytes]:
        file.write_text(f"runtime|{tmp_path}|a.go\nnet|{tmp_path}|a.go\n")
        process = subprocess.Popen(["true"])
        process.wait()
        return process

    progress = BuildProgress(log, listing, list_packages)
    log.write_text("go: downloading example.org/large v1.2.3\n")
    assert progress.describe() == "loading the modules"
    log.write_text("go: downloading example.org/large v1.2.3\nruntime\n")
    progress.describe()
    now_s += 19 * 60
    # 0.475 of it took 19 minutes.
    assert progress.describe() == "1 packages compiled, about 21 min remain"
    progress.close()


def test_no_time_is_stated_where_the_list_fails(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("runtime\nnet\n")
    progress = BuildProgress(log, tmp_path / "packages", lambda _file: subprocess.Popen(["false"]))
    assert progress.describe() == "2 packages compiled"
    progress.close()

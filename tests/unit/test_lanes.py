"""Which tests of tests/real share a worker."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import lanes


@pytest.mark.parametrize(
    "name", ["cluster_local", "cluster_local_ends", "planted_drift", "probe_faults", "stage_faults", "stage_simulated"]
)
def test_files_with_a_cluster_share_a_lane(name: str) -> None:
    assert lanes.find_lane(f"tests/real/test_{name}.py::test_a[b]") == lanes.CLUSTER


def test_other_files_have_a_lane_of_their_own() -> None:
    found = {str(path.relative_to(lanes.ROOT)) for path in (lanes.ROOT / "tests" / "real").glob("test_*.py")}
    apart = {file for file in found if lanes.find_lane(f"{file}::test_a") == file}
    assert {"tests/real/test_guidellm.py", "tests/real/test_publication.py"} <= apart
    assert lanes.find_lane("tests/unit/test_files.py::test_a[b::c]") == "tests/unit/test_files.py::test_a[b::c]"


def test_a_file_that_starts_a_cluster_is_found(tmp_path: Path) -> None:
    (tmp_path / "starts.py").write_text("from pytest_vllm_stage.cluster import kubeconfig, local\n")
    (tmp_path / "builds.py").write_text("from pytest_vllm_stage.cluster.local import components\n")
    (tmp_path / "shares.py").write_text("def test_a(simulated_cluster): ...\n")
    assert [lanes.needs_cluster(tmp_path / f"{name}.py") for name in ("starts", "builds", "shares")] == [
        True,
        False,
        True,
    ]

"""Which tests of tests/real share a worker, and in which order their lanes start."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests import lanes

FILES = sorted((lanes.ROOT / lanes.REAL).glob("test_*.py"))


def relative(file: Path) -> str:
    return file.relative_to(lanes.ROOT).as_posix()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_files_with_a_cluster_are_planned_and_no_others(file: Path) -> None:
    """A new file with a cluster belongs into one of the lanes, where it fits by its duration."""
    assert bool(lanes.find_cluster_lane(file)) == lanes.needs_cluster(file)


def test_plan_names_existing_files_once() -> None:
    planned = [name for names in (*lanes.CLUSTER_LANES.values(), lanes.LONG) for name in names]
    assert len(planned) == len(set(planned))
    assert {f"test_{name}" for name in planned} <= {file.stem for file in FILES}


def test_other_files_have_a_lane_of_their_own() -> None:
    apart = {relative(file) for file in FILES if lanes.find_lane(f"{relative(file)}::test_a") == relative(file)}
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


def test_files_run_in_the_order_of_the_plan() -> None:
    ordered = [file.stem.removeprefix("test_") for file in sorted(FILES, key=lanes.find_place)]
    planned = [name for names in lanes.CLUSTER_LANES.values() for name in names]
    assert ordered[: len(planned)] == planned
    assert ordered[len(planned) : len(planned) + len(lanes.LONG)] == list(lanes.LONG)


class Worker:
    """An xdist worker that notes the tests that it receives."""

    def __init__(self, name: str) -> None:
        self.gateway, self.shutting_down = SimpleNamespace(id=name), False
        self.received: list[int] = []

    def send_runtest_some(self, indices: list[int]) -> None:
        self.received += indices

    def shutdown(self) -> None:
        self.shutting_down = True


@pytest.mark.parametrize(
    ("earlier", "expected"),
    [
        (0, ["cluster_local", "publication", "stage_simulated", "tekton", "registry_faults"]),
        (1, ["guidellm", "publication", "registry_faults", "stage_simulated", "tekton"]),
    ],
    ids=["machine's ends", "machine's goes on"],
)
def test_lanes_with_clusters_start_when_the_machines_has_ended(
    earlier: int, expected: list[str], monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    names = ["cluster_local", "stage_simulated", "tekton", "guidellm", "publication", "registry_faults"]
    tests = [f"{lanes.REAL}test_{name}.py::test_{number}" for name in names for number in range(4)]
    monkeypatch.setattr(pytestconfig.option, "tx", ["2*popen"])
    monkeypatch.setattr(pytestconfig.option, "loadscopereorder", False)
    scheduler = lanes.LanesScheduling(pytestconfig)
    workers: list[Any] = [Worker("gw0"), Worker("gw1")]
    for worker in workers:
        scheduler.add_node(worker)
    for worker in workers:
        scheduler.add_node_collection(worker, tests)
    scheduler.schedule()
    received = workers[earlier].received
    for done in range(len(tests)):
        if done < len(received):
            scheduler.mark_test_complete(workers[earlier], received[done])
    assert list(dict.fromkeys(names[index // 4] for index in received)) == expected

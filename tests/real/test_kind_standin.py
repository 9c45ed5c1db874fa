"""Runs with --stage-cluster=kind, where kind is a stand-in that hands out a local cluster: see `kind_standin`.

KServe's manager and its webhooks run in that cluster as they would in a real kind cluster; the stage is the simulated
one, since no image can be pulled here.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.waiting import Observation, wait_until
from tests.real import kind_standin
from tests.real.live_stage import SILENT

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
RUN_S = 900
#: Objects, volumes and restarts of the stage; nothing that sends many requests.
CHECKS = ("suites/deployment/test_serving.py", "suites/deployment/test_storage.py")
PROFILE = """
name = "kind-standin"
description = "the simulated stage on a stand-in for kind"
overlay = "{overlay}"
namespace = "{namespace}"
[models.full]
inference_service = "smollm2-135m"
[models.quantized]
inference_service = "smollm2-135m-quantized"
"""


@dataclass
class KindPrograms:
    """The stand-in's programs and notes, and how a run uses them."""

    folder: Path
    programs: Path

    @property
    def command(self) -> list[str]:
        overlay = fixtures_dir() / "overlays" / "local-sim"
        profile = self.folder / "kind-kind.toml"
        profile.write_text(PROFILE.format(overlay=overlay, namespace=kind_standin.NAMESPACE))
        options = ["--stage-cluster=kind", f"--stage-profile={profile}", "--stage-report=never"]
        return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *CHECKS, *options]

    @property
    def environment(self) -> dict[str, str]:
        environment = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
        path = f"{self.programs}{os.pathsep}{os.environ['PATH']}"
        return environment | {"PATH": path, kind_standin.VARIABLE: str(self.folder), "PYTHONPATH": str(ROOT)}

    def clusters(self) -> list[str]:
        return [path.name for path in self.folder.glob("vllm-stage-*")]

    def calls(self) -> list[str]:
        return (self.folder / "calls").read_text().splitlines()


@pytest.fixture(scope="module")
def kind(simulated_cluster: ClusterFacts, tmp_path_factory: pytest.TempPathFactory) -> KindPrograms:
    folder, cluster = tmp_path_factory.mktemp("kind"), simulated_cluster
    assert cluster.state_dir
    place = (cluster.kubeconfig, cluster.context, cluster.kubectl, cluster.state_dir)
    return KindPrograms(folder, kind_standin.install(folder, *place))


def test_the_cluster_of_a_killed_run_is_removed_by_the_next_which_deploys_validates_and_removes_its_own(
    kind: KindPrograms, tmp_path: Path
) -> None:
    killed = _kill_in_creation(kind, tmp_path / "killed")
    done = subprocess.run(
        [*kind.command, f"--stage-run-dir={tmp_path / 'run'}"],
        cwd=ROOT, env=kind.environment, capture_output=True, text=True, check=False, timeout=RUN_S,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    assert f"removed the leftovers of a killed run: kind cluster {killed} of run " in output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["cluster_kind"] == "kind"
    assert len([test for test in record["tests"] if test["outcome"] == "passed"]) > 8, output
    assert kind.clusters() == [], "the run deletes its own cluster"
    verbs = [call.split(" --")[0] for call in kind.calls() if call.startswith("kind ")]
    assert [" ".join(verb.split()[:2]) for verb in verbs] == [
        "kind create", "kind delete", "kind create", "kind load", "kind delete",
    ]  # fmt: skip


def _kill_in_creation(kind: KindPrograms, directory: Path) -> str:
    """Kill a run as soon as its cluster exists; return the cluster's name."""
    (kind.folder / kind_standin.HANG).touch()
    command = [*kind.command, f"--stage-run-dir={directory}"]
    with subprocess.Popen(
        command, cwd=ROOT, env=kind.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        start_new_session=True,
    ) as run:  # fmt: skip
        try:
            wait_until(
                "a cluster of the stand-in",
                lambda: Observation(bool(kind.clusters()), "none"),
                timeout_s=180,
                journal=SILENT,
                interval_s=0.05,
                error=EnvironmentUnusable,
            )
        finally:
            os.killpg(run.pid, signal.SIGKILL)
            (kind.folder / kind_standin.HANG).unlink()
    (name,) = kind.clusters()
    return name

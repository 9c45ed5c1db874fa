"""Runs with --stage-cluster=kind in a real Docker and Podman: kind's node, kubeadm, KServe, and the simulated stage.

Both come from the distribution's packages and the node image is made here: see `kind_node`. It is cached; making it
takes about five minutes.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.kind import options
from pytest_vllm_stage.cluster.local import components, images
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.paths import PACKAGE, cache_dir
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.engine import simulated
from tests.real.kind_node import image
from tests.real.kind_node.docker import Docker, running_docker
from tests.real.kind_node.podman import Podman, running_podman
from tests.real.live_stage import SILENT

pytestmark = [pytest.mark.real, pytest.mark.nightly]

ROOT = Path(__file__).parents[2]
RUN_S = 900
NEEDED = ("apt-get", "nsenter", "perl", "setpriv", "unshare")
#: Objects, volumes and restarts of the stage, and what its models answer.
CHECKS = ("suites/deployment/test_serving.py", "suites/deployment/test_storage.py", "suites/inference/test_answers.py")
PROFILE = """
name = "kind-node"
description = "the simulated stage on kind's node"
overlay = "{overlay}"
namespace = "vllm-stage"
[models.full]
inference_service = "smollm2-135m"
tool_format = "hermes"
[models.quantized]
inference_service = "smollm2-135m-quantized"
tool_format = "hermes"
"""


@dataclass
class KindRuns:
    """How a run uses kind in the test's container runtime."""

    runtime: Docker | Podman
    folder: Path

    def command(self, directory: Path) -> list[str]:
        profile = self.folder / "kind-node.toml"
        profile.write_text(PROFILE.format(overlay=Path(image.__file__).parent / "stage"))
        choices = ["--stage-cluster=kind", f"--stage-profile={profile}", "--stage-report=never"]
        pytest_command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *CHECKS, *choices]
        return self.runtime.command(*pytest_command, f"--stage-run-dir={directory}")

    @property
    def environment(self) -> dict[str, str]:
        kind = components.ensure(SILENT, ["kind"])["kind"].parent
        return self.runtime.environment | {
            "PATH": f"{kind}{os.pathsep}{self.runtime.environment['PATH']}",
            options.CONFIG_VARIABLE: str(self._write_config()),
            options.IMAGES_VARIABLE: str(self._link_archives()),
            "VLLM_STAGE_CACHE_DIR": str(self._link_cache()),
        }

    def containers(self) -> list[str]:
        return self.runtime.run("ps", "--all", "--format", "{{.Names}}").split()

    def _link_cache(self) -> Path:
        """The cache without its clusters: another run would remove those of a killed run by its own runtime."""
        folder = self.folder / "cache"
        folder.mkdir(exist_ok=True)
        for name in ("components", "images", "sim"):
            if not (folder / name).exists():
                (folder / name).symlink_to(cache_dir() / name)
        return folder

    def _write_config(self) -> Path:
        """A node with the folders of this machine that the simulated stage's pods mount."""
        engine, weights = simulated.ensure(SILENT)
        shown = {"engine": engine.prefix, "python": engine.base_prefix, "weights": weights, "package": PACKAGE}
        mounts = [
            {"hostPath": str(path), "containerPath": f"/mnt/vllm-stage/{name}", "readOnly": True}
            for name, path in shown.items()
        ]
        node = {"role": "control-plane", "image": image.NAME, "extraMounts": mounts}
        config = {"kind": "Cluster", "apiVersion": "kind.x-k8s.io/v1alpha4", "nodes": [node]}
        path = self.folder / "kind.yaml"
        path.write_text(json.dumps(config))
        return path

    def _link_archives(self) -> Path:
        folder = self.folder / "images"
        folder.mkdir(exist_ok=True)
        programs = components.ensure(SILENT)
        for archive in images.ensure([one for one in images.stage_images(programs) if one.name != images.PAUSE]):
            link = folder / archive.name
            if not link.exists():
                link.symlink_to(archive)
        return folder


@pytest.fixture(scope="module", params=[running_docker, running_podman], ids=["docker", "podman"])
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[KindRuns]:
    missing = [name for name in NEEDED if not shutil.which(name)]
    if sys.platform != "linux" or os.geteuid() != 0 or missing:
        pytest.skip(f"a container runtime of its own needs Linux, root, and {', '.join(missing or NEEDED)}")
    with request.param(SILENT) as runtime:
        yield KindRuns(runtime, tmp_path_factory.mktemp(f"kind-{runtime.name}"))


def test_the_cluster_of_a_killed_run_is_removed_by_the_next_which_deploys_validates_and_removes_its_own(
    runs: KindRuns, tmp_path: Path
) -> None:
    killed = _end_in_creation(runs, tmp_path / "killed", signal.SIGKILL)
    assert runs.containers() == [killed]
    done = subprocess.run(
        runs.command(tmp_path / "run"),
        cwd=ROOT, env=runs.environment, capture_output=True, text=True, check=False, timeout=RUN_S,
    )  # fmt: skip
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    name = killed.removesuffix("-control-plane")
    assert f"removed the leftovers of a killed run: kind cluster {name} of run " in output
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["cluster_kind"] == "kind"
    assert len([test for test in record["tests"] if test["outcome"] == "passed"]) > 20, output
    assert runs.containers() == []


def test_an_interrupted_run_removes_its_cluster(runs: KindRuns, tmp_path: Path) -> None:
    _end_in_creation(runs, tmp_path / "interrupted", signal.SIGINT)
    # The process in front of the run's, which enters the runtime's namespaces, may end before it.
    try:
        _await_containers(runs, 0)
    except EnvironmentUnusable as error:
        pytest.fail(f"{error}\n{(tmp_path / 'interrupted' / 'output').read_text()}")


def _end_in_creation(runs: KindRuns, directory: Path, how: signal.Signals) -> str:
    """End a run as soon as its node exists, as Ctrl-C or a kill would; return the node's name."""
    directory.mkdir()
    with (directory / "output").open("w") as output, subprocess.Popen(
        runs.command(directory), cwd=ROOT, env=runs.environment, stdout=output, stderr=output, start_new_session=True
    ) as run:  # fmt: skip
        try:
            _await_containers(runs, 1)
            (name,) = runs.containers()
        except BaseException:
            os.killpg(run.pid, signal.SIGKILL)
            raise
        os.killpg(run.pid, how)
        run.wait(timeout=240)
    return name


def _await_containers(runs: KindRuns, count: int) -> None:
    wait_until(
        f"{count} containers of kind",
        lambda: Observation(len(runs.containers()) == count, str(runs.containers())),
        timeout_s=240,
        journal=SILENT,
        interval_s=0.2,
        error=EnvironmentUnusable,
    )

"""A local cluster for stages with the simulated engine, and kubectl for what a test plants there."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pytest_vllm_stage.cluster import local
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.engine import simulated
from pytest_vllm_stage.settings.profile import Profile, parse_profile
from pytest_vllm_stage.stage.deploy import secrets, waves
from pytest_vllm_stage.stage.facts import StageFacts
from tests.real.machine_locks import starting_cluster

SILENT = Journal()


@contextmanager
def running_simulated_cluster(run_id: str) -> Iterator[ClusterFacts]:
    """A local cluster whose pods can mount the simulated engine and its weights."""
    engine, weights = simulated.ensure(SILENT)
    mounts = {"engine": engine.prefix, "python": engine.base_prefix, "weights": weights}
    with starting_cluster():
        cluster = local.start(run_id=run_id, lifeline_pid=os.getpid(), mounts=mounts, journal=SILENT, wait_s=900)
    try:
        yield cluster
    finally:
        assert cluster.state_dir
        assert local.stop(cluster.state_dir, SILENT) == []


def deploy(cluster: ClusterFacts, overlay: Path, namespace: str, models: dict[str, str], folder: Path) -> StageFacts:
    """Deploy an overlay's stage; ``models`` maps each role to its InferenceService.

    Raises:
        WaitFailed: the stage does not become Ready.
    """
    return waves.deploy(
        cluster,
        _profile(overlay, namespace, models, folder),
        namespace=namespace,
        run_id=namespace,
        secrets=secrets.load(overlay, None),
        journal=SILENT,
        diagnostics=folder / "diagnostics",
    )


def remove_in_background(cluster: ClusterFacts, namespace: str) -> None:
    """Delete a stage's namespace without waiting: other tests use the cluster, in namespaces of their own."""
    run_kubectl(cluster, "default", "delete", "--wait=false", f"namespace/{namespace}")


def _profile(overlay: Path, namespace: str, models: dict[str, str], folder: Path) -> Profile:
    data = {
        "name": namespace,
        "description": "",
        "overlay": str(overlay),
        "namespace": namespace,
        "models": {role: {"inference_service": service} for role, service in models.items()},
    }
    return parse_profile(data, folder / f"{namespace}.toml")


def run_kubectl(
    cluster: ClusterFacts, namespace: str, *arguments: str, manifest: str = "", timeout_s: float = 300
) -> str:
    """Run kubectl as the cluster's administrator; returns what it printed."""
    place = ["--kubeconfig", cluster.kubeconfig, "--context", cluster.context, "-n", namespace]
    done = subprocess.run(
        [cluster.kubectl, *place, *arguments],
        input=manifest,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def load_image(cluster: ClusterFacts, archive: Path) -> None:
    """Give an image to the cluster's containerd, whose socket is in a mount namespace of its own."""
    pid = next(
        entry.name
        for entry in Path("/proc").glob("[0-9]*")
        if _command_of(entry)[:1] == ["containerd"] and f"{cluster.state_dir}/" in " ".join(_command_of(entry))
    )
    socket = f"/proc/{pid}/root/run/containerd/containerd.sock"
    command = ["ctr", "--address", socket, "--namespace", "k8s.io", "images", "import", "--digests=false", str(archive)]
    subprocess.run(command, check=True, capture_output=True, timeout=120)


def _command_of(process: Path) -> list[str]:
    try:
        return (process / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []

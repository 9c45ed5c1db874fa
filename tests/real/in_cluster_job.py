"""docs/ci's recipes on the local cluster: with the machine's files in the place of their image."""

from __future__ import annotations

import json
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.waiting import Observation, wait_until

Object = dict[str, Any]
ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "docs" / "ci" / "cronjob.yaml"
IMAGE = "vllm-stage.local/base:1"
JOB_S = 240


class JobOutcome(NamedTuple):
    """A Job that ended."""

    succeeded: bool
    exit_code: int
    log: str


class Kubectl:
    """kubectl as the cluster's administrator, in the stage's namespace."""

    def __init__(self, cluster: ClusterFacts, namespace: str) -> None:
        place = ["--kubeconfig", cluster.kubeconfig, "--context", cluster.context, "-n", namespace]
        self._command = [cluster.kubectl, *place]

    def __call__(self, *arguments: str, stdin: str = "") -> str:
        command = [*self._command, *arguments]
        done = subprocess.run(command, input=stdin, capture_output=True, text=True, timeout=300, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout


def host_folders(cluster: ClusterFacts) -> dict[str, str]:
    """Where a pod sees a folder, to the folder of this machine: all that this checkout needs to run."""
    packages = sysconfig.get_path("purelib")
    folders = {"/usr", "/lib", "/lib64", sys.base_prefix, packages, str(ROOT), str(Path(cluster.kubectl).parent)}
    return {folder: folder for folder in folders}


def host_volumes(folders: Mapping[str, str]) -> list[Object]:
    """The volumes of a pod whose containers `use_host`."""
    return [
        {"name": f"host-{index}", "hostPath": {"path": folders[place], "type": "Directory"}}
        for index, place in enumerate(sorted(folders))
    ]


def use_host(
    container: Object, cluster: ClusterFacts, folders: Mapping[str, str], environment: Mapping[str, str]
) -> None:
    """Give a container of a recipe this machine's files in the place of its image.

    Args:
        container: The container, or a step of Tekton.
        cluster: The local cluster.
        folders: See `host_folders`.
        environment: Variables in the place of the recipe's, or besides them.
    """
    packages = sysconfig.get_path("purelib")
    values = {
        "PATH": f"{sys.base_prefix}/bin:{Path(cluster.kubectl).parent}:/usr/bin:/bin",
        "LD_LIBRARY_PATH": f"{sys.base_prefix}/lib",
        "PYTHONPATH": f"{ROOT}:{packages}",
        "SUITES": str(ROOT / "suites"),
        **environment,
    }
    container["image"] = IMAGE
    found = {entry["name"]: entry for entry in container["env"]}
    found |= {name: {"name": name, "value": value} for name, value in values.items()}
    container["env"] = list(found.values())
    # A new list: the CronJob's containers share one by a YAML anchor.
    container["volumeMounts"] = [
        *container.get("volumeMounts", []),
        *(
            {"name": f"host-{index}", "mountPath": place, "readOnly": True}
            for index, place in enumerate(sorted(folders))
        ),
    ]


def image_free(cluster: ClusterFacts, profile: Path, selection: str) -> Object:
    """The recipe's CronJob, which runs this checkout with this interpreter, as root since the files may be root's.

    Args:
        cluster: The local cluster, whose pods can mount this machine's folders.
        profile: The file of the profile; its folder is mounted.
        selection: pytest's ``-k``.
    """
    cron, _claim = yaml.safe_load_all(RECIPE.read_text())
    pod = cron["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    own = {
        "PYTEST_ADDOPTS": f"-k '{selection}' -p tests.real.recorded_requests",
        "VLLM_STAGE_PROFILE": f"/profile/{profile.name}",
        "VLLM_STAGE_STRICT": "false",  # a stand-in for vLLM: some checks ask for a model
    }
    folders = host_folders(cluster) | {"/profile": str(profile.parent)}
    for container in [*pod["initContainers"], *pod["containers"]]:
        container["resources"] = {}
        use_host(container, cluster, folders, own)
    pod["securityContext"] = {"runAsUser": 0}
    pod["volumes"] = [{"name": "state", "emptyDir": {}}, {"name": "tmp", "emptyDir": {}}]
    pod["volumes"] += host_volumes(folders)
    cron["spec"]["suspend"] = True
    return dict(cron)


def run_job(kubectl: Kubectl, name: str) -> JobOutcome:
    """Run the CronJob once, by the command that an engineer uses; await its end."""
    kubectl("create", "job", "--from=cronjob/vllm-stage-nightly", name)
    ended: list[str] = []

    def observe() -> Observation:
        conditions = json.loads(kubectl("get", f"job/{name}", "-o", "json")).get("status", {}).get("conditions") or []
        ended[:] = [
            one["type"] for one in conditions if one["status"] == "True" and one["type"] in ("Complete", "Failed")
        ]
        return Observation(bool(ended), ", ".join(ended) or "running")

    wait_until(f"job/{name} ended", observe, timeout_s=JOB_S, journal=Journal(), error=EnvironmentUnusable)
    (pod,) = json.loads(kubectl("get", "pods", "-l", f"batch.kubernetes.io/job-name={name}", "-o", "json"))["items"]
    states = [*pod["status"]["initContainerStatuses"], *pod["status"]["containerStatuses"]]
    codes = [state["state"].get("terminated", {}).get("exitCode", -1) for state in states]
    log = kubectl("logs", f"pod/{pod['metadata']['name']}", "--all-containers", "--tail=-1")
    return JobOutcome(ended == ["Complete"], codes[-1], log)

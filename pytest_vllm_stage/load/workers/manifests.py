"""What a load step creates in the cluster: an Indexed Job, and the ConfigMap and the Secret that its pods mount."""

from __future__ import annotations

import base64
import copy
import hashlib
from collections.abc import Mapping
from pathlib import Path

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.workers.__main__ import ASSIGNMENT, CA_FILE
from pytest_vllm_stage.load.workers.assignment import Assignment
from pytest_vllm_stage.load.workers.package import pack_modules
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object

#: The folder of an overlay that renders to the Job of its load workers.
FOLDER = "load"
#: Where a pod finds the common start; the Job's own annotation gives the file its first, empty content.
START_ANNOTATION = "vllm-stage/load-start"
#: The API server stores no larger object.
LARGEST_BYTES = 1024 * 1024


def job_name(run_id: str, step_id: str) -> str:
    """The name of a step's Job, and of all that belongs to it; two runs on one stage do not share it."""
    return f"load-{hashlib.sha256(f'{run_id} {step_id}'.encode()).hexdigest()[:10]}"


def render_job(overlay: Path, kubectl: str, namespace: str) -> Object:
    """The overlay's Job of load workers.

    Raises:
        ConfigError: it has none.
    """
    folder = overlay / FOLDER
    if not folder.is_dir():
        raise ConfigError(
            f"--stage-load-from=cluster: overlay {overlay.name} declares no load workers: it has no folder {FOLDER}",
            hint=f"kubectl kustomize {overlay}/{FOLDER}",
        )
    jobs = render.select_kind(render.in_namespace(render.render(folder, kubectl), namespace), "Job")
    if len(jobs) != 1:
        raise ConfigError(f"{folder}: expected one Job, got {len(jobs)}")
    return jobs[0]


def complete_job(rendered: Object, name: str, workers: int, deadline_s: float) -> Object:
    """The Job of one step, still suspended."""
    job = copy.deepcopy(rendered)
    job["metadata"]["name"] = name
    job["spec"] |= {"completions": workers, "parallelism": workers, "activeDeadlineSeconds": round(deadline_s)}
    for volume in job["spec"]["template"]["spec"]["volumes"]:
        if volume["name"] == "load":
            volume["configMap"]["name"] = name
        elif volume["name"] == "tokens":
            volume["secret"]["secretName"] = name
    return job


def make_inputs(
    owner: Object, assignment: Assignment, ca_file: str | None, tokens: Mapping[str, Secret]
) -> tuple[list[Object], dict[str, Secret]]:
    """The ConfigMap and, where there are tokens, the Secret of a step; and the values of the Secret's placeholders.

    Both are owned by the Job, so that they go with it.

    Raises:
        ConfigError: the ConfigMap is too large.
    """
    metadata = {
        "name": owner["metadata"]["name"],
        "ownerReferences": [
            {
                "apiVersion": owner["apiVersion"],
                "kind": owner["kind"],
                "name": owner["metadata"]["name"],
                "uid": owner["metadata"]["uid"],
            }
        ],
    }
    data = {ASSIGNMENT: assignment.to_text()}
    if ca_file:
        data[CA_FILE] = Path(ca_file).read_text(encoding="utf-8")
    package = base64.b64encode(pack_modules()).decode()
    size = len(package) + sum(map(len, data.values()))
    if size > LARGEST_BYTES:
        raise ConfigError(f"the load workers' input has {size} bytes, and a ConfigMap holds at most {LARGEST_BYTES}")
    config_map = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        "data": data,
        "binaryData": {"package.zip": package},
    }
    if not tokens:
        return [config_map], {}
    values = {name.upper().replace("-", "_"): secret for name, secret in tokens.items()}
    secret = {
        "apiVersion": "v1",
        "kind": "Secret",
        "metadata": metadata,
        "stringData": {name: f"${{{name.upper().replace('-', '_')}}}" for name in tokens},
    }
    return [config_map, secret], values

"""Compares the weights on a model's volume with its manifest; a Job in the cluster hashes the volume's bytes."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from dataclasses import dataclass

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy.apply import Ownership, apply
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.conditions import JobComplete
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.observe.wait import wait_for_all

REPORT = "REPORT "


@dataclass(frozen=True)
class Report:
    """The report of the verification Job.

    Attributes:
        files: Path to size in bytes and SHA-256 of the bytes on the volume.
        manifest: The same from the manifest that the download wrote last; None where it wrote none.
        source: The same from the manifest at the source; None where the cluster cannot reach the source.
    """

    files: Mapping[str, tuple[int, str]]
    manifest: Mapping[str, tuple[int, str]] | None
    source: Mapping[str, tuple[int, str]] | None


def verification_job(download: Object, node: str | None) -> Object:
    """The Job that hashes the files on a download Job's volume, which it mounts read-only.

    Args:
        download: The declared download Job.
        node: The node of the pod that mounts the volume: a ReadWriteOnce volume can be mounted only there.
    """
    job = copy.deepcopy(download)
    job["metadata"] = {
        "name": objects.name_of(download).replace("download", "verify", 1),
        "labels": dict(download["metadata"].get("labels") or {}),
    }
    job["spec"] |= {"ttlSecondsAfterFinished": 600, "activeDeadlineSeconds": 3600}
    spec = job["spec"]["template"]["spec"]
    claims = {volume["name"] for volume in spec["volumes"] if "persistentVolumeClaim" in volume}
    for volume in spec["volumes"]:
        if volume["name"] in claims:
            volume["persistentVolumeClaim"]["readOnly"] = True
    container = spec["containers"][0]
    container["args"] = ["verify"]
    # The verification needs no token.
    container["env"] = [entry for entry in container["env"] if "value" in entry]
    for mount in container["volumeMounts"]:
        mount["readOnly"] = mount["name"] in claims or mount.get("readOnly", False)
    if node:
        spec["nodeSelector"] = {"kubernetes.io/hostname": node}
    return job


def verify(
    reader: StageReader, download: Object, node: str | None, run_id: str, timeout_s: float, journal: Journal
) -> Report:
    """Run the verification Job for a download and read its report; the Job is deleted afterwards.

    Raises:
        StageFailure: the Job did not complete, or printed no report.
    """
    job = verification_job(download, node)
    name = objects.name_of(job)
    apply(reader.kube, [job], reader.namespace, Ownership.for_run(run_id), {})
    try:
        wait_for_all(reader, [JobComplete(name, timeout_s)], journal)
        pods = reader.listed("Pod", {"batch.kubernetes.io/job-name": name})
        container = job["spec"]["template"]["spec"]["containers"][0]["name"]
        lines = [line for pod in pods for line in reader.logs(objects.name_of(pod), container, False)]
    finally:
        objects.delete(reader.kube, job, reader.namespace, propagation="Background")
    return parse(lines, name)


def parse(lines: list[str], job: str) -> Report:
    """The report among a Job's log lines.

    Raises:
        StageFailure: there is none.
    """
    found = [line.removeprefix(REPORT) for line in lines if line.startswith(REPORT)]
    if not found:
        raise StageFailure(f"job/{job} completed without a report", hint=f"kubectl logs job/{job}")
    data = json.loads(found[-1])
    return Report(
        files=_by_path(data["files"]),
        manifest=_by_path(data["manifest"]["files"]) if data["manifest"] else None,
        source=_by_path(data["source_manifest"]["files"]) if data["source_manifest"] else None,
    )


def _by_path(entries: list[Object]) -> dict[str, tuple[int, str]]:
    return {entry["path"]: (entry["size_bytes"], entry["sha256"]) for entry in entries}


def problems(report: Report) -> list[str]:
    """The differences between volume, manifest and source, one line per file."""
    if not report.manifest:
        return ["weights unverified: the volume has no manifest, or an empty one: the download did not finish"]
    lines = []
    for path, (size, digest) in report.manifest.items():
        found_size, found = report.files.get(path, (0, ""))
        if path not in report.files:
            lines.append(f"weights incomplete: file {path} is missing")
        elif found != digest:
            lines.append(f"weights altered: file {path} has sha256 {found}, manifest says {digest}")
        elif found_size != size:
            lines.append(f"weights altered: file {path} has {found_size} bytes, manifest says {size}")
    lines += [f"weights altered: file {path} is not in the manifest" for path in report.files.keys() - report.manifest]
    for path, (_, digest) in (report.source or {}).items():
        said = report.manifest.get(path, (0, "(absent)"))[1]
        if said != digest:
            lines.append(
                f"weights not the source's: file {path} has sha256 {said} in the manifest, {digest} at the source"
            )
    return lines

"""The benchmark Jobs: rendered with the overlay, and their reports fetched from MinIO.

They are not part of the deployment. A run creates a Job when it wants to measure (`job_sequence`), reads where the Job
put its reports, and removes it; in read-only mode the existing Jobs are used.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_vllm_stage.benchmark.job_summary import parse_objects
from pytest_vllm_stage.core.errors import ConfigError, StageFailure
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.s3 import readable_s3_errors

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: The folder of an overlay that renders to its benchmark Jobs.
FOLDER = "benchmark"
MODEL_LABEL = "vllm-stage/model"
#: Below it a folder for each model, and in that one for each run; the script in fixtures/benchmarking writes them.
PREFIX = "benchmark-jobs"
SUMMARY = "summary.json"


@dataclass(frozen=True)
class Location:
    """Where a Job put its reports.

    Attributes:
        bucket: The bucket.
        prefix: The folder in it, without a slash at its end.
    """

    bucket: str
    prefix: str

    @classmethod
    def parse(cls, text: str) -> Location:
        """Read ``s3://bucket/prefix``.

        Raises:
            StageFailure: it has another form.
        """
        bucket, _, prefix = text.strip().removeprefix("s3://").partition("/")
        if not text.startswith("s3://") or not bucket or not prefix.startswith(f"{PREFIX}/"):
            raise StageFailure(f"a benchmark Job names {text[:200]!r} as the location of its reports")
        return cls(bucket, prefix.rstrip("/"))

    def __str__(self) -> str:
        return f"s3://{self.bucket}/{self.prefix}"


@dataclass(frozen=True)
class Reports:
    """What a Job left in MinIO.

    Attributes:
        location: Where.
        summary: Its settings, and a line for each rate.
        contents: Object name to the bytes of GuideLLM's report.
    """

    location: Location
    summary: Mapping[str, Any]
    contents: Mapping[str, bytes]


def manifests_of(overlay: Path, kubectl: str, namespace: str) -> list[Object]:
    """The overlay's benchmark Jobs and what they mount; empty where it declares none."""
    folder = overlay / FOLDER
    return render.in_namespace(render.render(folder, kubectl), namespace) if folder.is_dir() else []


def job_of(manifests: list[Object], model: str) -> Object:
    """The Job of one model.

    Raises:
        ConfigError: there is not exactly one.
    """
    jobs = render.select_kind(manifests, "Job")
    found = [job for job in jobs if (job["metadata"].get("labels") or {}).get(MODEL_LABEL) == model]
    if len(found) != 1:
        valid = sorted((job["metadata"].get("labels") or {}).get(MODEL_LABEL, "none") for job in jobs)
        raise ConfigError(
            f"{len(found)} benchmark Jobs have label {MODEL_LABEL}={model}, one is needed; valid: {', '.join(valid)}"
        )
    return found[0]


def settings_of(job: Object) -> dict[str, str]:
    """The container's variables that are plain values."""
    environment = job["spec"]["template"]["spec"]["containers"][0]["env"]
    return {entry["name"]: str(entry["value"]) for entry in environment if "value" in entry}


def declared_rates(job: Object) -> list[float]:
    """Requests a second of each step."""
    return [float(rate) for rate in settings_of(job)["RATES"].split()]


def location_of(reader: StageReader, job: str) -> Location | None:
    """The location that a Job's pod reports; None where the pod is gone or reports none."""
    for pod in reader.listed("Pod", {"batch.kubernetes.io/job-name": job}):
        for status in (pod.get("status") or {}).get("containerStatuses") or []:
            ended = (status.get("state") or {}).get("terminated") or {}
            if ended.get("exitCode") == 0 and ended.get("message"):
                return Location.parse(str(ended["message"]))
    return None


def newest(minio: S3Client, bucket: str, model: str, job: str) -> Location | None:
    """The location of a Job's last reports by the names in the bucket, for a Job whose pod is gone."""
    prefix = f"{PREFIX}/{model}/"
    with readable_s3_errors(f"list {bucket}/{prefix}", minio.meta.endpoint_url):
        pages = minio.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix, Delimiter="/")
        runs = [found["Prefix"].rstrip("/") for page in pages for found in page.get("CommonPrefixes", [])]
    # A time, and the pod's name, which begins with the Job's.
    own = [run for run in runs if f"-{job}-" in run]
    return Location(bucket, max(own)) if own else None


def fetch(minio: S3Client, location: Location) -> Reports:
    """Read the summary and every report that it names.

    Raises:
        StageFailure: one is missing, or is not what the Job stored.
        ConfigError: the summary is not one; names the field.
    """
    summary, digests = parse_objects(_read(minio, location, SUMMARY), f"{location}/{SUMMARY}")
    contents = {}
    for name, stored in digests.items():
        content = _read(minio, location, name)
        digest = hashlib.sha256(content).hexdigest()
        if digest != stored:
            raise StageFailure(f"{location}/{name} has sha256 {digest}, the Job stored {stored}")
        contents[name] = content
    return Reports(location, summary, contents)


def _read(minio: S3Client, location: Location, name: str) -> bytes:
    with readable_s3_errors(f"get {location}/{name}", minio.meta.endpoint_url):
        answer = minio.get_object(Bucket=location.bucket, Key=f"{location.prefix}/{name}")
        with answer["Body"] as body:
            return body.read()

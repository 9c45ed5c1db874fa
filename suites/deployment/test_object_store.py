"""Does the object store serve clients with credentials and refuse all others?"""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage import does_not_apply
from pytest_vllm_stage.checks.stage import secret_values
from pytest_vllm_stage.stage.bucket_rules import find_expiring_rules
from pytest_vllm_stage.stage.buckets import list_buckets
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.observe import health
from pytest_vllm_stage.stage.public_access import find_public_grants
from pytest_vllm_stage.stage.stored_models import find_missing_files, find_models_in

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

    from pytest_vllm_stage import ObjectStore, StageFacts

    Object = dict[str, Any]

BUCKETS_JOB = "minio-buckets"
#: Without credentials: S3 answers 403, other stores 401.
REFUSED = (401, 403)


@pytest.fixture
def buckets(declared: list[Object]) -> list[str]:
    """The buckets that the manifests declare."""
    job = render.named(declared, "Job", BUCKETS_JOB)
    assert job is not None, f"the manifests declare no Job {BUCKETS_JOB}, so no bucket"
    names = [str(name) for name in job["spec"]["template"]["spec"]["containers"][0]["args"]]
    assert names, f"Job {BUCKETS_JOB} names no bucket"
    return names


@pytest.fixture
def probe(
    minio: S3Client, object_store: ObjectStore, stage: StageFacts, buckets: list[str]
) -> Iterator[tuple[str, str]]:
    """Bucket and key of an object: one of this test's own, or, in read-only mode, an existing one."""
    bucket = buckets[-1]
    if not stage.owned:
        with object_store.readable_errors(f"list {bucket}"):
            found = minio.list_objects_v2(Bucket=bucket, MaxKeys=1).get("Contents", [])
        if not found:
            pytest.skip(f"bucket {bucket} is empty, and a stage that is only attached to is not changed")
        yield bucket, found[0]["Key"]
        return
    key = f"access-probe/{uuid.uuid4()}"
    with object_store.readable_errors(f"put {bucket}/{key}"):
        minio.put_object(Bucket=bucket, Key=key, Body=b"not for everyone")
    yield bucket, key
    minio.delete_object(Bucket=bucket, Key=key)


def test_minio_is_ready(object_store: ObjectStore, stage: StageFacts, kubectl: str) -> None:
    """MinIO's own health check reports that it can serve requests."""
    if object_store.url != stage.minio_url:
        does_not_apply(f"the stage's Secret names the S3 API at {object_store.url}, not a MinIO of the stage")
    status = object_store.minio_health_status()
    assert status == 200, f"MinIO is not ready: HTTP {status}\n  next: {kubectl} logs deployment/minio"


def test_minio_has_credentials_of_its_own(object_store: ObjectStore, stage: StageFacts, kubectl: str) -> None:
    """The credentials of the stage's own MinIO are not those that MinIO or its tutorials publish."""
    if object_store.url != stage.minio_url:
        does_not_apply(f"the stage's Secret names the S3 API at {object_store.url}, not a MinIO of the stage")
    assert not secret_values.is_default(object_store.access_key, object_store.secret_key), (
        f"{object_store.credentials} has credentials that MinIO's documentation publishes: every client of "
        f"{object_store.url} may read and write everything\n"
        f"  next: {kubectl} edit {object_store.credentials}, then restart deployment/minio"
    )


def test_buckets_exist(
    minio: S3Client,
    object_store: ObjectStore,
    stage: StageFacts,
    declared: list[Object],
    buckets: list[str],
    kubectl: str,
) -> None:
    """The declared buckets exist, as an authenticated list with the credentials of the Secret shows, and stay filled.

    In a MinIO of the stage's own no lifecycle rule deletes objects: none is declared, and a model that a rule deletes
    is missing at the next download. What a pod loads from there when it starts is complete.
    """
    existing = list_buckets(object_store, minio, buckets)
    missing = [name for name in buckets if name not in existing]
    assert not missing, (
        f"buckets {', '.join(missing)} do not exist at {object_store.url}; existing: {', '.join(existing) or 'none'}\n"
        f"  next: {kubectl} logs job/{BUCKETS_JOB}"
    )
    judged = buckets if object_store.url == stage.minio_url else []
    lines = [line for name in judged for line in find_expiring_rules(object_store, minio, name)]
    assert not lines, health.message("objects will be deleted", lines, f"mc ilm rule ls STAGE/{buckets[0]}")
    models = find_models_in(declared, judged)
    lines = [line for name, place in models.items() for line in find_missing_files(object_store, minio, name, *place)]
    assert not lines, health.message("a model is not whole in its bucket", lines, f"mc ls -r STAGE/{buckets[0]}")


def test_no_bucket_is_opened_by_its_settings(
    minio: S3Client, object_store: ObjectStore, stage: StageFacts, buckets: list[str]
) -> None:
    """No policy or ACL gives clients without credentials access to a bucket or to a part of one.

    The settings show what a request for one object cannot: a single public prefix. In a MinIO of the stage's own every
    bucket is judged.
    """
    existing = set(list_buckets(object_store, minio, buckets))
    judged = (set(buckets) & existing) | (existing if object_store.url == stage.minio_url else set())
    assert judged, f"none of the buckets {', '.join(buckets)} exists at {object_store.url}: nothing was checked"
    lines = [f"{name}: {line}" for name in sorted(judged) for line in find_public_grants(object_store, minio, name)]
    assert not lines, health.message("a bucket is public", lines, f"mc anonymous set none STAGE/{sorted(judged)[0]}")


def test_anonymous_list_is_refused(object_store: ObjectStore, buckets: list[str]) -> None:
    """No client without credentials lists a bucket: models and measurements are not public."""
    seen = {bucket: object_store.anonymous_status(bucket) for bucket in buckets}
    opened = [f"{bucket}: expected HTTP 403, got {status}" for bucket, status in seen.items() if status not in REFUSED]
    assert not opened, f"anonymous list not refused: {'; '.join(opened)}\n  next: mc anonymous list STAGE/{buckets[0]}"


def test_anonymous_get_is_refused(object_store: ObjectStore, minio: S3Client, probe: tuple[str, str]) -> None:
    """No client without credentials reads an object that exists and that the credentials read."""
    bucket, key = probe
    with object_store.readable_errors(f"stat {bucket}/{key}"):
        size = minio.head_object(Bucket=bucket, Key=key)["ContentLength"]
    assert size, f"object {bucket}/{key} is empty"
    status = object_store.anonymous_status(bucket, key)
    assert status in REFUSED, (
        f"object {bucket}/{key} without credentials: expected HTTP 403, got {status}\n"
        f"  next: mc anonymous set none STAGE/{bucket}"
    )

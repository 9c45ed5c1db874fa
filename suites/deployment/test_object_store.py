"""Does MinIO serve those who have credentials, and nobody else?"""

from __future__ import annotations

import io
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.stage import object_store
from pytest_vllm_stage.stage.deploy import render

if TYPE_CHECKING:
    import minio as minio_client

    from pytest_vllm_stage.stage.facts import StageFacts

    Object = dict[str, Any]

BUCKETS_JOB = "minio-buckets"


@pytest.fixture
def buckets(declared: list[Object]) -> list[str]:
    """The buckets that the manifests declare."""
    job = render.named(declared, "Job", BUCKETS_JOB)
    assert job is not None, f"the manifests declare no Job {BUCKETS_JOB}, so no bucket"
    names = [str(name) for name in job["spec"]["template"]["spec"]["containers"][0]["args"]]
    assert names, f"Job {BUCKETS_JOB} names no bucket"
    return names


@pytest.fixture
def probe(minio: minio_client.Minio, stage: StageFacts, buckets: list[str]) -> Iterator[tuple[str, str]]:
    """Bucket and key of a real object: one of this test's own, or, in a stage that is only read, one that is there."""
    bucket = buckets[-1]
    if not stage.owned:
        found = next(iter(minio.list_objects(bucket, recursive=True)), None)
        if found is None or found.object_name is None:
            pytest.skip(f"bucket {bucket} is empty, and a stage that is only attached to is not changed")
        yield bucket, found.object_name
        return
    key = f"access-probe/{uuid.uuid4()}"
    minio.put_object(bucket, key, io.BytesIO(b"not for everyone"), 16)
    yield bucket, key
    minio.remove_object(bucket, key)


def test_minio_is_ready(stage: StageFacts, kubectl: str) -> None:
    """MinIO's own health check says that it can serve: results have somewhere to go."""
    status = _status(stage, "/minio/health/ready")
    assert status == 200, f"MinIO is not ready: HTTP {status}\n  next: {kubectl} logs deployment/minio"


def test_buckets_exist(minio: minio_client.Minio, buckets: list[str], kubectl: str) -> None:
    """The declared buckets are there, seen by an authenticated list with the credentials of the Secret."""
    there = [bucket.name for bucket in minio.list_buckets()]
    missing = [name for name in buckets if name not in there]
    assert not missing, (
        f"MinIO lacks the buckets {', '.join(missing)}; it has {', '.join(there) or 'none'}\n"
        f"  next: {kubectl} logs job/{BUCKETS_JOB}"
    )


def test_anonymous_list_is_refused(stage: StageFacts, buckets: list[str]) -> None:
    """Nobody lists a bucket without credentials: models and measurements are not public."""
    seen = {bucket: _status(stage, f"/{bucket}") for bucket in buckets}
    opened = [f"{bucket} answers HTTP {status} instead of 403" for bucket, status in seen.items() if status != 403]
    assert not opened, f"anonymous list not refused: {'; '.join(opened)}\n  next: mc anonymous list STAGE/{buckets[0]}"


def test_anonymous_get_is_refused(stage: StageFacts, minio: minio_client.Minio, probe: tuple[str, str]) -> None:
    """Nobody reads an object without credentials, though it is there and the credentials read it."""
    bucket, key = probe
    assert minio.stat_object(bucket, key).size, f"the probe object {bucket}/{key} is not readable with credentials"
    status = _status(stage, f"/{bucket}/{key}")
    assert status == 403, (
        f"object {bucket}/{key} answers HTTP {status} without credentials, instead of 403\n"
        f"  next: mc anonymous set none STAGE/{bucket}"
    )


def _status(stage: StageFacts, path: str) -> int:
    try:
        return object_store.anonymous_status(stage, path)
    except StageError as error:
        pytest.fail(str(error), pytrace=False)

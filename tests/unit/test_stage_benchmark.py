"""The benchmark Jobs of a stage: where their reports are, and that what is fetched is what was stored."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import pytest

from pytest_vllm_stage.benchmark import job_runs
from pytest_vllm_stage.benchmark.job_runs import Location
from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.s3 import ObjectStore
from tests.unit.made_objects import pod
from tests.unit.web_server import s3_objects, web_server

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

PLACE = Location("test-results", "benchmark-jobs/m/20261124-101010-benchmark-m-x7k2p")


@contextmanager
def s3_client(objects: Mapping[str, bytes]) -> Iterator[S3Client]:
    """A client of a server that holds these objects of the bucket, by key."""
    with web_server(s3_objects({f"{PLACE.bucket}/{key}": content for key, content in objects.items()})) as server:
        client = ObjectStore(server.url, Secret("someone"), Secret("correct-horse")).client()
        yield client
        client.close()


def stored(**changed: bytes | None) -> dict[str, bytes]:
    report = b'{"benchmarks": []}'
    steps = [{"request_rate": 5, "object": "rate-5.json", "sha256": hashlib.sha256(report).hexdigest()}]
    objects = {"rate-5": report, "summary": json.dumps({"steps": steps}).encode()} | changed
    return {f"{PLACE.prefix}/{name}.json": content for name, content in objects.items() if content is not None}


def view(*pods: Any) -> StageReader:
    return cast(StageReader, SimpleNamespace(listed=lambda kind, labels: list(pods)))


def ended(exit_code: int, message: str) -> Any:
    state = {"terminated": {"exitCode": exit_code, "message": message}}
    return pod(statuses=[{"name": "guidellm", "state": state}])


def test_reports_are_fetched_as_they_were_stored() -> None:
    with s3_client(stored()) as client:
        found = job_runs.fetch(client, PLACE)
    assert (found.location, dict(found.contents)) == (PLACE, {"rate-5.json": b'{"benchmarks": []}'})


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("rate-5", b'{"benchmarks": [1]}', "rate-5.json has sha256 .*, the Job stored "),
        ("rate-5", None, "rate-5.json: the S3 API at .* answers NoSuchKey: as the"),
        ("summary", None, "summary.json: the S3 API at .* answers NoSuchKey: as the"),
    ],
)
def test_missing_or_altered_report_is_named(name: str, content: bytes | None, expected: str) -> None:
    with s3_client(stored(**{name: content})) as client, pytest.raises(StageFailure, match=expected):
        job_runs.fetch(client, PLACE)


def test_location_is_the_termination_message_of_a_pod_that_succeeded() -> None:
    assert job_runs.location_of(view(ended(1, "error: no"), ended(0, str(PLACE))), "benchmark-m") == PLACE
    assert job_runs.location_of(view(ended(1, str(PLACE))), "benchmark-m") is None
    assert job_runs.location_of(view(), "benchmark-m") is None


@pytest.mark.parametrize(
    "text", ["", "warm-up done", "s3://bucket", "s3://bucket/elsewhere/m/run", "http://b/benchmark-jobs/m"]
)
def test_other_texts_are_refused_as_a_location(text: str) -> None:
    with pytest.raises(StageFailure, match="as the location of its reports"):
        Location.parse(text)


def test_newest_run_of_the_same_job_is_found() -> None:
    """A Tekton run of the same model, and the Job of a model whose name begins alike, are others."""
    runs = [
        "m/20261123-101010-benchmark-m-aaaaa",
        "m/20261124-101010-benchmark-m-bbbbb",
        "m/20261125-101010-run-guidellm-v2-x-pod",
        "m-quantized/20261126-101010-benchmark-m-quantized-ccccc",
    ]
    with s3_client({f"benchmark-jobs/{run}/summary.json": b"{}" for run in runs}) as client:
        found = job_runs.newest(client, "test-results", "m", "benchmark-m")
        absent = job_runs.newest(client, "test-results", "absent", "benchmark-absent")
    assert found == Location("test-results", "benchmark-jobs/m/20261124-101010-benchmark-m-bbbbb")
    assert absent is None

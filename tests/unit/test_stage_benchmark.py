"""The benchmark Jobs of a stage: where their reports are, and that what is fetched is what was stored."""

from __future__ import annotations

import hashlib
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest
from minio import Minio
from minio.error import S3Error

from pytest_vllm_stage.benchmark import job_runs
from pytest_vllm_stage.benchmark.job_runs import Location
from pytest_vllm_stage.core.errors import StageFailure, WaitFailed
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.stage.observe.reader import View
from tests.unit.made_objects import pod

PLACE = Location("test-results", "benchmark-jobs/m/20261124-101010-benchmark-m-x7k2p")


class Store:
    """A stand-in for MinIO's client: objects by key, and their folders."""

    def __init__(self, objects: dict[str, bytes]) -> None:
        self._objects = objects

    def get_object(self, _bucket: str, key: str) -> Any:
        if key not in self._objects:
            raise S3Error(cast(Any, None), "NoSuchKey", "it is not there", key, "", "")
        return SimpleNamespace(read=lambda: self._objects[key], close=lambda: None, release_conn=lambda: None)

    def list_objects(self, _bucket: str, prefix: str) -> list[Any]:
        names = {key[: key.index("/", len(prefix)) + 1] for key in self._objects if key.startswith(prefix)}
        return [SimpleNamespace(object_name=name) for name in sorted(names)]


def store(**changed: bytes | None) -> Minio:
    report = b'{"benchmarks": []}'
    steps = [{"request_rate": 5, "object": "rate-5.json", "sha256": hashlib.sha256(report).hexdigest()}]
    objects = {"rate-5": report, "summary": json.dumps({"steps": steps}).encode()} | changed
    kept = {f"{PLACE.prefix}/{name}.json": content for name, content in objects.items() if content is not None}
    return cast(Minio, Store(kept))


def view(*pods: Any) -> View:
    return cast(View, SimpleNamespace(listed=lambda kind, labels: list(pods)))


def ended(exit_code: int, message: str) -> Any:
    state = {"terminated": {"exitCode": exit_code, "message": message}}
    return pod(statuses=[{"name": "guidellm", "state": state}])


def test_reports_are_fetched_as_they_were_stored() -> None:
    found = job_runs.fetch(store(), PLACE)
    assert (found.location, dict(found.contents)) == (PLACE, {"rate-5.json": b'{"benchmarks": []}'})


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("rate-5", b'{"benchmarks": [1]}', "rate-5.json has sha256 .*, the Job stored "),
        ("rate-5", None, "rate-5.json cannot be read: NoSuchKey"),
        ("summary", None, "summary.json cannot be read: NoSuchKey"),
    ],
)
def test_what_is_missing_or_altered_is_named(name: str, content: bytes | None, told: str) -> None:
    with pytest.raises(StageFailure, match=told):
        job_runs.fetch(store(**{name: content}), PLACE)


def test_the_place_is_what_the_jobs_pod_said_at_its_end() -> None:
    assert job_runs.location_of(view(ended(1, "error: no"), ended(0, str(PLACE))), "benchmark-m") == PLACE
    assert job_runs.location_of(view(ended(1, str(PLACE))), "benchmark-m") is None
    assert job_runs.location_of(view(), "benchmark-m") is None


@pytest.mark.parametrize(
    "text", ["", "warm-up done", "s3://bucket", "s3://bucket/elsewhere/m/run", "http://b/benchmark-jobs/m"]
)
def test_no_other_text_is_taken_for_a_place(text: str) -> None:
    with pytest.raises(StageFailure, match="as the place of its reports"):
        Location.parse(text)


def test_the_newest_run_of_the_job_itself_is_taken() -> None:
    """A Tekton run of the same model, and the Job of a model whose name begins alike, are others."""
    runs = [
        "m/20261123-101010-benchmark-m-aaaaa",
        "m/20261124-101010-benchmark-m-bbbbb",
        "m/20261125-101010-run-guidellm-v2-x-pod",
        "m-quantized/20261126-101010-benchmark-m-quantized-ccccc",
    ]
    kept = cast(Minio, Store({f"benchmark-jobs/{run}/summary.json": b"{}" for run in runs}))
    found = job_runs.newest(kept, "test-results", "m", "benchmark-m")
    assert found == Location("test-results", "benchmark-jobs/m/20261124-101010-benchmark-m-bbbbb")
    assert job_runs.newest(kept, "test-results", "absent", "benchmark-absent") is None


def test_a_job_that_fails_is_the_error_even_where_it_cannot_be_removed(monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []

    def failing(what: str, *_: Any) -> None:
        done.append(what)
        raise WaitFailed(what)

    monkeypatch.setattr(job_runs, "apply", lambda *_: done.append("applied"))
    monkeypatch.setattr(job_runs, "wait_for_all", lambda *_: failing("vacuous"))
    monkeypatch.setattr(job_runs, "_remove", lambda *_: failing("not removed"))
    made = {"kind": "Job", "metadata": {"name": "benchmark-m"}, "spec": {}}
    looked = cast(View, SimpleNamespace(kube=None, namespace="n"))
    with pytest.raises(WaitFailed, match="vacuous"):
        job_runs.carry_out(looked, [made], made, "run", Journal())
    assert done == ["applied", "vacuous", "not removed"]


def test_a_job_that_says_no_place_is_no_success(monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[Any] = []
    monkeypatch.setattr(job_runs, "apply", lambda *_: None)
    monkeypatch.setattr(job_runs, "wait_for_all", lambda *_: None)
    monkeypatch.setattr(job_runs, "_remove", lambda _view, made, _journal: removed.extend(made))
    made = {"kind": "Job", "metadata": {"name": "benchmark-m"}, "spec": {}}
    script = {"kind": "ConfigMap", "metadata": {"name": "benchmark"}}
    looked = cast(View, SimpleNamespace(kube=None, namespace="n", listed=lambda kind, labels: []))
    with pytest.raises(StageFailure, match="does not say where its reports are"):
        job_runs.carry_out(looked, [script, made], made, "run", Journal())
    assert removed == [made, script]

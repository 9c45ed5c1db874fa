"""Publishing to a real MinIO and the registry's stand-in: once, twice, at once with others, and cut off anywhere."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import threading
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import EnvironmentUnusable, StageError, StageFailure
from pytest_vllm_stage.core.journal import Journal, read_events
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.publication import properties, publishing
from pytest_vllm_stage.publication.bucket import stored, upload
from pytest_vllm_stage.publication.bucket.bucket import PART_BYTES, Bucket
from pytest_vllm_stage.publication.bucket.names import MANIFEST, PUBLISHED
from pytest_vllm_stage.publication.document import DOCUMENT
from pytest_vllm_stage.publication.links import RegisteredNames
from pytest_vllm_stage.publication.publishing import PublicationTarget
from pytest_vllm_stage.publication.registry import entities, write
from pytest_vllm_stage.publication.registry.client import Entity, RegistryClient
from pytest_vllm_stage.publication.registry.values import encode, text_of
from tests.real import servers
from tests.real.publishing import LABELS, LATER, files, findings, properties_of, publish_run, results_of, version_of
from tests.unit.made_objects import service as made_service
from tests.unit.made_results import RUN, SERVICE

pytestmark = pytest.mark.real


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Watch what was written for a shorter time; still longer than anybody's window here."""
    monkeypatch.setattr(write, "SETTLE_S", 0.3)
    monkeypatch.setattr(write, "WINDOW_S", 0.2)


# --- publishing -------------------------------------------------------------------------------------------------------


def test_a_run_is_published_and_reads_back_equal(
    place: PublicationTarget, tmp_path: Path, standin: servers.Standin
) -> None:
    done = publish_run(place, tmp_path)
    there = properties_of(place)
    assert done.state == "written"
    assert (done.model_id, done.version_id) == (version_of(place)["registeredModelId"], version_of(place)["id"])
    assert text_of(there, properties.RUN) == RUN
    assert there["benchmark_rate_5_ttft_p99"]["metadataType"] == "MetadataDoubleValue"
    assert findings(place) == []
    assert [item["uri"] for item in entities.list_artifacts(place.registry, version_of(place))] == [
        f"pvc://model-{SERVICE}"
    ]
    assert standin.writes()[:3] == ["POST registered_models", "POST model_versions", "POST model_versions/2/artifacts"]
    names = {key.rsplit("/", 1)[1] for key in place.bucket.list_keys(f"{SERVICE}/w4a16/{RUN}/")}
    assert {MANIFEST, PUBLISHED, DOCUMENT, "benchmarks.csv", "quantized-rate-5.samples.jsonl.gz"} < names
    assert stored.find_unfinished(place.bucket, SERVICE, "w4a16") == []


def test_content_types_and_hashes_are_stored(place: PublicationTarget, tmp_path: Path) -> None:
    publish_run(place, tmp_path)
    prefix = f"{SERVICE}/w4a16/{RUN}/"
    kinds = {}
    for key in place.bucket.list_keys(prefix):
        stat = place.bucket.client.head_object(Bucket=place.bucket.name, Key=key)
        kinds[key.removeprefix(prefix)] = stat["ContentType"]
    assert kinds["quantized-rate-5.json"] == "application/json"
    assert kinds["quantized-rate-5.samples.jsonl.gz"] == "application/gzip"
    assert kinds["benchmarks.csv"] == "text/csv; charset=utf-8"


def test_the_same_run_twice_changes_nothing(place: PublicationTarget, tmp_path: Path, standin: servers.Standin) -> None:
    publish_run(place, tmp_path)
    writes, before = standin.writes(), version_of(place)
    before_again = etags(place.bucket)
    again = publish_run(place, tmp_path)
    assert again.state == "unchanged"
    assert standin.writes() == writes
    assert version_of(place) == before
    assert etags(place.bucket) == before_again


def etags(bucket: Bucket) -> dict[str, str]:
    contents = bucket.client.list_objects_v2(Bucket=bucket.name)["Contents"]
    return {item["Key"]: item["ETag"] for item in contents}


def test_the_same_run_with_other_numbers_is_refused(place: PublicationTarget, tmp_path: Path) -> None:
    publish_run(place, tmp_path)
    results = results_of(place)
    files_now = files(tmp_path, results)
    files_now["benchmarks.csv"].write_text("step\n")
    with pytest.raises(StageFailure, match="already complete, with other contents") as caught:
        publishing.publish(place, results, files_now)
    assert "benchmarks.csv: 5 bytes" in caught.value.message


def test_a_later_run_replaces_an_earlier_one_and_not_the_other_way_round(
    place: PublicationTarget, tmp_path: Path
) -> None:
    publish_run(place, tmp_path)
    assert publish_run(place, tmp_path, LATER, 3600).state == "written"
    assert text_of(properties_of(place), properties.RUN) == LATER
    late = publish_run(place, tmp_path, "20261124-103000-cccc", 1800)
    assert (late.state, late.note) == ("superseded", LATER)
    assert text_of(properties_of(place), properties.RUN) == LATER
    assert findings(place) == []


@pytest.mark.parametrize("api", ["v1", "v1alpha3"])
def test_servers_of_either_version_are_published_to(
    minio: servers.MinioServer, tmp_path: Path, api: str, journal: Journal
) -> None:
    with servers.standin(tmp_path, api) as server:
        registry = RegistryClient(server.url, journal, patience_s=3.0)
        place = PublicationTarget(
            registry, minio.new_bucket(), RegisteredNames(SERVICE, "w4a16"), made_service(SERVICE), journal
        )
        assert publish_run(place, tmp_path).state == "written"
        assert registry.api == api
        registry.close()
    versions = [event for event in read_events(tmp_path / "journal.jsonl") if event["kind"] == "versions"]
    assert [event["model registry API"] for event in versions] == [api]


def test_server_that_is_not_a_registry_is_reported(standin: servers.Standin, journal: Journal) -> None:
    standin.faults({"fault": "unavailable", "status": 404})
    registry = RegistryClient(standin.url, journal, patience_s=0.5)
    with pytest.raises(
        StageFailure, match=f"no Model Registry at {standin.url}: v1 answers 404 .*, v1alpha3 answers 404 "
    ):
        _ = registry.api
    registry.close()
    standin.faults()


def test_properties_of_others_stay_whatever_their_type(
    place: PublicationTarget, tmp_path: Path, standin: servers.Standin
) -> None:
    model = entities.ensure_model(place.registry, SERVICE, "")
    version = entities.ensure_version(place.registry, model, "w4a16")
    foreign = {
        "build": {"metadataType": "MetadataIntValue", "int_value": "1234567890"},
        "signed": {"metadataType": "MetadataBoolValue", "bool_value": True},
    }
    standin.set_properties(version["id"], foreign)
    before = properties_of(place)
    publish_run(place, tmp_path)
    publish_run(place, tmp_path, LATER, 3600)
    assert properties.unlike(before, properties_of(place), list(foreign)) == []


def test_other_versions_are_not_touched(place: PublicationTarget, tmp_path: Path, standin: servers.Standin) -> None:
    model = entities.ensure_model(place.registry, SERVICE, "")
    other = entities.ensure_version(place.registry, model, "w8a8")
    standin.set_properties(other["id"], {"benchmark_rate_5_ttft_p99": encode(7.0), "owner": encode("team")})
    before = place.registry.get(f"model_versions/{other['id']}")
    done = publish_run(place, tmp_path)
    assert place.registry.get(f"model_versions/{other['id']}") == before
    assert done.others == {"w8a8": before["customProperties"]}


def test_25_properties_of_others_are_kept_and_the_results_wait(
    place: PublicationTarget, tmp_path: Path, standin: servers.Standin
) -> None:
    model = entities.ensure_model(place.registry, SERVICE, "")
    version = entities.ensure_version(place.registry, model, "w4a16")
    standin.set_properties(version["id"], {f"build-{i}": encode(f"{i}") for i in range(25)})
    before = properties_of(place)
    with pytest.raises(StageFailure, match="has 25 custom properties of others, and its page shows 24"):
        publish_run(place, tmp_path)
    assert properties_of(place) == before
    standin.set_properties(version["id"], dict.fromkeys([f"build-{i}" for i in range(12)]))
    (done,) = publishing.complete_earlier(place, LATER)
    assert (done.run, done.state) == (RUN, "written")
    assert len(properties_of(place)) == 24


# --- the wrong entity -------------------------------------------------------------------------------------------------


def test_a_list_that_gives_another_model_first_changes_nothing(
    place: PublicationTarget, tmp_path: Path, standin: servers.Standin
) -> None:
    """Names that match as LIKE patterns (`_`) make the find endpoint say 404, so that the list is needed."""
    names = RegisteredNames("m_24b", "v_1")
    labels = {"vllm-stage/model": names.model, "vllm-stage/version": names.version}
    place = replace(place, names=names, service=made_service(SERVICE, labels=labels))
    for name in ("mX24b", "m_24b", "m-24b"):
        standin.call("POST", "registered_models", {"name": name})
    model = entities.find_model(place.registry, "m_24b")
    assert model is not None
    for name in ("vX1", "v_1"):
        standin.call("POST", "model_versions", {"name": name, "registeredModelId": model["id"]})
    standin.faults({"fault": "other-first", "avoid": "m_24b"}, {"fault": "other-first", "avoid": "v_1"})
    uri = f"s3://{place.bucket.name}/m_24b/v_1/{RUN}/"
    done = publish_run(place, tmp_path, model="m_24b", version="v_1", uri=uri)
    assert done.model_id == model["id"]
    carrying = [item["name"] for item in entities.list_versions(place.registry, model) if item["customProperties"]]
    assert carrying == ["v_1"]


def test_a_version_name_that_differs_from_the_label_is_refused(place: PublicationTarget, tmp_path: Path) -> None:
    publish_run(place, tmp_path)
    wrong = replace(place, names=RegisteredNames(SERVICE, "quantized-w4a16"))
    uri = f"s3://{place.bucket.name}/{SERVICE}/quantized-w4a16/{LATER}/"
    with pytest.raises(StageFailure) as caught:
        publish_run(wrong, tmp_path, LATER, 3600, version="quantized-w4a16", uri=uri)
    assert "version 'w4a16' of the model holds results of inferenceservice/" in caught.value.message
    model = entities.find_model(place.registry, SERVICE)
    assert model is not None
    assert [item["name"] for item in entities.list_versions(place.registry, model)] == ["w4a16"]


def test_labels_with_ids_of_another_version_are_refused(place: PublicationTarget, tmp_path: Path) -> None:
    labels = LABELS | {"modelregistry.opendatahub.io/model-version-id": "77"}
    other = replace(place, service=made_service(SERVICE, labels=labels))
    with pytest.raises(StageFailure, match=r"label modelregistry\.opendatahub\.io/model-version-id is '77'"):
        publish_run(other, tmp_path)


def test_other_weights_under_one_version_are_refused(place: PublicationTarget, tmp_path: Path) -> None:
    publish_run(place, tmp_path)
    other = replace(place, service=made_service(SERVICE, labels=LABELS, storageUri="pvc://elsewhere"))
    with pytest.raises(
        StageFailure, match=r"registered with the weights pvc://model-.*the service loads pvc://elsewhere"
    ):
        publish_run(other, tmp_path, LATER, 3600)


# --- the registry fails -----------------------------------------------------------------------------------------------


def test_publication_interrupted_by_the_registry_is_reported_and_completed_by_the_next_run(
    place: PublicationTarget, tmp_path: Path, standin: servers.Standin
) -> None:
    standin.faults({"fault": "unavailable", "method": "PATCH"})
    with pytest.raises(StageFailure) as caught:
        publish_run(place, tmp_path)
    headline, *rest = caught.value.message.splitlines()
    assert headline.startswith(f"run {RUN} is not published: the registry at {standin.url} answers 503 to PATCH")
    assert any(f"complete in s3://{place.bucket.name}/{SERVICE}/w4a16/{RUN}/" in line for line in rest)
    assert [one.complete for one in stored.find_unfinished(place.bucket, SERVICE, "w4a16")] == [True]
    standin.faults()
    (done,) = publishing.complete_earlier(place, LATER)
    assert (done.run, done.state) == (RUN, "written")
    assert findings(place) == []
    assert stored.find_unfinished(place.bucket, SERVICE, "w4a16") == []


@pytest.mark.parametrize(
    "fault",
    [
        {"fault": "unavailable", "method": "PATCH", "requests": 1},
        {"fault": "unavailable", "method": "POST", "after": 1, "requests": 1},
        {"fault": "cut-answer", "method": "POST", "requests": 1},
        {"fault": "cut-answer", "method": "PATCH", "requests": 1},
        {"fault": "lost-database", "after": 4, "requests": 1},
    ],
    ids=str,
)
def test_registry_that_fails_once_is_retried(
    place: PublicationTarget, tmp_path: Path, standin: servers.Standin, fault: Any
) -> None:
    _ = place.registry.api
    standin.faults(fault)
    publish_run(place, tmp_path)
    assert findings(place) == []
    models = standin.call("GET", "registered_models")["items"]
    assert [item["name"] for item in models] == [SERVICE]


def test_patch_that_is_answered_but_not_applied_is_detected(
    place: PublicationTarget, tmp_path: Path, standin: servers.Standin
) -> None:
    standin.faults({"fault": "drop-patches"})
    with pytest.raises(StageFailure, match=f"other publishers overwrote the properties of run {RUN} 8 times"):
        publish_run(place, tmp_path)


def test_refused_token_makes_the_environment_unusable(standin: servers.Standin, journal: Journal) -> None:
    standin.faults({"fault": "unavailable", "status": 401})
    for token, hint in (
        (None, "set VLLM_STAGE_REGISTRY_TOKEN, for example"),
        (Secret("old-token"), "the token of VLLM_STAGE_REGISTRY_TOKEN is not accepted"),
    ):
        refused = pytest.raises(EnvironmentUnusable, match=f"the registry at {standin.url} answers 401 to GET")
        with closing(RegistryClient(standin.url, journal, token=token)) as registry, refused as caught:
            _ = registry.api
        assert caught.value.hint.startswith(hint)
        assert "old-token" not in str(caught.value)
    standin.faults()


# --- concurrent writes of other clients -------------------------------------------------------------------------------


class Meddled(RegistryClient):
    """A registry where another client acts right before or after the n-th PATCH."""

    def meddle(self, when: str, at: int, act: Callable[[], None]) -> None:
        self._when, self._at, self._act = when, at, act
        self._count = 0

    def patch(self, path: str, body: Entity) -> Entity:
        self._count += 1
        if (self._when, self._at) == ("before", self._count):
            self._act()
        answer = super().patch(path, body)
        if (self._when, self._at) == ("after", self._count):
            self._act()
        return answer


def test_blind_write_over_our_properties_is_detected_and_both_are_kept(
    place: PublicationTarget, tmp_path: Path, standin: servers.Standin
) -> None:
    registry = Meddled(standin.url, place.journal)
    model = entities.ensure_model(registry, SERVICE, "")
    version = entities.ensure_version(registry, model, "w4a16")
    standin.set_properties(version["id"], {"build": encode("7")})
    blind = {"customProperties": {"colour": encode("blue")}}
    registry.meddle("after", 1, lambda: standin.call("PATCH", f"model_versions/{version['id']}", blind))
    done = publish_run(replace(place, registry=registry), tmp_path)
    there = properties_of(place)
    assert done.state == "written"
    assert (text_of(there, "colour"), text_of(there, "build"), text_of(there, properties.RUN)) == ("blue", "7", RUN)
    assert findings(place) == []
    registry.close()


class HeldUp(RegistryClient):
    """A registry whose answers, once ``act`` is set, arrive late the first time: another client acts meanwhile."""

    act: Callable[[], Any] | None = None

    def get(self, path: str, **query: str) -> Entity:
        answer = super().get(path, **query)
        if self.act is not None and path.startswith("model_versions/") and "customProperties" in answer:
            act, self.act = self.act, None
            act()
            threading.Event().wait(write.WINDOW_S + 0.05)
        return answer


def test_delayed_publisher_reads_again_before_it_writes(
    place: PublicationTarget, tmp_path: Path, standin: servers.Standin
) -> None:
    """What was read may be old by then: sent back, it would undo what others wrote meanwhile."""
    registry = HeldUp(standin.url, place.journal)
    version = entities.ensure_version(registry, entities.ensure_model(registry, SERVICE, ""), "w4a16")
    registry.act = lambda: standin.set_properties(version["id"], {"colour": encode("blue")})
    publish_run(replace(place, registry=registry), tmp_path)
    assert text_of(properties_of(place), "colour") == "blue"
    assert findings(place) == []
    registry.close()


def test_concurrent_publishers_keep_the_latest_run_complete_and_lose_nothing(
    place: PublicationTarget, tmp_path: Path, standin: servers.Standin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three clients publish at once, six times; a fourth writes a property of its own with the same checks.

    They watch what they wrote for longer than a busy machine may hold up a write of another one.
    """
    monkeypatch.setattr(write, "SETTLE_S", 0.8)
    for i in range(6):
        standin.reset()
        runs = [(f"20261124-1{j}0000-{i}{j}{i}{j}", 3600.0 * j) for j in range(3)]
        errors = _at_once(
            [partial(_publish_separately, place, tmp_path / f"{i}", run, at) for run, at in runs]
            + [partial(_write_carefully, standin, "colour", "blue")]
        )
        there = properties_of(place)
        assert errors == []
        assert text_of(there, properties.RUN) == runs[-1][0]
        assert text_of(there, "colour") == "blue"
        assert findings(place) == []


class Slow(RegistryClient):
    """A registry that is reached slowly, so that publishers really come between each other's reading and writing."""

    def patch(self, path: str, body: Entity) -> Entity:
        threading.Event().wait(random.uniform(0.0, 0.08))
        return super().patch(path, body)


def _publish_separately(place: PublicationTarget, folder: Path, run: str, later_s: float) -> None:
    """Publish through a separate connection."""
    registry = Slow(place.registry.url, Journal(), patience_s=15.0)
    publish_run(replace(place, registry=registry, journal=Journal()), folder, run, later_s)
    registry.close()


def _at_once(acts: Sequence[Callable[[], Any]]) -> list[str]:
    barrier, errors = threading.Barrier(len(acts)), []

    def run(act: Callable[[], Any]) -> None:
        barrier.wait()
        try:
            act()
        except StageError as error:
            errors.append(str(error))

    threads = [threading.Thread(target=run, args=(act,)) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return errors


def _write_carefully(standin: servers.Standin, name: str, text: str) -> None:
    """Read, write, read back, and again until it stays: another publisher with the same manners."""
    registry = RegistryClient(standin.url, Journal(), patience_s=15.0)
    model = entities.ensure_model(registry, SERVICE, "")
    version = entities.ensure_version(registry, model, "w4a16")
    kept_s = 0.0
    while kept_s < 1.2:
        if text_of(registry.get(f"model_versions/{version['id']}")["customProperties"], name) != text:
            standin.set_properties(version["id"], {name: encode(text)})
            kept_s = 0.0
        threading.Event().wait(0.05)
        kept_s += 0.05
    registry.close()


# --- MinIO fails ------------------------------------------------------------------------------------------------------


def test_credentials_that_are_no_longer_good_are_named_with_their_secret(
    place: PublicationTarget, minio: servers.MinioServer, tmp_path: Path
) -> None:
    old = replace(place, bucket=Bucket(minio.store("0" * 32), place.bucket.name))
    with pytest.raises(StageFailure, match="rejects the credentials of secret minio-credentials: Signature") as caught:
        publish_run(old, tmp_path)
    assert "0" * 32 not in str(caught.value)


def test_a_public_bucket_takes_no_results(place: PublicationTarget, tmp_path: Path) -> None:
    make_public(place.bucket)
    with pytest.raises(StageFailure, match="is public: its policy allows s3:GetObject to everyone"):
        publish_run(place, tmp_path)
    assert place.bucket.list_keys() == []


def test_a_public_prefix_is_named(place: PublicationTarget) -> None:
    assert place.bucket.find_public_access() == []
    make_public(place.bucket, "quantized/*")
    assert place.bucket.find_public_access() == [
        f"its policy allows s3:GetObject to everyone under {place.bucket.name}/quantized/*"
    ]


def make_public(bucket: Bucket, part: str = "*") -> None:
    statement = {
        "Effect": "Allow",
        "Principal": {"AWS": ["*"]},
        "Action": ["s3:GetObject"],
        "Resource": [f"arn:aws:s3:::{bucket.name}/{part}"],
    }
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=policy)


def test_a_missing_bucket_is_named(place: PublicationTarget, minio: servers.MinioServer, tmp_path: Path) -> None:
    nowhere = replace(place, bucket=Bucket(minio.store(), "nowhere"))
    with pytest.raises(StageFailure, match="nowhere"):
        publish_run(nowhere, tmp_path)


def test_a_large_file_goes_up_in_parts(place: PublicationTarget, tmp_path: Path) -> None:
    large = tmp_path / "large.samples.jsonl.gz"
    large.write_bytes(os.urandom(2 * PART_BYTES + 1))
    uri = upload.upload_run(place.bucket, "m", "v", "r", {large.name: large}, place.journal)
    found = stored.read_run(place.bucket, uri).require()
    assert found.contents[large.name] == large.read_bytes()
    stat = place.bucket.client.head_object(Bucket=place.bucket.name, Key=f"m/v/r/{large.name}")
    assert stat["ETag"].strip('"').endswith("-3")


@pytest.mark.parametrize(
    ("spoil", "line"),
    [
        (lambda b, p: b.delete(f"{p}quantized-rate-5.json"), "quantized-rate-5.json is missing"),
        (lambda b, p: b.put(f"{p}benchmarks.csv", b"step", "text/csv"), "benchmarks.csv is truncated: 4 of"),
        (lambda b, p: alter(b, f"{p}publication.json", b"5", b"6"), "publication.json was altered: expected sha256"),
        (lambda b, p: b.put(f"{p}more.json", b"{}", "application/json"), "more.json exists and is not in the manifest"),
        (lambda b, p: b.delete(f"{p}manifest.json"), "partial upload: "),
        (lambda b, p: b.put(f"{p}manifest.json", b'{"schema"', "application/json"), "the manifest is corrupt"),
        (lambda b, p: [b.delete(key) for key in b.list_keys(p)], "it is empty"),
    ],
    ids=["deleted", "truncated", "altered", "added", "partial", "corrupt", "empty"],
)
def test_damaged_artifact_is_reported_on_reading(
    place: PublicationTarget, tmp_path: Path, spoil: Callable[[Bucket, str], Any], line: str
) -> None:
    publish_run(place, tmp_path)
    spoil(place.bucket, f"{SERVICE}/w4a16/{RUN}/")
    assert findings(place)[0].removeprefix("manifest.json: ").startswith(line)


def alter(bucket: Bucket, key: str, old: bytes, new: bytes) -> None:
    content = bucket.get(key)
    assert content is not None
    assert old in content
    bucket.put(key, content.replace(old, new, 1), "application/json")


# --- kill -9 ----------------------------------------------------------------------------------------------------------


def _die(*_arguments: Any, **_more: Any) -> Any:
    os.kill(os.getpid(), signal.SIGKILL)


def _publish_and_die(
    where: str, url: str, access: str, secret: str, bucket: str, registry_url: str, folder: Path
) -> None:
    server = servers.MinioServer(url, access, secret)
    journal = Journal(folder / "killed.jsonl")
    place = PublicationTarget(
        RegistryClient(registry_url, journal),
        Bucket(server.store(), bucket),
        RegisteredNames(SERVICE, "w4a16"),
        made_service(SERVICE, labels=LABELS),
        journal,
    )
    points: dict[str, tuple[Any, str]] = {
        "in the upload": (Bucket, "put"),
        "between upload and registry": (publishing, "publish_to_registry"),
        "before the properties": (publishing, "write"),
        "before the mark": (publishing, "_mark"),
    }
    setattr(*points[where], _die)
    publish_run(place, folder)


@pytest.mark.parametrize(
    ("where", "complete"),
    [
        ("in the upload", False),
        ("between upload and registry", True),
        ("before the properties", True),
        ("before the mark", True),
    ],
)
def test_a_killed_publication_is_completed_by_the_next_run(
    place: PublicationTarget,
    minio: servers.MinioServer,
    standin: servers.Standin,
    tmp_path: Path,
    where: str,
    complete: bool,
) -> None:
    spawn = multiprocessing.get_context("spawn")
    arguments = (where, minio.url, minio.access, minio.secret, place.bucket.name, standin.url, tmp_path)
    process = spawn.Process(target=_publish_and_die, args=arguments)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert [one.complete for one in stored.find_unfinished(place.bucket, SERVICE, "w4a16")] == [complete]
    assert any(event["kind"] == "publish" for event in read_events(tmp_path / "killed.jsonl"))
    done = publishing.complete_earlier(place, LATER)
    if not complete:
        assert [(one.run, one.state) for one in done] == [(RUN, "broken")]
        assert "partial upload: 6 files and no manifest.json" in done[0].note
        done = publishing.complete_earlier(place, LATER, lambda run: files(tmp_path, results_of(place, run)))
    assert [one.run for one in done] == [RUN]
    assert stored.find_unfinished(place.bucket, SERVICE, "w4a16") == []
    assert findings(place) == []


def test_latest_of_several_unfinished_runs_is_shown(place: PublicationTarget, tmp_path: Path) -> None:
    for run, at in ((RUN, 0.0), (LATER, 3600.0)):
        results = results_of(place, run, at)
        upload.upload_run(place.bucket, SERVICE, "w4a16", run, files(tmp_path, results, at), place.journal)
    done = {one.run: (one.state, one.note) for one in publishing.complete_earlier(place, "now")}
    assert done == {RUN: ("superseded", LATER), LATER: ("written", "")}
    assert text_of(properties_of(place), properties.RUN) == LATER
    assert stored.find_unfinished(place.bucket, SERVICE, "w4a16") == []


def test_unfinished_run_that_cannot_be_published_does_not_block_the_next(
    place: PublicationTarget, tmp_path: Path, standin: servers.Standin
) -> None:
    """Another version claims the revision of the earlier run; the next run measured another revision."""
    results = results_of(place, revision="r0")
    upload.upload_run(place.bucket, SERVICE, "w4a16", RUN, files(tmp_path, results), place.journal)
    model = entities.ensure_model(place.registry, SERVICE, "")
    other = entities.ensure_version(place.registry, model, "quant")
    standin.set_properties(other["id"], {name: encode(value) for name, value in results.values.items()})
    (left,) = publishing.complete_earlier(place, LATER)
    assert left.state == "broken"
    assert "version 'quant' of the model holds results" in left.note
    assert publish_run(place, tmp_path, LATER, 3600).state == "written"
    assert [one.run for one in stored.find_unfinished(place.bucket, SERVICE, "w4a16")] == [RUN]


def test_an_unfinished_run_that_was_altered_is_not_published(place: PublicationTarget, tmp_path: Path) -> None:
    results = results_of(place)
    upload.upload_run(place.bucket, SERVICE, "w4a16", RUN, files(tmp_path, results), place.journal)
    alter(place.bucket, f"{SERVICE}/w4a16/{RUN}/publication.json", b"5", b"6")
    (done,) = publishing.complete_earlier(place, LATER)
    assert done.state == "broken"
    assert "publication.json was altered" in done.note
    assert entities.find_model(place.registry, SERVICE) is None

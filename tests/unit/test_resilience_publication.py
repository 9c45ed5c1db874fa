"""What the disruption `publication` publishes is taken back: archived in the registry, and deleted from the bucket."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from urllib.parse import urlencode

import pytest

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.gateways import HttpAnswer
from pytest_vllm_stage.core.journal import Journal, read_events
from pytest_vllm_stage.load import prepare
from pytest_vllm_stage.load.prompts import PromptMaker
from pytest_vllm_stage.publication import publish_run
from pytest_vllm_stage.publication.bucket.bucket import Bucket, StoredObject
from pytest_vllm_stage.publication.bucket.manifest import ManifestFile
from pytest_vllm_stage.publication.bucket.names import build_prefix
from pytest_vllm_stage.publication.registry import entities
from pytest_vllm_stage.publication.registry.client import RegistryClient
from pytest_vllm_stage.resilience import carry_out
from pytest_vllm_stage.resilience.disruptions import Disruption
from pytest_vllm_stage.resilience.publication import MODEL, PublicationDisrupted
from pytest_vllm_stage.resilience.site import Site
from pytest_vllm_stage.resilience.window import Promise, WindowVerdict, judge_window
from pytest_vllm_stage.serving.client import EndpointClient
from tests.unit.made_samples import STARTED_AT, measurement, open_step, sample
from tests.unit.standin_registry import Standin

Make = Callable[[str], PublicationDisrupted]
OTHERS = {"other/1/run/a.json": b"{}", f"{MODEL}/r0/r0/part-0.txt": b""}


class MemoryBucket(Bucket):
    """A bucket in memory that refuses to delete on request."""

    def __init__(self) -> None:
        self.name = "test-results"
        self.kept: dict[str, tuple[bytes, str]] = {key: (content, "") for key, content in OTHERS.items()}
        self.refuses = False

    def contents(self) -> dict[str, bytes]:
        return {key: content for key, (content, _) in self.kept.items()}

    def upload(self, key: str, path: Path, file: ManifestFile) -> None:
        self.kept[key] = (path.read_bytes(), file.sha256)

    def put(self, key: str, content: bytes, content_type: str) -> None:
        self.kept[key] = (content, "")

    def get(self, key: str) -> bytes | None:
        return self.kept[key][0] if key in self.kept else None

    def stat(self, key: str) -> StoredObject | None:
        return StoredObject(len(self.kept[key][0]), self.kept[key][1]) if key in self.kept else None

    def delete(self, key: str) -> None:
        if self.refuses:
            raise StageFailure(f"delete {key}: AccessDenied")
        self.kept.pop(key, None)

    def list_keys(self, prefix: str = "") -> list[str]:
        return sorted(key for key in self.kept if key.startswith(prefix))

    def find_public_access(self, key: str | None = None) -> list[str]:
        return []


class DirectRegistry(RegistryClient):
    """A client whose requests go straight to a stand-in in memory."""

    def __init__(self, journal: Journal) -> None:
        super().__init__("http://registry.test", journal, patience_s=1.0)
        self.standin = Standin()

    def close(self) -> None:
        """Stay usable: a disruption connects more than once."""

    def _exchange(self, method: str, path: str, **more: Any) -> HttpAnswer:
        query, body = urlencode(more.get("params") or {}), json.dumps(more["json"]) if "json" in more else ""
        given = self.standin.raw(method, f"{path}?{query}", body.encode())
        return HttpAnswer(given.status, given.headers, given.text)


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[RegistryClient]:
    client = DirectRegistry(Journal(tmp_path / "journal.jsonl"))
    yield client
    RegistryClient.close(client)


class PublicationWithoutServers(PublicationDisrupted):
    """Publishes to the bucket and registry in memory, where no server is killed."""

    def __init__(self, folder: Path, run_id: str) -> None:
        run = SimpleNamespace(run_id=run_id, journal=Journal(folder / "journal.jsonl"), directory=folder / run_id)
        reader = SimpleNamespace(namespace="stage", kube=None, cluster=None)
        super().__init__(cast(Site, SimpleNamespace(run=run, reader=reader, service="full", stage=None)))

    def _servers(self) -> dict[str, Any]:
        return {}

    def _await_servers(self) -> None:
        pass


@pytest.fixture
def bucket() -> MemoryBucket:
    return MemoryBucket()


@pytest.fixture
def make(registry: RegistryClient, bucket: MemoryBucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Make:
    """Makes the disruption of a run by its id."""
    monkeypatch.setattr(publish_run, "connect_registry", lambda *_: registry)
    monkeypatch.setattr(publish_run, "connect_bucket", lambda *_: bucket)
    return lambda run_id: PublicationWithoutServers(tmp_path, run_id)


def states(registry: RegistryClient) -> dict[str, str]:
    """The state of the model and of its versions, by name."""
    model = entities.find_model(registry, MODEL)
    assert model is not None
    return {one["name"]: one["state"] for one in (model, *entities.list_versions(registry, model))}


def test_what_a_run_published_is_archived_and_its_objects_are_gone(
    make: Make, registry: RegistryClient, bucket: MemoryBucket
) -> None:
    disruption = make("r1")
    disruption.carry_out()
    assert states(registry) == {MODEL: "LIVE", "r1": "LIVE"}
    prefix = build_prefix(MODEL, "r1", "r1")
    assert len(bucket.list_keys(prefix)) == 8, "six files, manifest and mark"
    bucket.put(f"{prefix}notes.txt", b"a person's", "text/plain")
    disruption.clean_up()
    assert disruption.problems == []
    assert states(registry) == {MODEL: "ARCHIVED", "r1": "ARCHIVED"}
    assert bucket.contents() == OTHERS | {f"{prefix}notes.txt": b"a person's"}


def test_next_run_publishes_under_the_archived_model(make: Make, registry: RegistryClient) -> None:
    for run_id in ("r1", "r2"):
        disruption = make(run_id)
        disruption.carry_out()
        assert states(registry)[MODEL] == "LIVE"
        assert disruption.problems == []
        disruption.clean_up()
    assert states(registry) == {MODEL: "ARCHIVED", "r1": "ARCHIVED", "r2": "ARCHIVED"}


def test_model_stays_live_while_another_run_has_a_live_version(make: Make, registry: RegistryClient) -> None:
    mine, other = make("r1"), make("r2")
    mine.carry_out()
    other.carry_out()
    mine.clean_up()
    assert states(registry) == {MODEL: "LIVE", "r1": "ARCHIVED", "r2": "LIVE"}


def test_properties_of_an_archived_version_stay(make: Make, registry: RegistryClient) -> None:
    disruption = make("r1")
    disruption.carry_out()
    disruption.clean_up()
    model = entities.find_model(registry, MODEL)
    assert model is not None
    (version,) = entities.list_versions(registry, model)
    assert version["customProperties"]


def test_objects_that_cannot_be_deleted_are_a_problem_and_the_version_is_archived(
    make: Make, registry: RegistryClient, bucket: MemoryBucket
) -> None:
    disruption = make("r1")
    disruption.carry_out()
    bucket.refuses = True
    disruption.clean_up()
    (problem,) = disruption.problems
    assert problem.startswith(f"test-results/{MODEL}/r1/r1/")
    assert "AccessDenied" in problem
    assert states(registry)["r1"] == "ARCHIVED"


def test_clean_up_before_anything_was_published_writes_nothing(make: Make, tmp_path: Path) -> None:
    disruption = make("r1")
    disruption.clean_up()
    assert not [event for event in read_events(tmp_path / "journal.jsonl") if event["kind"] == "publish"]
    assert disruption.problems == []


def test_clean_up_after_a_failed_publication_removes_what_came_so_far(
    make: Make, registry: RegistryClient, bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StageFailure("the registry refuses")

    disruption = make("r1")
    with monkeypatch.context() as patched:
        patched.setattr(entities, "ensure_version", refuse)
        with pytest.raises(StageFailure, match="the registry refuses"):
            disruption.carry_out()
    assert len(bucket.kept) > len(OTHERS)
    disruption.clean_up()
    assert bucket.contents() == OTHERS
    assert states(registry) == {MODEL: "ARCHIVED"}


def test_registry_that_is_gone_is_one_problem_line(
    make: Make, bucket: MemoryBucket, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StageFailure("no Model Registry is reachable from here")

    disruption = make("r1")
    disruption.carry_out()
    monkeypatch.setattr(publish_run, "connect_registry", refuse)
    disruption.clean_up()
    assert disruption.problems == [
        f"what was published under model {MODEL} is not removed: stage failed: no Model Registry is reachable from here"
    ]


class RecordedDisruption(Disruption):
    """A disruption that leaves something behind."""

    name = "pod"

    def carry_out(self) -> None:
        """Nothing: the test replaces what calls it."""

    def clean_up(self) -> None:
        self.problems.append("not removed: a version")


@pytest.mark.parametrize("fails", [False, True])
def test_clean_up_follows_the_verdict_or_the_failure(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fails: bool
) -> None:
    step = open_step(5.0, 20.0)
    traffic = SimpleNamespace(end=lambda: measurement(step, [sample(i, i / 5) for i in range(100)]))
    made: list[RecordedDisruption] = []
    judged: list[list[str]] = []

    def make_disruption(site: Site) -> RecordedDisruption:
        made.append(RecordedDisruption(site))
        return made[0]

    def disrupt(*_: object) -> object:
        if fails:
            raise StageFailure("the pod does not come back")
        return (STARTED_AT + 5, STARTED_AT + 7), {"name": "pod", "idle_pods": [], "deployment": None}

    def judge(*arguments: Any) -> WindowVerdict:
        judged.append(list(made[0].problems))
        return judge_window(*arguments)

    run = SimpleNamespace(journal=Journal(tmp_path / "journal.jsonl"), directory=tmp_path)
    site = cast(Site, SimpleNamespace(run=run, await_health=lambda: None, undo=lambda: ""))
    replaced: dict[str, Any] = {
        "_disrupt": disrupt,
        "_check_restarts": lambda _: None,
        "_find_unhealthy": lambda *_: [],
    }
    replaced |= {"promise_of": lambda *_: Promise(), "traffic_step": lambda *_: step, "facts_of": lambda *_: {}}
    replaced |= {"running": lambda *_: nullcontext(traffic), "judge_window": judge, "MAKERS": {"pod": make_disruption}}
    for name, value in replaced.items():
        monkeypatch.setattr(carry_out, name, value)
    monkeypatch.setattr(prepare, "prepare", lambda *_, **__: None)
    client = cast(EndpointClient, SimpleNamespace(target=SimpleNamespace(role="full")))
    if fails:
        with pytest.raises(StageFailure, match="does not come back"):
            carry_out.carry_out(site, "pod", client, cast(PromptMaker, None))
        assert made[0].problems == ["not removed: a version"]
    else:
        result = carry_out.carry_out(site, "pod", client, cast(PromptMaker, None))
        assert (judged, result.outcome) == ([[]], "fail")
        assert result.problems == ("not removed: a version",)

"""Benchmark Jobs in sequence: pods start together, load never overlaps, and whatever happens nothing is left."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from pytest_vllm_stage.benchmark import job_sequence
from pytest_vllm_stage.benchmark.job_runs import Location
from pytest_vllm_stage.benchmark.job_sequence import HOLD, HOLD_TIMEOUT, JobPlace, JobPlaced, JobReported
from pytest_vllm_stage.core.errors import ConfigError, StageError, StageFailure, WaitFailed
from pytest_vllm_stage.core.journal import Journal, read_events
from pytest_vllm_stage.stage import objects
from pytest_vllm_stage.stage.deploy.apply import RUN_ID_LABEL
from pytest_vllm_stage.stage.observe.reader import StageReader

OWNER, RUN = "stage-run", "this-run"
SCRIPT = {"kind": "ConfigMap", "metadata": {"name": "benchmark"}}


def job(name: str, *, hold: bool = True, **spec: Any) -> Any:
    environment = [{"name": "RATES", "value": "1 2"}, {"name": "BUCKET", "value": "test-results"}]
    environment += [{"name": HOLD, "value": ""}] if hold else []
    template = {"spec": {"containers": [{"name": "guidellm", "env": environment}]}}
    return {"kind": "Job", "metadata": {"name": name}, "spec": {"template": template, **spec}}


def owned(one: Any) -> Any:
    return {**one, "metadata": {**one["metadata"], "labels": {RUN_ID_LABEL: OWNER}}}


def variables(one: Any) -> dict[str, str]:
    return {entry["name"]: entry["value"] for entry in one["spec"]["template"]["spec"]["containers"][0]["env"]}


def key(name: str) -> str:
    return f"benchmark-holds/{RUN}/{name}"


def location(name: str) -> Location:
    return Location("test-results", f"benchmark-jobs/m/{name}")


@dataclass
class Stage:
    """A namespace and a bucket; what happens to Jobs is in ``events``.

    Attributes:
        phases: Of the pods, by Job; Running if not named.
        fails: Jobs that cannot complete, and why.
        silent: Jobs that name no place of their reports.
        unremovable: Nothing can be deleted.
        refuses_objects: The bucket takes no object.
    """

    events: list[str] = field(default_factory=list)
    jobs: dict[str, Any] = field(default_factory=dict)
    objects: set[str] = field(default_factory=set)
    phases: dict[str, str] = field(default_factory=dict)
    fails: dict[str, BaseException] = field(default_factory=dict)
    silent: set[str] = field(default_factory=set)
    ended: set[str] = field(default_factory=set)
    unremovable: bool = False
    refuses_objects: bool = False

    def apply(self, _kube: Any, manifests: Sequence[Any], *_: Any) -> None:
        for one in manifests:
            if one["kind"] == "Job":
                name = one["metadata"]["name"]
                if name in self.jobs:
                    raise ConfigError(f"job/{name} exists already and belongs to someone")
                self.jobs[name] = owned(one)
                self.events.append(f"create {name}{' held' if variables(one).get(HOLD) else ''}")

    def delete(self, _kube: Any, item: Any, _namespace: str) -> None:
        if self.unremovable:
            raise StageError("not removed")
        if item["kind"] == "Job" and self.jobs.pop(item["metadata"]["name"], None):
            self.events.append(f"remove {item['metadata']['name']}")

    def wait_for_all(self, _reader: Any, conditions: Sequence[Any], _journal: Journal) -> None:
        """Measure; no other Job may be able to send meanwhile."""
        (condition,) = conditions
        name = condition.name
        if isinstance(condition, JobPlaced):
            self.events.append(f"place {name}")
            if self.phases.get(name) == "Pending":
                raise WaitFailed("no node has room")
        if not isinstance(condition, JobReported):
            return
        sending = [one for one in self.jobs if one not in self.ended and self.may_send(one)]
        assert sending == [name], "load of two Jobs overlaps"
        self.events.append(f"measure {name}")
        if name in self.fails:
            raise self.fails[name]
        self.ended.add(name)

    def may_send(self, name: str) -> bool:
        held_for = variables(self.jobs[name]).get(HOLD)
        return not held_for or held_for in self.objects

    def get(self, kind: str, name: str) -> Any:
        return self.jobs.get(name) if kind == "Job" else None

    def listed(self, _kind: str, labels: dict[str, str]) -> list[Any]:
        name = labels["batch.kubernetes.io/job-name"]
        if name not in self.jobs:
            return []
        message = "" if name in self.silent else str(location(name))
        ended = {"state": {"terminated": {"exitCode": 0, "message": message}}} if name in self.ended else {}
        phase = self.phases.get(name, "Running")
        return [
            {
                "spec": {"nodeName": "n"} if phase != "Pending" else {},
                "status": {"phase": phase, "containerStatuses": [ended]},
            }
        ]

    def put_object(self, Bucket: str, Key: str, Body: bytes) -> None:  # noqa: N803 - the client's names
        if self.refuses_objects:
            raise StageFailure(f"put {Bucket}/{Key}: AccessDenied")
        self.objects.add(Key)
        self.events.append(f"release {Key.rpartition('/')[2]}")

    def delete_object(self, Bucket: str, Key: str) -> None:  # noqa: N803
        self.objects.discard(Key)

    def list_objects_v2(self, Bucket: str, Prefix: str) -> dict[str, Any]:  # noqa: N803
        return {"Contents": [{"Key": one} for one in sorted(self.objects) if one.startswith(Prefix)]}


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Stage:
    made = Stage()
    monkeypatch.setattr(job_sequence, "apply", made.apply)
    monkeypatch.setattr(job_sequence, "wait_for_all", made.wait_for_all)
    monkeypatch.setattr(objects, "delete", made.delete)
    return made


@pytest.fixture
def carry_out(stage: Stage, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    cluster = SimpleNamespace(kubectl_for=lambda namespace: "kubectl")
    reader = SimpleNamespace(kube=None, namespace="n", cluster=cluster, get=stage.get, listed=stage.listed)
    client = SimpleNamespace(
        put_object=stage.put_object,
        delete_object=stage.delete_object,
        list_objects_v2=stage.list_objects_v2,
        meta=SimpleNamespace(endpoint_url="http://minio"),
    )
    journal = Journal(tmp_path / "journal.jsonl", say=stage.events.append)

    def run(*jobs: Any) -> dict[str, Any]:
        place = JobPlace(cast(StageReader, reader), cast(Any, client), [SCRIPT, *jobs], OWNER, RUN, journal)
        return job_sequence.carry_out(place, jobs)

    return run


def done(stage: Stage) -> list[str]:
    """The events without progress lines."""
    verbs = ("create", "place", "measure", "release", "remove ")
    return [event for event in stage.events if event.startswith(verbs)]


def assert_nothing_is_left(stage: Stage) -> None:
    assert (stage.jobs, stage.objects) == ({}, set())


def test_second_job_is_prepared_during_the_first_and_released_after_it(
    stage: Stage, carry_out: Callable[..., dict[str, Any]], tmp_path: Path
) -> None:
    assert carry_out(job("a"), job("b")) == {"a": location("a"), "b": location("b")}
    assert done(stage) == [
        "create a", "place a", "create b held", "measure a", "release b", "measure b", "remove a", "remove b",
    ]  # fmt: skip
    assert_nothing_is_left(stage)
    phases = [event for event in read_events(tmp_path / "journal.jsonl") if event["kind"] == "phase"]
    assert [(phase["name"], phase["prepared"], phase["outcome"]) for phase in phases] == [
        ("benchmark job a", False, "done"), ("benchmark job b", True, "done"),
    ]  # fmt: skip


def test_one_job_alone_is_not_held(stage: Stage, carry_out: Callable[..., dict[str, Any]]) -> None:
    assert carry_out(job("a")) == {"a": location("a")}
    assert done(stage) == ["create a", "measure a", "remove a"]


def test_all_of_three_jobs_are_prepared_before_the_first_measures(
    stage: Stage, carry_out: Callable[..., dict[str, Any]]
) -> None:
    """Later, their start would be in the measurement of another one."""
    carry_out(job("a"), job("b"), job("c"))
    assert done(stage)[:5] == ["create a", "place a", "create b held", "create c held", "measure a"]
    assert done(stage)[5:9] == ["release b", "measure b", "release c", "measure c"]
    assert_nothing_is_left(stage)


def test_failed_first_job_is_gone_before_the_second_measures(
    stage: Stage, carry_out: Callable[..., dict[str, Any]]
) -> None:
    stage.fails["a"] = WaitFailed("vacuous")
    outcomes = carry_out(job("a"), job("b"))
    assert (str(outcomes["a"]), outcomes["b"]) == ("vacuous", location("b"))
    assert done(stage)[3:] == ["measure a", "remove a", "release b", "measure b", "remove b"]
    assert_nothing_is_left(stage)


def test_failed_second_job_keeps_the_result_of_the_first(
    stage: Stage, carry_out: Callable[..., dict[str, Any]]
) -> None:
    stage.fails["b"] = WaitFailed("vacuous")
    outcomes = carry_out(job("a"), job("b"))
    assert (outcomes["a"], str(outcomes["b"])) == (location("a"), "vacuous")
    assert_nothing_is_left(stage)


def test_job_that_names_no_place_of_its_reports_fails(stage: Stage, carry_out: Callable[..., dict[str, Any]]) -> None:
    stage.silent.add("a")
    assert "does not say where its reports are" in str(carry_out(job("a"))["a"])
    assert_nothing_is_left(stage)


@pytest.mark.parametrize("obstacle", ["its pod is Pending", "its pod was evicted", "no object can be written"])
def test_second_job_that_cannot_be_released_is_created_when_it_is_its_turn(
    stage: Stage, carry_out: Callable[..., dict[str, Any]], obstacle: str
) -> None:
    """There may be no room for two: its own failure would be a wrong verdict."""
    stage.phases["b"] = {"its pod is Pending": "Pending", "its pod was evicted": "Failed"}.get(obstacle, "Running")
    stage.refuses_objects = obstacle == "no object can be written"
    assert carry_out(job("a"), job("b")) == {"a": location("a"), "b": location("b")}
    assert done(stage)[3:6] == ["measure a", "remove b", "create b"]
    assert_nothing_is_left(stage)


def test_no_job_is_held_before_the_first_has_a_node(stage: Stage, carry_out: Callable[..., dict[str, Any]]) -> None:
    """It might take the room of the first."""
    stage.phases["a"] = "Pending"
    outcomes = carry_out(job("a"), job("b"))
    assert (str(outcomes["a"]), outcomes["b"]) == ("no node has room", location("b"))
    assert done(stage) == ["create a", "place a", "remove a", "create b", "measure b", "remove b"]


def test_without_room_for_two_no_job_is_held_any_more(stage: Stage, carry_out: Callable[..., dict[str, Any]]) -> None:
    """A later one might take the room of the one whose turn it is."""
    stage.phases["b"] = "Pending"
    assert carry_out(job("a"), job("b"), job("c")).keys() == {"a", "b", "c"}
    turns = ["measure a", "remove b", "remove c", "create b", "measure b", "create c", "measure c"]
    assert done(stage)[4:11] == turns
    assert_nothing_is_left(stage)


def test_job_that_cannot_be_held_is_not_created_before_its_turn(
    stage: Stage, carry_out: Callable[..., dict[str, Any]]
) -> None:
    """A script of an older manifest, or of a user, would send at once."""
    carry_out(job("a"), job("b", hold=False))
    assert done(stage) == ["create a", "measure a", "create b", "measure b", "remove a", "remove b"]


def test_interrupted_run_leaves_nothing(stage: Stage, carry_out: Callable[..., dict[str, Any]]) -> None:
    stage.fails["b"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        carry_out(job("a"), job("b"))
    assert_nothing_is_left(stage)


def test_what_a_killed_run_left_is_removed_and_reported(stage: Stage, carry_out: Callable[..., dict[str, Any]]) -> None:
    """Its object would release a Job of the next run at once."""
    stage.jobs["b"] = owned(job("b"))
    stage.objects.add("benchmark-holds/earlier-run/b")
    assert carry_out(job("a"), job("b")) == {"a": location("a"), "b": location("b")}
    assert [event for event in stage.events if event.startswith("remove") or event.endswith("held")][:4] == [
        "remove b",
        "removed the leftovers of a killed run: job/b",
        "removed the leftovers of a killed run: test-results/benchmark-holds/earlier-run/b",
        "create b held",
    ]
    assert_nothing_is_left(stage)


def test_existing_job_of_another_owner_is_neither_taken_over_nor_removed(
    stage: Stage, carry_out: Callable[..., dict[str, Any]]
) -> None:
    foreign = job("b")
    stage.jobs["b"] = foreign
    stage.ended.add("b")
    outcomes = carry_out(job("a"), job("b"))
    assert (outcomes["a"], str(outcomes["b"])) == (location("a"), "job/b exists already and belongs to someone")
    assert stage.jobs == {"b": foreign}


def test_failed_job_is_the_error_even_where_it_cannot_be_removed(
    stage: Stage, carry_out: Callable[..., dict[str, Any]]
) -> None:
    stage.fails["a"], stage.unremovable = WaitFailed("vacuous"), True
    assert str(carry_out(job("a"))["a"]) == "vacuous"


def test_completed_job_that_cannot_be_removed_fails(stage: Stage, carry_out: Callable[..., dict[str, Any]]) -> None:
    stage.unremovable = True
    assert str(carry_out(job("a"))["a"]) == "not removed"


def test_held_job_has_its_own_time_besides_that_of_the_jobs_before_it(
    stage: Stage, carry_out: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    created: list[Any] = []
    apply = stage.apply

    def note_and_apply(kube: Any, manifests: Sequence[Any], *more: Any) -> None:
        created.extend(json.loads(json.dumps(manifests)))
        apply(kube, manifests, *more)

    monkeypatch.setattr(job_sequence, "apply", note_and_apply)
    carry_out(job("a", activeDeadlineSeconds=600), job("b", activeDeadlineSeconds=300))
    first, held = (one for one in created if one["kind"] == "Job")
    assert first["spec"]["activeDeadlineSeconds"] == 600
    assert variables(first)[HOLD] == ""
    longest_s = 600 + 60 + 2 * 60
    assert (variables(held)[HOLD], variables(held)[HOLD_TIMEOUT]) == (key("b"), str(longest_s))
    assert held["spec"]["activeDeadlineSeconds"] == 300 + longest_s


def test_a_job_has_sent_everything_once_its_pod_names_the_reports(stage: Stage) -> None:
    """The Job itself is not Complete yet."""
    reader = cast(StageReader, SimpleNamespace(listed=stage.listed, get=lambda *_: None))
    stage.jobs["a"] = job("a")
    assert not JobReported("a", 60).observe(reader).done
    stage.ended.add("a")
    assert JobReported("a", 60).observe(reader).done


def test_a_job_has_its_room_once_its_pod_has_a_node(stage: Stage) -> None:
    reader = cast(StageReader, SimpleNamespace(listed=stage.listed, get=lambda *_: None))
    stage.jobs["a"], stage.phases["a"] = job("a"), "Pending"
    assert not JobPlaced("a", 60).observe(reader).done
    stage.phases["a"] = "Running"
    assert JobPlaced("a", 60).observe(reader).done

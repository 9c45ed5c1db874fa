"""Waiting for several conditions: each in its own time, all at an end where one cannot heal."""

from __future__ import annotations

import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.cluster.api_errors import ApiServerUnreachable
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import WaitFailed
from pytest_vllm_stage.core.journal import Journal, read_events
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import reader, wait
from pytest_vllm_stage.stage.observe.conditions import InferenceServiceReady
from pytest_vllm_stage.stage.observe.reader import ConditionStatus
from pytest_vllm_stage.stage.observe.trouble import Trouble
from tests.unit.made_api import served
from tests.unit.made_objects import event, pod, runtime, service

CLUSTER = ClusterFacts("local", "kc", "ctx", "v1", "kubectl", True, True)
NO_KUBE: Any = None


class FakeView(reader.StageReader):
    """A view of nothing but events and one log line."""

    def listed(self, kind: str, labels: dict[str, str] | None = None) -> list[Object]:
        return [event(pod(), "BackOff", "restarting")] if kind == "Event" else []

    @property
    def logs(self) -> Any:
        return lambda *_: ["Traceback", "ValueError: no"]


@dataclass
class Scripted:
    """A condition that shows one status after another, and the last one for ever."""

    what: str
    scripted: Sequence[ConditionStatus | Exception]
    timeout_s: float = 60.0
    times: int = field(default=0)

    @property
    def failing(self) -> str:
        return f"{self.what} cannot be"

    def observe(self, view: reader.StageReader) -> ConditionStatus:
        status = self.scripted[min(self.times, len(self.scripted) - 1)]
        self.times += 1
        if isinstance(status, Exception):
            raise status
        return status


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wait, "OWN_INTERVAL_S", 0.0)


def wait_for(*conditions: Scripted, path: Path | None = None) -> None:
    wait.wait_for_all(FakeView(NO_KUBE, CLUSTER, "ns"), conditions, Journal(path))


NOT_YET, DONE = ConditionStatus(False, "not yet"), ConditionStatus(True, "there")


def broken(times: int = 1, cause: str = "it broke") -> ConditionStatus:
    return ConditionStatus(False, "not yet", Trouble(cause, "p", "c", times=times), [pod()])


def test_each_condition_is_recorded_under_its_own_name(tmp_path: Path) -> None:
    wait_for(Scripted("a", [DONE]), Scripted("b", [NOT_YET, NOT_YET, DONE]), path=tmp_path / "j")
    waits = {event["name"]: event for event in read_events(tmp_path / "j")}
    assert waits["a"]["outcome"] == waits["b"]["outcome"] == "done"
    assert waits["b"]["state"] == "there"


@pytest.mark.parametrize("kind", typing.get_args(typing.get_type_hints(ClusterFacts)["kind"]))
def test_conditions_are_awaited_on_every_kind_of_cluster(kind: Any) -> None:
    facts = ClusterFacts(kind, "kc", "ctx", "v1", "kubectl", False, False)
    wait.wait_for_all(FakeView(NO_KUBE, facts, "ns"), [Scripted("a", [DONE])], Journal())


def test_what_is_reached_is_not_looked_at_again() -> None:
    first = Scripted("a", [DONE])
    wait_for(first, Scripted("b", [NOT_YET, NOT_YET, DONE]))
    assert first.times == 1


def test_a_trouble_ends_the_wait_with_cause_log_and_events(tmp_path: Path) -> None:
    with pytest.raises(WaitFailed) as failed:
        wait_for(Scripted("a", [NOT_YET]), Scripted("b", [NOT_YET, broken()]), path=tmp_path / "j")
    lines = failed.value.message.splitlines()
    assert lines[0] == "namespace/ns: b cannot be: it broke"
    assert "    ValueError: no" in lines
    assert "    BackOff pod/p (x1): restarting" in lines
    assert "kubectl --kubeconfig kc --context ctx -n ns" in failed.value.hint
    assert [e["outcome"] for e in read_events(tmp_path / "j") if e["name"] == "b"] == ["fatal"]


def test_a_state_that_may_pass_must_be_seen_again_and_again() -> None:
    passing = Scripted("a", [broken(3), broken(3), NOT_YET, broken(3), broken(3), DONE])
    wait_for(passing)
    staying = Scripted("a", [broken(3)])
    with pytest.raises(WaitFailed, match="it broke"):
        wait_for(staying)
    assert staying.times == 3


def test_another_cause_restarts_the_count() -> None:
    wait_for(Scripted("a", [broken(2, "x"), broken(2, "y"), broken(2, "x"), DONE]))


def test_the_time_is_each_conditions_own_and_the_log_says_how_far_it_came() -> None:
    unready = pod(ready=False)
    slow = Scripted("slow", [ConditionStatus(False, "loading", None, [unready])], timeout_s=0.0)
    with pytest.raises(WaitFailed) as failed:
        wait_for(Scripted("patient", [NOT_YET]), slow)
    assert failed.value.message.startswith("namespace/ns: slow cannot be: not within 0 s: loading")
    assert "log of pod/p container kserve-container, last lines:" in failed.value.message


def test_the_log_of_a_pod_that_is_not_ready_in_time_is_shown(tmp_path: Path) -> None:
    with served() as api:
        for item in (service(), runtime(), pod("m-1", ready=False, labels={"serving.kserve.io/inferenceservice": "m"})):
            api.add(item)
        api.answers["GET /api/v1/namespaces/ns/pods/m-1/log"] = (200, "loading shard 3 of 9\n")
        facts = api.facts(tmp_path)
        with client.connection(facts.kubeconfig, facts.context) as kube:
            seen = reader.StageReader(kube, facts, "ns")
            with pytest.raises(WaitFailed, match="loading shard 3 of 9"):
                wait.wait_for_all(seen, [InferenceServiceReady("m", 0.0)], Journal())


def test_an_api_server_that_is_away_for_a_moment_is_waited_for() -> None:
    wait_for(Scripted("a", [*[ApiServerUnreachable("no answer")] * 3, DONE]))
    often = [ApiServerUnreachable("no answer")] * (wait.MOST_UNANSWERED - 1)
    wait_for(Scripted("a", [*often, NOT_YET, *often, DONE]))
    away = Scripted("a", [ApiServerUnreachable("no answer")])
    with pytest.raises(WaitFailed, match="no answer"):
        wait_for(away)
    assert away.times == wait.MOST_UNANSWERED


def test_no_conditions_return_at_once() -> None:
    wait.wait_for_all(FakeView(NO_KUBE, CLUSTER, "ns"), [], Journal())

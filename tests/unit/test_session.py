"""What a run's processes share: journal, waits, shared facts, the record and the reports made from it."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from pytest_vllm_stage.core.errors import ConfigError, EnvironmentUnusable, StageError, StageFailure, WaitFailed
from pytest_vllm_stage.core.journal import Journal, read_events
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.report import junit, record
from pytest_vllm_stage.run.shared import Shared
from pytest_vllm_stage.session.kept import differences


def test_a_phase_is_recorded_with_its_outcome_and_facts(tmp_path: Path) -> None:
    said: list[str] = []
    journal = Journal(tmp_path / "j", said.append)
    with journal.phase("build", target="etcd") as facts:
        facts["bytes"] = 3
    with pytest.raises(EnvironmentUnusable), journal.phase("start"):
        raise EnvironmentUnusable("no")
    first, second = read_events(tmp_path / "j")
    assert (first["name"], first["outcome"], first["target"], first["bytes"]) == ("build", "done", "etcd", 3)
    assert (second["name"], second["outcome"]) == ("start", "environment unusable")
    assert said[0] == "build ..."
    assert said[-1].startswith("start: environment unusable in ")


def test_truncated_line_does_not_lose_the_others(tmp_path: Path) -> None:
    path = tmp_path / "j"
    Journal(path).event("a", "1")
    with path.open("a") as file:
        file.write('{"kind": "b", "na')
    assert [event["name"] for event in read_events(path)] == ["1"]


def test_a_wait_ends_when_the_condition_holds_and_records_it(tmp_path: Path) -> None:
    looks = iter([Observation(False, "starting"), Observation(False, "starting"), Observation(True, "up")])
    journal = Journal(tmp_path / "j")
    wait_until("pod/x Ready", lambda: next(looks), timeout_s=60, journal=journal, interval_s=0.001)
    (event,) = read_events(tmp_path / "j")
    assert (event["kind"], event["name"], event["outcome"], event["state"]) == ("wait", "pod/x Ready", "done", "up")


def test_wait_fails_immediately_on_a_permanent_failure() -> None:
    looks = iter([Observation(False, "creating"), Observation(False, "ErrImagePull", fatal="image x cannot be pulled")])
    with pytest.raises(WaitFailed) as caught:
        wait_until("pod/x Ready", lambda: next(looks), timeout_s=3600, journal=Journal(), interval_s=0.001, hint="look")
    assert "pod/x Ready: image x cannot be pulled" in str(caught.value)
    assert "last state after" in str(caught.value)
    assert "ErrImagePull" in str(caught.value)
    assert str(caught.value).endswith("next: look")


def test_a_wait_past_its_deadline_names_the_last_state() -> None:
    with pytest.raises(EnvironmentUnusable, match=r"etcd answers: not reached within 0.01 s\n .*: refused"):
        wait_until(
            "etcd answers",
            lambda: Observation(False, "refused"),
            timeout_s=0.01,
            journal=Journal(),
            interval_s=0.001,
            error=EnvironmentUnusable,
        )


@pytest.mark.parametrize("kind", [StageError, ConfigError, EnvironmentUnusable, StageFailure, WaitFailed])
def test_errors_cross_processes_whole(kind: type[StageError]) -> None:
    copy = pickle.loads(pickle.dumps(kind("what\nmore", hint="do")))  # noqa: S301
    assert (type(copy), str(copy)) == (kind, "what\nmore\n  next: do")


def test_a_shared_fact_is_made_once(tmp_path: Path) -> None:
    made: list[int] = []

    def make() -> str:
        made.append(1)
        return "fact"

    assert [Shared(tmp_path).ensure("a", make), Shared(tmp_path).ensure("a", make)] == ["fact", "fact"]
    assert made == [1]


def test_a_failure_is_shared_as_its_headline_and_not_tried_again(tmp_path: Path) -> None:
    class Special(WaitFailed):
        """A type that another process may not know."""

    def make() -> str:
        raise Special("no disk\n  long story", hint="buy one")

    def never() -> str:
        raise AssertionError("tried again")

    with pytest.raises(Special):
        Shared(tmp_path).ensure("a", make)
    with pytest.raises(WaitFailed) as caught:
        Shared(tmp_path).ensure("a", never)
    assert (str(caught.value), caught.value.already_reported) == ("no disk", True)


def outcome(name: str, outcome: str, reason: str = "", **properties: Any) -> dict[str, Any]:
    return {
        "name": name,
        "when": "call",
        "outcome": outcome,
        "start": 1.0,
        "duration_s": 0.5,
        "reason": reason,
        "properties": properties,
    }


def test_counts_use_the_worst_outcome_of_a_test() -> None:
    tests = [outcome("a", "passed"), outcome("a", "error"), outcome("b", "passed"), outcome("c", "skipped")]
    assert record.counts({"tests": tests}) == {"passed": 1, "skipped": 1, "error": 1}


def test_junit_message_is_the_error(tmp_path: Path) -> None:
    data = {
        "run_id": "r",
        "simulated": True,
        "started_at": 0,
        "versions": {"vllm": "1"},
        "tests": [
            outcome("suites/x.py::test_a[full]", "failed", "code\nE   the stream was \x00 buffered\nmore", rate=5),
            outcome("suites/x.py::test_b", "skipped", "Skipped: no cluster"),
        ],
    }
    junit.write(data, tmp_path / "j.xml")
    suite = ET.parse(tmp_path / "j.xml").getroot()[0]  # noqa: S314
    assert (suite.get("tests"), suite.get("failures"), suite.get("skipped")) == ("2", "1", "1")
    failed, skipped = suite.findall("testcase")
    assert (failed.get("classname"), failed.get("name")) == ("suites.x", "test_a[full]")
    failure = failed.find("failure")
    assert failure is not None
    assert failure.get("message") == "the stream was ? buffered"
    assert failed.find("properties/property[@name='rate']") is not None
    assert suite.find("properties/property[@name='simulated'][@value='true']") is not None
    assert skipped.find("skipped") is not None


def test_differences_of_fingerprints_are_named_field_by_field() -> None:
    before, now = {"a": "1", "b": "2", "c": "3"}, {"a": "1", "b": "9", "d": "4"}
    assert differences(before, now) == [
        "b: kept 2, wanted 9",
        "c: kept 3, wanted (absent)",
        "d: kept (absent), wanted 4",
    ]
    assert differences(before, now, most=1) == ["b: kept 2, wanted 9", "... and 2 more"]


def test_events_are_one_line_each_whatever_they_hold(tmp_path: Path) -> None:
    Journal(tmp_path / "j").event("x", "a\nb", text="\u2028 é")
    assert len((tmp_path / "j").read_text().splitlines()) == 1
    assert json.loads((tmp_path / "j").read_text())["name"] == "a\nb"

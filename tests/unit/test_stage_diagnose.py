"""Diagnostics: short in the error, whole in the folder, without secrets, and never raising."""

from __future__ import annotations

import base64
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_vllm_stage.cluster.api_errors import RequestRejected
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import diagnose, trouble
from pytest_vllm_stage.stage.observe.trouble import Trouble
from tests.unit.made_objects import container_status, ended, event, pod

SECRET = "correct-horse-battery"
NO_KUBE: Any = None


CLUSTER = ClusterFacts("local", "kc", "ctx", "v1", "kubectl", True, True)
CLOSING = SimpleNamespace(client=SimpleNamespace(close=lambda: None))


def logs_hold(monkeypatch: pytest.MonkeyPatch, text: str) -> list[dict[str, Any]]:
    """Let every log hold a text; return what is asked."""
    asked = []

    def read(_kube: object, namespace: str, pod: str, container: str, **options: Any) -> str:
        asked.append({"namespace": namespace, "pod": pod, "container": container, **options})
        return text

    monkeypatch.setattr(objects, "read_log", read)
    return asked


@pytest.fixture
def namespace(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Object]]:
    """The namespace's objects by kind; what is not listed here is empty."""
    held: dict[str, list[Object]] = {
        "Secret": [
            {"data": {"k": base64.b64encode(SECRET.encode()).decode(), "short": base64.b64encode(b"a").decode()}}
        ],
    }
    monkeypatch.setattr(objects, "listed", lambda _kube, kind, *_: held.get(kind, []))
    return held


def test_secret_values_and_tokens_are_taken_out(namespace: dict[str, list[Object]]) -> None:
    redact = diagnose.redactor(NO_KUBE, "ns")
    assert (
        redact(f"a {SECRET} b hf_abcdefghijkl c Authorization: Bearer abcdefghij")
        == "a *** b *** c Authorization: Bearer ***"
    )
    assert redact("a plain banana") == "a plain banana"


def test_tokens_are_taken_out_though_secrets_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> list[Object]:
        raise EnvironmentUnusable("not allowed")

    monkeypatch.setattr(objects, "listed", refuse)
    assert diagnose.redactor(NO_KUBE, "ns")("hf_abcdefghijkl") == "***"


def test_logs_are_redacted(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = logs_hold(monkeypatch, f"first\npassword {SECRET}\n")
    logs = diagnose.Logs(NO_KUBE, "ns", lambda text: text.replace(SECRET, "***"))
    assert logs("p", "c", True) == ["first", "password ***"]
    assert asked == [{"namespace": "ns", "pod": "p", "container": "c", "previous": True, "lines": 200}]


def test_a_log_that_does_not_exist_is_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    def reject(*_: object, **_options: object) -> str:
        raise RequestRejected("no such container", code=400)

    monkeypatch.setattr(objects, "read_log", reject)
    assert diagnose.Logs(NO_KUBE, "ns", str)("p", "c", False) == []


def test_an_explanation_begins_with_the_cause_and_is_short() -> None:
    def log(*_: object) -> list[str]:
        return [f"line {number}" for number in range(100)]

    logs: Any = log
    made = pod()
    text = diagnose.explain(Trouble("it broke", "p", "c"), logs, [event(made, "BackOff", "x" * 1000)] * 20)
    lines = text.splitlines()
    assert lines[0] == "it broke"
    assert lines[-1].startswith("    BackOff pod/p (x1): xxx")
    assert len(lines) == 3 + 2 * diagnose.LINES_SHOWN
    assert max(map(len, lines)) < 400


def test_an_explanation_says_what_to_do_where_the_runbook_knows() -> None:
    logs: Any = lambda *_: ["ValueError: Unknown quantization method: w4a16."]  # noqa: E731
    found = trouble.find_trouble_of_pod(pod(statuses=[ended(1)]), [], logs)
    assert found is not None
    cause, action, *_ = diagnose.explain(found, logs, []).splitlines()
    assert cause.startswith("unknown quantization w4a16")
    assert action.startswith("  to do: correct --quantization, or leave it out: the engine reads the method from the")
    assert "to do" not in diagnose.explain(Trouble("it broke"), logs, [])


def test_everything_is_collected_without_secrets(
    tmp_path: Path, namespace: dict[str, list[Object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = pod("p", statuses=[ended(1, restarts=2)])
    broken["spec"]["containers"][0]["env"] = [{"name": "KEY", "value": SECRET}]
    namespace |= {"Pod": [broken], "Event": [event(broken, "BackOff", SECRET)]}

    monkeypatch.setattr(client, "connect", lambda *_: CLOSING)
    logs_hold(monkeypatch, f"log of {SECRET}")
    folder = tmp_path / "out"
    diagnose.collect(CLUSTER, "ns", folder)
    texts = {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}
    assert "BackOff pod/p (x1): ***" in texts["events.txt"]
    assert texts["logs/p.kserve-container.log"] == texts["logs/p.kserve-container.previous.log"] == "log of ***\n"
    assert "secrets.json" not in texts
    assert not any(SECRET in text for text in texts.values())


def test_the_log_of_an_ended_container_keeps_the_fatal_error_before_the_requests_that_it_lost(
    tmp_path: Path, namespace: dict[str, list[Object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace["Pod"] = [pod("p", statuses=[container_status(restartCount=1)])]
    monkeypatch.setattr(client, "connect", lambda *_: CLOSING)
    before, after = (["INFO a request"] * (3 * diagnose.LINES_KEPT) for _ in range(2))
    log = [*before, "ERROR EngineCore encountered a fatal error.", "ValueError: a", *after, "INFO bye"]
    asked = logs_hold(monkeypatch, "\n".join(log))
    diagnose.collect(CLUSTER, "ns", tmp_path / "out")
    kept = (tmp_path / "out" / "logs" / "p.kserve-container.previous.log").read_text().splitlines()
    fatal = kept.index("ERROR EngineCore encountered a fatal error.")
    assert kept[0].startswith("... ")
    assert (kept[fatal - 1], kept[fatal + 1], kept[-1]) == ("INFO a request", "ValueError: a", "INFO bye")
    assert len(kept) == diagnose.LINES_KEPT + 2
    left_out = sum(int(line.split()[1]) for line in kept if line.startswith("... "))
    assert left_out + diagnose.LINES_KEPT == len(log)
    assert [(one["previous"], one["lines"]) for one in asked] == [
        (False, diagnose.LINES_KEPT),
        (True, diagnose.LINES_OF_AN_END),
    ]


def test_a_cluster_that_is_gone_leaves_a_note(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise EnvironmentUnusable("the cluster does not answer")

    monkeypatch.setattr(client, "connect", refuse)
    diagnose.collect(CLUSTER, "ns", tmp_path / "out")
    assert (tmp_path / "out" / "not-collected.txt").read_text() == "everything: the cluster does not answer\n"


def test_no_time_left_is_noted(
    tmp_path: Path, namespace: dict[str, list[Object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace["Pod"] = [pod("p")]
    monkeypatch.setattr(diagnose, "COLLECT_BUDGET_S", -1.0)
    monkeypatch.setattr(client, "connect", lambda *_: CLOSING)
    diagnose.collect(CLUSTER, "ns", tmp_path / "out")
    assert "logs/p.kserve-container.log: no time left" in (tmp_path / "out" / "not-collected.txt").read_text()


def test_a_failed_deployment_is_diagnosed_once(
    tmp_path: Path, namespace: dict[str, list[Object]], monkeypatch: pytest.MonkeyPatch
) -> None:
    connected: list[object] = []

    def connect(*_: object) -> object:
        connected.append(1)
        return CLOSING

    monkeypatch.setattr(client, "connect", connect)
    logs_hold(monkeypatch, "")
    namespace["Pod"] = [pod("as-it-failed")]
    diagnose.collect(CLUSTER, "ns", tmp_path / "out")
    namespace["Pod"] = []
    diagnose.collect(CLUSTER, "ns", tmp_path / "out")
    assert len(connected) == 1
    assert "as-it-failed" in (tmp_path / "out" / "pods.json").read_text()

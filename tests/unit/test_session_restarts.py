"""Restarts of model servers while a run went on, read from an API server at its end."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.session import finish
from pytest_vllm_stage.stage.facts import StageFacts, TargetFacts
from pytest_vllm_stage.stage.objects import SERVICE_LABEL
from pytest_vllm_stage.stage.observe import diagnose
from tests.unit.made_api import served

STAGE = StageFacts("ns", "run", True, (TargetFacts("full", "m", "http://127.0.0.1:9"),))
RESTARTED_S = 1767225630.0  # 2026-01-01T00:00:30Z


def pod(name: str, service: str, restarts: int) -> dict[str, Any]:
    end = {"terminated": {"reason": "Error", "exitCode": 137, "finishedAt": "2026-01-01T00:00:30Z"}}
    container = {"name": "kserve-container", "restartCount": restarts, "lastState": end if restarts else {}}
    probe = {"httpGet": {"path": "/livez", "port": 8080}}
    return {
        "kind": "Pod",
        "metadata": {"name": name, "uid": f"uid-{name}", "labels": {SERVICE_LABEL: service}},
        "spec": {"containers": [{"name": "kserve-container", "livenessProbe": probe}]},
        "status": {"containerStatuses": [container]},
    }


def event(about: str, reason: str, message: str) -> dict[str, Any]:
    involved = {"uid": f"uid-{about}", "kind": "Pod", "name": about}
    return {
        "kind": "Event",
        "metadata": {"name": f"{about}-{reason}".lower()},
        "involvedObject": involved,
        "reason": reason,
        "type": "Warning",
        "message": message,
    }


def test_a_restart_of_a_target_model_during_the_run_names_its_probe(tmp_path: Path) -> None:
    with served() as api:
        for made in (pod("m-0", "m", 1), pod("m-1", "m", 0), pod("other-0", "other", 3)):
            api.add(made)
        api.add(event("m-0", "Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 503"))
        api.add(event("m-0", "Killing", "Container kserve-container failed liveness probe, will be restarted"))
        cluster = api.facts(tmp_path)
        (line,) = finish.find_restarts(cluster, STAGE, RESTARTED_S - 1)
        assert finish.find_restarts(cluster, STAGE, RESTARTED_S + 1) == []
    assert line == (
        "container kserve-container of pod m-0 was restarted once (Error, exit code 137): liveness probe GET "
        ":8080/livez restarts container kserve-container: HTTP probe failed with statuscode: 503"
    )


def test_an_engine_that_died_during_the_run_is_named_with_its_role_and_cause_but_no_secret(tmp_path: Path) -> None:
    with served() as api:
        api.add(pod("m-0", "m", 1))
        secret = {"kind": "Secret", "metadata": {"name": "s"}, "data": {"key": base64.b64encode(b"hunter22").decode()}}
        api.add(secret)
        origin = "(EngineCore pid=23) ERROR 01-01 00:00:29 [core.py:1] "
        log = f"{origin}EngineCore encountered a fatal error.\n{origin}ValueError: no access with hunter22\n"
        api.answers["GET /api/v1/namespaces/ns/pods/m-0/log"] = (200, log)
        (line,) = finish.find_restarts(api.facts(tmp_path), STAGE, RESTARTED_S - 1)
        (asked,) = (request for request in api.requests if "/log" in request)
    assert line == (
        "engine of full died at 00:00:29: ValueError: no access with ***; container kserve-container of pod m-0 was "
        "restarted once (Error, exit code 137)"
    )
    assert "previous=true" in asked
    assert f"tailLines={diagnose.LINES_OF_AN_END}" in asked


def test_a_cluster_that_is_gone_is_an_error_of_the_stage(tmp_path: Path) -> None:
    with served() as api:
        cluster = api.facts(tmp_path)
    with pytest.raises(StageError):
        finish.find_restarts(cluster, STAGE, RESTARTED_S)

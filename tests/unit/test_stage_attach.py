"""Attaching to an existing stage: a broken model is reported by the checks, and the other one stays usable."""

from __future__ import annotations

import dataclasses
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.settings import pod
from pytest_vllm_stage.stage.deploy import waves
from tests.unit.made_api import served
from tests.unit.made_objects import condition, service


def test_a_model_that_is_not_ready_gets_no_address(tmp_path: Path) -> None:
    roles = {"quantized": "good", "full": "bad"}
    profile: Any = SimpleNamespace(models={r: SimpleNamespace(inference_service=name) for r, name in roles.items()})
    with served() as api, socket.create_server(("127.0.0.1", 0)) as engine:
        url = f"http://127.0.0.1:{engine.getsockname()[1]}"
        for name, published, ready in (("good", url, "True"), ("bad", "http://bad-ns.example.com", "False")):
            made = service(name)
            made["status"] = {"url": published, "conditions": [condition("Ready", ready, reason="R", message="why")]}
            api.add(made)
        far = dataclasses.replace(api.facts(tmp_path), reaches_services=False)
        quantized, full = waves.attach(far, profile, "ns", Journal()).targets
    assert (quantized.base_url, quantized.unreachable) == (url, "")
    assert full.base_url == ""
    assert full.unreachable == "inferenceservice/bad is not Ready (R: why) and no address answers; tried: nothing"


def test_a_pod_in_another_namespace_is_given_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "namespace").write_text("nightly\n")
    monkeypatch.setattr(pod, "SERVICE_ACCOUNT", tmp_path)
    profile: Any = SimpleNamespace(models={"full": SimpleNamespace(inference_service="m")})
    with served() as api:
        facts = api.facts(tmp_path)
        inside = dataclasses.replace(facts, kind="in-cluster")
        with client.connection(facts.kubeconfig, facts.context) as kube:
            for cluster, namespace, hint in (
                (inside, "stage", "this pod is in namespace nightly: for a stage there, --stage-namespace=nightly"),
                (inside, "nightly", "is --stage-namespace right?"),
                (facts, "stage", "is --stage-namespace right?"),
            ):
                with pytest.raises(StageFailure, match=r"inferenceservice/m .* does not exist") as failed:
                    waves._services(kube, cluster, namespace, profile)
                assert failed.value.hint.endswith(hint)

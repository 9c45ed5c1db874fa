"""What a run knows of the kernels that compute a model: those of the local stage, and what a profile declares."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core import processor
from pytest_vllm_stage.core.journal import read_events
from pytest_vllm_stage.run.context import Run, RunIdentity
from pytest_vllm_stage.session import lifecycle, targets
from pytest_vllm_stage.settings.resolver import resolve_settings
from pytest_vllm_stage.stage.facts import StageFacts, TargetFacts

URL = "http://127.0.0.1:9"
STAGE = StageFacts("small", "r", True, (TargetFacts("full", "m", URL),))
PROFILE = """
name = "small"
overlay = "local"
namespace = "small"
[models.full]
inference_service = "m"
"""


def make_run(folder: Path, declared: str = "", endpoint: str | None = None) -> Run:
    profile = folder / "small.toml"
    profile.write_text(PROFILE + (f'kernels = "{declared}"\n' if declared else ""))
    settings: dict[str, Any] = {"profile": str(profile), "endpoint": endpoint}
    identity = RunIdentity("r", str(folder / "run"), 1)
    return Run(identity, lambda: resolve_settings(settings.get, {}, lambda _: None, folder), lambda _line: None)


def cluster(kind: Any) -> ClusterFacts:
    return ClusterFacts(kind, "/k", "c", "v1", "kubectl", True, True, "/state")


@pytest.fixture
def set_flags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Gives this machine's processor these instruction sets."""
    path = tmp_path / "cpuinfo"
    monkeypatch.setattr(processor, "CPUINFO", path)
    return lambda flags: path.write_text(f"flags\t\t: fpu {flags} sse\n")


@pytest.mark.parametrize(
    ("flags", "kernels"),
    [("avx2 avx512f avx512bw", "cpu-avx512"), ("avx2 avx512f", "cpu-float32"), ("avx2", "cpu-float32")],
)
def test_a_local_stage_is_computed_by_the_kernels_of_this_processor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_flags: Any, flags: str, kernels: str
) -> None:
    set_flags(flags)
    monkeypatch.setattr(lifecycle, "_deploy_or_attach", lambda *_: STAGE)
    run = make_run(tmp_path)
    found = lifecycle.make_stage(run, cluster("local"))
    assert StageFacts.from_json(found.to_json()).kernels == kernels
    assert targets.find_stage_targets(run, found, lambda: cluster("local"))["full"].kernels == kernels
    recorded = [event["kind"] for event in read_events(tmp_path / "run" / "journal.jsonl")]
    assert ("no_avx512" in recorded) == (kernels == "cpu-float32")


@pytest.mark.parametrize(
    ("kind", "simulated"), [("local", True), ("kind", False), ("kubeconfig", False), ("in-cluster", False)]
)
def test_nothing_is_known_of_the_kernels_of_another_stage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, set_flags: Any, kind: str, simulated: bool
) -> None:
    set_flags("avx2")
    stage = StageFacts("small", "r", True, STAGE.targets, simulated=simulated)
    monkeypatch.setattr(lifecycle, "_deploy_or_attach", lambda *_: stage)
    run = make_run(tmp_path)
    found = lifecycle.make_stage(run, cluster(kind))
    assert found == stage
    assert targets.find_stage_targets(run, found, lambda: cluster(kind))["full"].kernels == ""


@pytest.mark.parametrize("declared", ["", "gpu-bf16"])
def test_of_an_endpoint_the_kernels_are_what_the_profile_declares(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, declared: str
) -> None:
    monkeypatch.setattr(targets, "_served_models", lambda *_: [{"id": "m"}])
    found = targets.find_endpoint_targets(make_run(tmp_path, declared, endpoint=f"full={URL}"))
    assert found["full"].kernels == declared


def test_a_declaration_comes_before_the_stages_own_kernels(tmp_path: Path) -> None:
    stage = StageFacts("small", "r", True, STAGE.targets, kernels="cpu-float32")
    found = targets.find_stage_targets(make_run(tmp_path, "cpu-bf16"), stage, lambda: cluster("local"))
    assert found["full"].kernels == "cpu-bf16"

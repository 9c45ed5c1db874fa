"""Notes of kept stages: which can be reused, which are forgotten, and the commands that they give."""

from __future__ import annotations

import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from pytest_vllm_stage.cluster import local
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.session import kept
from pytest_vllm_stage.settings.resolver import resolve_settings
from pytest_vllm_stage.stage.facts import StageFacts, TargetFacts

TARGETS = (TargetFacts("full", "f", "http://127.0.0.1:9"),)


@pytest.fixture(autouse=True)
def living(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SimpleNamespace]:
    """The local clusters that live."""
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(tmp_path / "a cache"))
    found = [SimpleNamespace(state_dir="/clusters/one"), SimpleNamespace(state_dir="/clusters/two")]
    monkeypatch.setattr(local, "running", lambda: found)
    return found


def note(run_id: str, state_dir: str | None, targets: tuple[TargetFacts, ...] = TARGETS) -> kept.Kept:
    cluster = ClusterFacts("local" if state_dir else "kubeconfig", "/k", "c", "v1", "kubectl", True, True, state_dir)
    made = kept.Kept(run_id, cluster, StageFacts("small", run_id, True, targets), {"engine": "vllm"})
    kept.note(made)
    return made


def test_a_stage_whose_cluster_was_stopped_is_forgotten(living: list[SimpleNamespace]) -> None:
    first, second = note("run-1", "/clusters/one"), note("run-2", "/clusters/two")
    assert kept.find("latest") == second
    del living[1]
    assert kept.find("latest") == first
    with pytest.raises(ConfigError, match=r"--stage-reuse=run-2: no such kept stage; kept: run-1\n"):
        kept.find("run-2")


def test_a_stage_on_an_existing_cluster_is_not_forgotten(living: list[SimpleNamespace]) -> None:
    made = note("run-1", None)
    living.clear()
    assert kept.find("latest") == made


def test_a_failed_deployment_is_kept_to_be_looked_at_but_not_reused() -> None:
    whole = note("run-1", "/clusters/one")
    note("run-2", "/clusters/two", targets=())
    assert kept.find("latest") == whole
    with pytest.raises(ConfigError, match="the deployment of that run failed") as refused:
        kept.find("run-2")
    assert refused.value.hint.endswith("pytest_vllm_stage.cluster.local stop two")


def test_a_note_of_another_version_stays_while_its_cluster_runs(living: list[SimpleNamespace]) -> None:
    path = kept.note(note("run-1", "/clusters/one"))
    path.write_text('{"run_id": "run-1", "cluster": {"state_dir": "/clusters/one"}, "stage": {"new": 1}}')
    with pytest.raises(ConfigError, match="kept: none"):
        kept.find("latest")
    assert path.exists()
    living.clear()
    kept.forget_ended()
    assert not path.exists()


def test_a_note_without_a_cluster_is_dropped() -> None:
    path = kept.note(note("run-1", "/clusters/one"))
    path.write_text("{}")
    with pytest.raises(ConfigError, match="kept: none"):
        kept.find("latest")
    assert not path.exists()


def test_the_remove_command_works_in_any_folder_and_without_an_activated_environment(tmp_path: Path) -> None:
    command = kept.removal_command(note("run-1", "/clusters/one"))
    done = subprocess.run(
        [*shlex.split(command)[:-2], "--help"], cwd=tmp_path, env={"PATH": "/nowhere"}, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert shlex.split(command)[0] == sys.executable


def test_the_reuse_options_repeat_what_decides_the_stage(tmp_path: Path) -> None:
    profile = tmp_path / "my profile.toml"
    profile.write_text('name = "small"\noverlay = "o"\nnamespace = "n"\n[models.full]\ninference_service = "f"\n')
    (tmp_path / "o").mkdir()
    (tmp_path / "o" / "kustomization.yaml").write_text("resources: []\n")
    given = {"profile": str(profile), "keep": "always"}
    config = resolve_settings(given.get, {"VLLM_STAGE_NAMESPACE": "mine"}, dict[str, str]().get, tmp_path)
    options = kept.reuse_options(config, "run-1")
    assert shlex.split(options) == ["--stage-reuse=run-1", f"--stage-profile={profile}", "--stage-namespace=mine"]

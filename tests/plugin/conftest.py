"""A place to run the plugin in: a small profile, and a fake cluster and stage put in at one seam, session.lifecycle."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FAKE = '''
"""Puts a fake cluster and stage at the plugin's one seam; every call leaves a line in calls.log."""
import os
from pathlib import Path
from pytest_vllm_stage.core import errors
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.session import finish, lifecycle
from pytest_vllm_stage.stage.facts import StageFacts, TargetFacts

LOG = Path(__file__).parent / "calls.log"

def note(word):
    with LOG.open("a") as file:
        file.write(f"{word} {os.getpid()}\\n")

def make_cluster(run):
    note("cluster")
    if os.environ.get("FAKE_UNUSABLE"):
        raise errors.EnvironmentUnusable("no containerd here", hint="apt-get install containerd")
    with run.journal.phase("step: cluster"):
        return ClusterFacts("local", "/k", "c", "v1.34.4", "kubectl", True, True, "/state")

def make_stage(run, cluster):
    note("stage")
    if os.environ.get("FAKE_BROKEN"):
        text = "secret minio-credentials has no key \\"secretkey\\"\\n  pod minio-0: waiting"
        raise errors.WaitFailed(text, hint=os.environ.get("FAKE_HINT", "add it"))
    targets = tuple(TargetFacts(role, role + "-model", "http://127.0.0.1:9") for role in run.config.roles)
    return StageFacts(run.config.namespace, run.run_id, True, targets)

def end(run, cluster):
    note("end")
    return ["netns vllm-stage-1"] if os.environ.get("FAKE_LEFTOVER") else []

def keep(run, cluster, stage):
    note("keep" if stage else "keep-failed")
    return []

lifecycle.make_cluster, lifecycle.make_stage, finish.end, finish.keep = make_cluster, make_stage, end, keep
finish.diagnose = lambda run, cluster: []
finish.find_restarts = lambda cluster, stage, since_s: os.environ.get("FAKE_RESTARTS", "").splitlines()
'''

PROFILE = """
name = "small"
overlay = "overlay"
namespace = "small"
[models.quantized]
inference_service = "q"
[models.full]
inference_service = "f"
"""


@pytest.fixture
def bare_place(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A rootdir with an empty overlay for profiles, and no options of our own but the one that saves time."""
    # Under CI pytest repeats whole messages in its short summary.
    for variable in ("CI", "BUILD_NUMBER"):
        monkeypatch.delenv(variable, raising=False)
    # Each process and each worker would import asyncio for a plugin that no test uses.
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:anyio")
    monkeypatch.setenv("VLLM_STAGE_REPORT", "never")
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    (pytester.path / "overlay").mkdir()
    (pytester.path / "overlay" / "kustomization.yaml").write_text("resources: []\n")
    return pytester


@pytest.fixture
def place(bare_place: pytest.Pytester) -> pytest.Pytester:
    """A rootdir with the fake in its conftest and the profile ``small.toml``."""
    bare_place.makeini("[pytest]\nvllm_stage_profile = small.toml\nfilterwarnings = error\n")
    bare_place.makeconftest(FAKE)
    (bare_place.path / "small.toml").write_text(PROFILE)
    return bare_place


@pytest.fixture
def kubeconfig(place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubeconfig with the one context ``c``, of a server that nothing listens at."""
    path = place.path / "kubeconfig"
    data = {
        "contexts": [{"name": "c", "context": {"cluster": "c"}}],
        "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1:9"}}],
    }
    path.write_text(json.dumps(data))
    monkeypatch.setenv("KUBECONFIG", str(path))
    return path


@pytest.fixture
def calls(place: pytest.Pytester) -> Path:
    """The log of the fake: a line ``what pid`` for each call."""
    return place.path / "calls.log"

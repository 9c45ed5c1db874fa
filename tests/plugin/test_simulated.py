"""A simulated engine is called one wherever a run shows or keeps a result, and its kept stage passes for no other."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.run.context import Run, RunIdentity
from pytest_vllm_stage.session import kept, lifecycle
from pytest_vllm_stage.settings.resolver import resolve_settings
from pytest_vllm_stage.stage.deploy import waves
from pytest_vllm_stage.stage.facts import SIMULATED_LABEL, StageFacts, TargetFacts
from tests.plugin.forked_runs import run_pytest

SUITE = "def test_it(stage): pass"


@pytest.fixture
def simulated_place(place: pytest.Pytester) -> pytest.Pytester:
    (place.path / "overlay-sim").mkdir()
    (place.path / "overlay-sim" / "kustomization.yaml").write_text("resources: []\n")
    place.makepyfile(SUITE)
    return place


@pytest.fixture
def simulator() -> Iterator[str]:
    command = [sys.executable, "-m", "pytest_vllm_stage.standins.engine", "--ttft-ms=1", "--itl-ms=1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
        process.terminate()


def said(folder: Path) -> list[Any]:
    """What the record, JUnit and allure say."""
    record = json.loads((folder / "run.json").read_text())
    root = ET.parse(folder / "junit.xml").getroot()  # noqa: S314 - our own file
    junit = root.find("testsuite/properties/property[@name='simulated']")
    assert junit is not None
    environment = (folder / "allure-results" / "environment.properties").read_text().splitlines()
    results = [json.loads(path.read_text()) for path in (folder / "allure-results").glob("*-result.json")]
    assert results, "allure has no result: nothing could be tagged"
    tagged = all({"name": "tag", "value": "simulated"} in result["labels"] for result in results)
    allure = next(line.partition("=")[2] for line in environment if line.startswith("simulated="))
    return [record["simulated"], junit.get("value"), allure, tagged]


def run_of(engine: str, folder: Path) -> Run:
    """A run that reuses the newest kept stage."""
    settings = {"profile": "small.toml", "engine": engine, "reuse": "latest"}
    unset: dict[str, str] = {}
    identity = RunIdentity("r", str(folder / engine), 1)
    return Run(identity, lambda: resolve_settings(settings.get, {}, unset.get, folder), lambda _line: None)


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_with_the_simulated_engine_says_so_everywhere(simulated_place: pytest.Pytester, workers: str) -> None:
    result = run_pytest(simulated_place, "--stage-engine=sim", "--stage-run-dir=here", "-n", workers)
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["vllm-stage: SIMULATED: a stand-in for vLLM answered:*", "SIMULATED a stand-in for vLLM answered:*"]
    )
    assert said(simulated_place.path / "here") == [True, "true", "true", True]


def test_load_tests_of_two_simulated_models_run_side_by_side(simulated_place: pytest.Pytester) -> None:
    """Each waits until the other one runs."""
    simulated_place.makepyfile(
        """
        import time
        import pytest

        @pytest.mark.load
        def test_load(stage, stage_run, model_role):
            others = {"quantized": "full", "full": "quantized"}
            (stage_run.directory / model_role).touch()
            until = time.monotonic() + 60
            while not (stage_run.directory / others[model_role]).exists():
                assert time.monotonic() < until, f"the load test of {others[model_role]} does not run"
                time.sleep(0.02)
        """
    )
    result = run_pytest(simulated_place, "--stage-engine=sim", "--stage-run-dir=here", "-n2")
    result.assert_outcomes(passed=2)
    result.stdout.no_fnmatch_line("NOT EXCLUSIVE*")
    accesses = json.loads((simulated_place.path / "here" / "run.json").read_text())["load_access"]
    assert sorted(one["role"] for one in accesses) == ["full", "quantized"]
    assert [one["concurrent"] for one in accesses] == [[], []]


def test_a_run_with_vllm_does_not(simulated_place: pytest.Pytester) -> None:
    result = run_pytest(simulated_place, "--stage-run-dir=here")
    result.assert_outcomes(passed=1)
    result.stdout.no_fnmatch_line("*SIMULATED*")
    assert said(simulated_place.path / "here") == [False, "false", "false", False]


def test_a_simulator_behind_an_endpoint_is_found_out(
    place: pytest.Pytester, simulator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = place.path / "cache"
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(cache))
    place.makepyfile("def test_it(endpoint): assert endpoint.models()")
    result = run_pytest(place, f"--stage-endpoint={simulator}", "--stage-run-dir=here", "-n", "2")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(["SIMULATED a stand-in for vLLM answered:*"])
    assert said(place.path / "here") == [True, "true", "true", True]
    # Nothing is built for an endpoint: neither a cluster's programs nor an engine.
    assert {path.name for path in cache.glob("*")} <= {"access", "turns"}


def test_a_server_for_each_model_and_dummy_weights_are_labelled(place: pytest.Pytester, simulator: str) -> None:
    profile = place.path / "small.toml"
    profile.write_text(profile.read_text() + "dummy_weights = true\n")
    place.makepyfile("def test_it(endpoint): assert endpoint.models()")
    result = run_pytest(
        place, f"--stage-endpoint=quantized={simulator},full={simulator}/v1", "--stage-run-dir=here", "-v"
    )
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(
        ["*test_it?quantized?*", "*test_it?full?*", "DUMMY     sim: random weights have the model's shape:*"]
    )
    assert json.loads((place.path / "here" / "run.json").read_text())["dummy_weights"] == ["sim"]


@pytest.mark.parametrize(("kept_as", "wanted"), [("sim", "vllm"), ("vllm", "sim")])
def test_a_kept_stage_of_another_engine_is_refused(
    simulated_place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, kept_as: str, wanted: str
) -> None:
    monkeypatch.setenv("VLLM_STAGE_CACHE_DIR", str(simulated_place.path / "cache"))
    cluster = ClusterFacts("local", "/k", "c", "v1", "kubectl", True, True, "/state")
    monkeypatch.setattr(kept, "forget_ended", lambda: None)  # the cluster is made up
    runs = {engine: run_of(engine, simulated_place.path) for engine in ("sim", "vllm")}
    monkeypatch.setattr("pytest_vllm_stage.stage.deploy.render.render", lambda overlay, kubectl: [])
    targets = (TargetFacts("full", "f", "http://127.0.0.1:9"),)
    stage = StageFacts("small", "r", True, targets, simulated=kept_as == "sim")
    kept.note(kept.Kept("r", cluster, stage, lifecycle.fingerprint(runs[kept_as].config, "kubectl")))
    assert replace(lifecycle.make_stage(runs[kept_as], cluster), kernels="") == stage
    with pytest.raises(ConfigError, match=f"kept a stage of engine {kept_as}, and this run is for {wanted}") as refused:
        lifecycle.make_stage(runs[wanted], cluster)
    assert f"--stage-engine={kept_as}" in refused.value.hint


def test_a_stage_is_simulated_when_one_of_its_services_says_so() -> None:
    real: dict[str, Any] = {"metadata": {"name": "a"}}
    other: dict[str, Any] = {"metadata": {"name": "b", "labels": {SIMULATED_LABEL: "true"}}}
    assert not waves.is_simulated({"full": real})
    assert waves.is_simulated({"full": real, "quantized": other})
    assert StageFacts.from_json(StageFacts("n", "r", True, (), simulated=True).to_json()).simulated is True

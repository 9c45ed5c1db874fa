"""Allure results of a run: where they go, labels, steps, attachments, and no secret in them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.plugin.forked_runs import run_pytest

PLANTED = "planted-value-0123456789"

SUITE = f"""
import os, sys
import pytest

@pytest.fixture
def client():
    import httpx
    from pytest_vllm_stage.serving.client import EndpointClient
    from pytest_vllm_stage.serving.target import Target
    def answer(request):
        return httpx.Response(200, json={{"object": "list", "data": [{{"id": "a", "echo": "{PLANTED}"}}]}})
    return EndpointClient(Target("full", "a", "http://user:{PLANTED}@host"), transport=httpx.MockTransport(answer))

def test_passes(stage, stage_run):
    with stage_run.journal.phase("publish"):
        pass

def test_fails(stage, client):
    print("{PLANTED}")
    print("{PLANTED}", file=sys.stderr)
    client.models()
    raise RuntimeError("refused: {PLANTED}")

@pytest.mark.parametrize("value", ["{PLANTED}"])
def test_has_a_parameter(stage, value):
    import allure
    allure.attach("{PLANTED}", name="own")
"""


def results(folder: Path) -> dict[str, Any]:
    found = [json.loads(path.read_text()) for path in folder.glob("*-result.json")]
    return {result["name"].partition("[")[0]: result for result in found}


def containers(folder: Path) -> list[Any]:
    return [json.loads(path.read_text()) for path in folder.glob("*-container.json")]


def names_of_steps(item: dict[str, Any]) -> list[str]:
    return [step["name"] for step in item.get("steps", [])]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_results_have_steps_and_attachments_and_no_secret(
    place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, workers: str
) -> None:
    monkeypatch.setenv("VLLM_STAGE_API_KEY", PLANTED)
    place.makepyfile(test_it=SUITE)
    result = run_pytest(place, "-n", workers, "--stage-run-dir=here")
    result.assert_outcomes(passed=2, failed=1)
    folder = place.path / "here" / "allure-results"
    found = results(folder)
    assert set(found) == {"test_passes", "test_fails", "test_has_a_parameter"}
    assert names_of_steps(found["test_passes"]) == ["publish"]
    befores = [before for container in containers(folder) for before in container.get("befores", [])]
    assert "step: cluster" in {name for before in befores for name in names_of_steps(before)}
    attached = {one["name"]: (folder / one["source"]).read_text() for one in found["test_fails"]["attachments"]}
    assert set(attached) == {"last request", "last answer", "stdout", "stderr"}
    assert attached["last request"].startswith("GET http://***@host/v1/models")
    assert '"echo":"***"' in attached["last answer"].replace(" ", "")
    assert found["test_fails"]["statusDetails"]["message"] == "RuntimeError: refused: ***"
    files = list(folder.iterdir())
    assert len(files) > 6
    assert [path.name for path in files if PLANTED in path.read_text()] == []


def test_alluredir_is_honoured_and_redacted_too(place: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_STAGE_API_KEY", PLANTED)
    place.makepyfile(test_it=SUITE)
    run_pytest(place, "--stage-run-dir=here", "--alluredir=mine")
    assert not (place.path / "here" / "allure-results").exists()
    assert len(results(place.path / "mine")) == 3
    assert (place.path / "mine" / "environment.properties").exists()
    assert [path.name for path in (place.path / "mine").iterdir() if PLANTED in path.read_text()] == []


@pytest.mark.parametrize(("error", "status"), [("StageFailure", "failed"), ("EnvironmentUnusable", "broken")])
def test_an_unusable_environment_is_broken_and_a_broken_stage_failed(
    place: pytest.Pytester, error: str, status: str
) -> None:
    place.makepyfile(
        f"""
        import pytest
        from pytest_vllm_stage.core import errors

        @pytest.fixture
        def thing(stage):
            raise errors.{error}("no", hint="look")

        def test_it(thing): pass
        """
    )
    run_pytest(place, "--stage-run-dir=here")
    found = results(place.path / "here" / "allure-results")
    assert found["test_it"]["status"] == status


def test_a_run_without_a_stage_test_leaves_nothing(place: pytest.Pytester) -> None:
    place.makepyfile("def test_plain(): pass")
    run_pytest(place, "-p", "no:cacheprovider").assert_outcomes(passed=1)
    assert not [path for path in place.path.rglob("*") if "allure" in path.name or path.name == "reports"]


def test_the_diagnostics_of_a_failed_deployment_are_attached(place: pytest.Pytester) -> None:
    place.makepyfile(
        """
        import pytest
        from pytest_vllm_stage.core import errors

        @pytest.fixture(scope="session")
        def stage(stage_run, cluster):
            folder = stage_run.directory / "diagnostics" / "logs"
            folder.mkdir(parents=True)
            (folder.parent / "events.txt").write_text("BackOff pod/minio-0")
            (folder / "minio-0.minio.log").write_text("no disk")
            raise errors.StageFailure("minio is not up")

        def test_it(stage): pass
        """
    )
    run_pytest(place, "--stage-run-dir=here")
    folder = place.path / "here" / "allure-results"
    attached = {one["name"]: (folder / one["source"]).read_text() for one in results(folder)["test_it"]["attachments"]}
    assert attached == {
        "diagnostics/events.txt": "BackOff pod/minio-0",
        "diagnostics/logs/minio-0.minio.log": "no disk",
    }


def test_a_run_that_only_collects_leaves_nothing(place: pytest.Pytester) -> None:
    place.makepyfile("def test_it(stage): pass")
    run_pytest(place, "--collect-only", "-p", "no:cacheprovider")
    assert not (place.path / "reports").exists()


def test_without_allure_pytest_the_run_is_the_same(place: pytest.Pytester) -> None:
    place.makepyfile("def test_it(stage): pass")
    result = run_pytest(place, "-p", "no:allure_pytest", "--stage-run-dir=here")
    result.assert_outcomes(passed=1)
    assert not (place.path / "here" / "allure-results").exists()


def test_a_body_that_was_sent_in_chunks_does_not_end_the_session(place: pytest.Pytester) -> None:
    """Its bytes are gone once they are sent; httpx's own mock transport would keep them."""
    sending = """
    class Transport(httpx.BaseTransport):
        def handle_request(self, request):
            return answer(request)
    return EndpointClient("""
    in_chunks = SUITE.replace("\n    return EndpointClient(", sending).replace(
        "httpx.MockTransport(answer)", "Transport()"
    )
    place.makepyfile(
        test_it=in_chunks.replace("client.models()", 'client.raw("POST", "/v1/models", content=iter([b"{}"]))')
    )
    result = run_pytest(place, "-n", "0", "--stage-run-dir=here")
    result.assert_outcomes(passed=2, failed=1)
    folder = place.path / "here" / "allure-results"
    attached = {one["name"]: one["source"] for one in results(folder)["test_fails"]["attachments"]}
    assert "(sent in chunks)" in (folder / attached["last request"]).read_text()

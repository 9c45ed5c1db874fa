"""The benchmark Jobs and the Tekton Task as kustomize renders them: one behaviour, declared twice."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pytest_vllm_stage.benchmark import job_runs
from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.settings.profile import load_profile
from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import health

pytestmark = pytest.mark.real
OVERLAYS = fixtures_dir() / "overlays"
#: Where a step's result goes, which is the termination message for one and a file of Tekton's for the other.
OWN = "LOCATION_FILE"


@pytest.fixture(scope="module")
def kubectl() -> str:
    return shutil.which("kubectl") or str(components.ensure(Journal(), ["kubernetes"])["kubectl"])


@pytest.fixture(params=[("local", "local"), ("openshift", "l4")], ids=["local", "openshift"])
def stage(request: pytest.FixtureRequest, kubectl: str) -> tuple[list[Object], list[Object], list[str]]:
    """Of an overlay: what its benchmark and what its Task render to, and its profile's models."""
    overlay, profile = request.param
    rendered = [render.render(OVERLAYS / overlay / name, kubectl) for name in (job_runs.FOLDER, "tekton")]
    models = load_profile(profile, Path("/")).models.values()
    return rendered[0], rendered[1], [model.inference_service for model in models]


def task_of(manifests: list[Object]) -> Object:
    found = render.named(manifests, "Task", "run-guidellm-v2")
    assert found is not None
    return found


def variables(container: Object) -> dict[str, Any]:
    """Name to value, or to where the value comes from."""
    return {entry["name"]: entry.get("value", entry.get("valueFrom")) for entry in container["env"]}


def with_parameters(task: Object, given: dict[str, str]) -> Object:
    """The task's step as Tekton fills it."""
    params = {param["name"]: param.get("default") for param in task["spec"]["params"]} | given
    step = copy.deepcopy(task["spec"]["steps"][0])
    for entry in step["env"]:
        for name, value in params.items():
            if entry.get("value") == f"$(params.{name})":
                entry["value"] = value
    return dict(step)


#: Variables of the Job to parameters of the Task.
PARAMETERS = {
    "MODEL": "model",
    "RATES": "rates",
    "DURATION_S": "duration-s",
    "PROMPT_TOKENS": "prompt-tokens",
    "OUTPUT_TOKENS": "output-tokens",
    "WARMUP_REQUESTS": "warmup-requests",
    "REQUEST_TIMEOUT_S": "request-timeout-s",
    "MAX_ERROR_RATE": "max-error-rate",
}


def test_each_model_has_a_job_and_the_task_does_the_same(
    stage: tuple[list[Object], list[Object], list[str]],
) -> None:
    jobs, tasks, models = stage
    assert len(render.select_kind(jobs, "Job")) == len(models) == 2
    for model in models:
        pod = job_runs.job_of(jobs, model)["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        settings = job_runs.settings_of(job_runs.job_of(jobs, model))
        task = task_of(tasks)
        step = with_parameters(task, {PARAMETERS[name]: settings[name] for name in PARAMETERS})
        ours, theirs = variables(container), variables(step)
        assert {ours.pop(OWN), theirs.pop(OWN)} == {"/dev/termination-log", "$(results.location.path)"}
        assert ours.pop("HOLD_OBJECT") == "", "a pipeline has runAfter instead"
        assert ours == theirs
        assert settings["MODEL"] == model
        for field in ("image", "command", "volumeMounts", "securityContext"):
            assert container[field] == step[field], field
        assert container["resources"] == step["computeResources"]
        assert pod["volumes"] == task["spec"]["volumes"]


def test_the_task_needs_no_more_than_a_model(stage: tuple[list[Object], list[Object], list[str]]) -> None:
    """Its defaults are those of the Job as the reference has it, whatever an overlay makes smaller."""
    task = task_of(stage[1])
    job = yaml.safe_load((fixtures_dir() / "benchmarking" / "job" / "job.yaml").read_text())
    settings = job_runs.settings_of(job)
    defaults = {param["name"]: param["default"] for param in task["spec"]["params"] if "default" in param}
    wanted = {name: settings[variable] for variable, name in PARAMETERS.items() if name != "model"}
    assert wanted.items() <= defaults.items()
    assert "model" not in defaults


def test_the_script_is_the_same_for_both(stage: tuple[list[Object], list[Object], list[str]]) -> None:
    scripts = [render.named(manifests, "ConfigMap", "benchmark") for manifests in stage[:2]]
    assert scripts[0] is not None
    assert scripts[0] == scripts[1]
    assert set(scripts[0]["data"]) == {"benchmark.py", "guidellm_process.py", "hold.py", "reports.py"}


def test_images_and_secrets_are_what_the_stage_has(
    stage: tuple[list[Object], list[Object], list[str]],
) -> None:
    jobs, tasks, _ = stage
    references = health.secret_references([*jobs, *tasks])
    assert {(ref.secret, ref.key) for ref in references} == {
        ("minio-credentials", "accesskey"),
        ("minio-credentials", "secretkey"),
    }
    (image,) = set(drift.images(jobs).values())
    # The release's digest is not known here: an overlay for a registry of one's own sets it.
    assert drift.unpinned(jobs) == [] or image == "ghcr.io/vllm-project/guidellm:v0.8.1"
    assert drift.labels(jobs) == []


def test_the_references_rates_and_lengths(kubectl: str) -> None:
    jobs = render.render(OVERLAYS / "openshift" / job_runs.FOLDER, kubectl)
    rates = {
        model: job_runs.declared_rates(job_runs.job_of(jobs, model))
        for model in ("mistral-24b", "mistral-24b-quantized")
    }
    assert rates == {"mistral-24b": [1, 5, 10], "mistral-24b-quantized": [1, 5]}
    for job in render.select_kind(jobs, "Job"):
        settings = job_runs.settings_of(job)
        lengths = [settings[name] for name in ("PROMPT_TOKENS", "OUTPUT_TOKENS", "DURATION_S", "WARMUP_REQUESTS")]
        assert lengths == ["256", "256", "60", "20"]


@pytest.mark.parametrize("overlay", ["local", "local-sim", "openshift"])
def test_no_deployment_starts_a_benchmark(kubectl: str, overlay: str) -> None:
    """It would measure a stage that is still coming up, and disturb what comes after."""
    manifests = render.render(OVERLAYS / overlay, kubectl)
    assert [
        objects.name_of(job) for job in render.select_kind(manifests, "Job") if "benchmark" in objects.name_of(job)
    ] == []
    assert render.select_kind(manifests, "Task") == []


def test_a_model_without_a_job_is_named(kubectl: str) -> None:
    jobs = render.render(OVERLAYS / "local" / job_runs.FOLDER, kubectl)
    with pytest.raises(ConfigError, match=r"0 benchmark Jobs .*=absent.*valid: smollm2-135m, smollm2-135m-quantized"):
        job_runs.job_of(jobs, "absent")


def test_an_overlay_without_jobs_has_none(kubectl: str, tmp_path: Path) -> None:
    assert job_runs.manifests_of(tmp_path, kubectl, "vllm-stage") == []

"""The local stage with the simulated engine: every suite green, labelled down to its pods, planted faults caught."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import httpx
import pytest
import yaml
from kubernetes.dynamic import DynamicClient

from pytest_vllm_stage.benchmark import steps
from pytest_vllm_stage.cluster import local
from pytest_vllm_stage.cluster.access import Right, load_roles
from pytest_vllm_stage.cluster.client import connection
from pytest_vllm_stage.core.errors import ENVIRONMENT_EXIT_CODE, EnvironmentUnusable
from pytest_vllm_stage.core.journal import Journal, read_events
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.load import process
from pytest_vllm_stage.load.prepare import create_prompt_maker, prepare, prepare_shared
from pytest_vllm_stage.load.workers.measure import SharedJob, measure_in_cluster
from pytest_vllm_stage.load.workers.pods import INDEX_ANNOTATION, WorkerPlace
from pytest_vllm_stage.measurement.samples import LOAD_WORKERS
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep
from pytest_vllm_stage.publication import publish_run
from pytest_vllm_stage.run.context import Run, RunIdentity, new_run_id
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.target import Target
from pytest_vllm_stage.session import kept, lifecycle
from pytest_vllm_stage.settings.resolver import resolve_settings
from pytest_vllm_stage.slo.decision import Outcome as Verdict
from pytest_vllm_stage.slo.verdict import judge
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.facts import SIMULATED_LABEL
from pytest_vllm_stage.stage.object_store import find_object_store
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.reach import forwards
from pytest_vllm_stage.stage.reach.forward import ServiceForward
from tests.real.in_cluster_job import Kubectl, image_free, run_job
from tests.real.lookalike.validator import write_kubeconfig
from tests.real.machine_locks import starting_cluster
from tests.real.recorded_requests import read_rights
from tests.real.relay import Relay, relay_to
from tests.unit.made_results import STARTED_AT, measured, rate_step, write_folder

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
SILENT = Journal()
RUN_S = 600
SECRET = "sesame-sesame"
#: Those that are about the stage and its answers; load steps take minutes and are tested on simulators of their own.
SUITES = ("suites/deployment", "suites/inference")
#: Of the checks of the answers those that depend on the way to the model; the defects' tests run all without a cluster.
WAY_TO_MODEL = ("answers", "models", "security", "service", "slow_lanes", "streaming", "transport")
#: What lasts half a minute lasts seconds: nothing between this machine and the stage has a limit of time.
SHORT_LANES = ("-p", "tests.defects.short_lanes")

#: What a pod of the stage's own cluster runs, and as whom.
IN_THE_JOB = "deployment or test_service or test_answers"
VALIDATOR = "vllm-stage-validator"
ACCOUNT = f"system:serviceaccount:vllm-stage:{VALIDATOR}"
READ_ONLY, LOAD, PUBLISH, DEPLOY, DISRUPT = (
    fixtures_dir() / "access" / mode for mode in ("read-only", "load", "publish", "deploy", "disrupt")
)
DEPLOYERS_NAMESPACE = "vllm-stage-ci"
OVERLAY = fixtures_dir() / "overlays" / "local-sim"


class Outcome(NamedTuple):
    """A pytest run that ended."""

    status: int
    output: str
    record: dict[str, Any]

    def tests(self, outcome: str) -> list[dict[str, Any]]:
        return [test for test in self.record["tests"] if test["outcome"] == outcome]


def start(directory: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start a run; `finish` waits for its end."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", f"--stage-run-dir={directory}"]
    command += ["--stage-report=never", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTEST_ADDOPTS"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def finish(running: subprocess.Popen[str], directory: Path) -> Outcome:
    try:
        output, _ = running.communicate(timeout=RUN_S)
    finally:
        running.kill()
        running.wait()
    return Outcome(running.returncode, output, json.loads((directory / "run.json").read_text()))


def run(directory: Path, *arguments: str) -> Outcome:
    return finish(start(directory, *arguments), directory)


def await_cluster(running: subprocess.Popen[str], directory: Path) -> None:
    """Wait until the cluster of a run is there, or the run has ended without."""

    def look() -> Observation:
        there = any(event.get("name") == "step: cluster" for event in read_events(directory / "journal.jsonl"))
        return Observation(there or running.poll() is not None, "it starts")

    wait_until("the run's cluster", look, timeout_s=RUN_S, journal=SILENT, error=EnvironmentUnusable)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Outcome]:
    """The run that makes the stage and keeps it."""
    directory = tmp_path_factory.mktemp("runs") / "first"
    checks = ("suites/deployment", *(f"suites/inference/test_{name}.py" for name in WAY_TO_MODEL))
    options = (*SHORT_LANES, "--stage-engine=sim", "--stage-keep=always", "-n", "2")
    with starting_cluster():
        running = start(directory, *checks, *options)
        await_cluster(running, directory)
    outcome = finish(running, directory)
    yield outcome
    # A run that failed before its stage was there has ended its cluster itself.
    if outcome.record["kept"]:
        state_dir = kept.find(outcome.record["run_id"]).cluster.state_dir
        assert state_dir
        assert local.stop(state_dir, SILENT) == []


@pytest.fixture
def stage(first: Outcome) -> kept.Kept:
    assert first.record["kept"], first.output
    return kept.find(first.record["run_id"])


@pytest.fixture
def models(stage: kept.Kept) -> Iterator[dict[str, EndpointClient]]:
    targets = stage.stage.targets
    clients = {
        t.role: EndpointClient(Target(t.role, t.inference_service, t.base_url, t.max_model_len)) for t in targets
    }
    yield clients
    for one in clients.values():
        one.raw("PUT", "/sim/faults", json=[])
        one.close()


def test_every_suite_is_green_and_no_check_of_the_deployment_is_skipped(first: Outcome) -> None:
    """Some checks of the answers ask for a model; the stage around it is checked in full."""
    assert first.status == 0, first.output
    deployment = [test for test in first.record["tests"] if test["name"].startswith("suites/deployment/")]
    assert len(deployment) > 25
    assert {test["outcome"] for test in deployment} == {"passed"}, first.output
    assert len(first.tests("passed")) > 100


@pytest.mark.nightly
def test_whole_suites_are_green_again_on_the_kept_stage(stage: kept.Kept, tmp_path: Path) -> None:
    outcome = run(tmp_path / "whole", *SUITES, f"--stage-reuse={stage.run_id}", "--stage-engine=sim")
    assert outcome.status == 0, outcome.output
    assert len(outcome.tests("passed")) > 400


def test_it_is_called_simulated_down_to_its_pods(first: Outcome, stage: kept.Kept) -> None:
    assert first.record["simulated"] is True
    assert stage.stage.simulated is True
    assert " --stage-engine=sim" in first.record["kept"]["reuse"]
    assert first.record["versions"].keys() >= {"simulated-engine", "kserve"}
    with client.connection(stage.cluster, stage.stage.namespace) as kube:
        pods = objects.listed(kube, "Pod", stage.stage.namespace, {SIMULATED_LABEL: "true"})
    assert {pod["metadata"]["labels"]["serving.kserve.io/inferenceservice"] for pod in pods} == {
        target.inference_service for target in stage.stage.targets
    }


def test_the_declaration_decides_size_and_pace(models: dict[str, EndpointClient]) -> None:
    settings = {role: one.raw("GET", "/sim/settings").json() for role, one in models.items()}
    for role, one in models.items():
        assert (settings[role]["model"], settings[role]["max_num_seqs"]) == (one.target.model, 16)
        assert settings[role]["max_model_len"] == one.target.max_model_len == 2048
    assert settings["quantized"]["itl_ms"] < settings["full"]["itl_ms"]
    assert settings["quantized"]["ttft_ms"] < settings["full"]["ttft_ms"]


def test_a_planted_fault_fails_the_checks_of_its_model_alone(
    stage: kept.Kept, models: dict[str, EndpointClient], tmp_path: Path
) -> None:
    reuse = ("suites/inference", "-m", "smoke", f"--stage-reuse={stage.run_id}", "--stage-engine=sim")
    models["quantized"].raw("PUT", "/sim/faults", json=[{"fault": "server_error", "status": 503}])
    faulty = run(tmp_path / "faulty", *reuse)
    assert faulty.status == 1, faulty.output
    assert faulty.tests("failed")
    assert any("[full" in test["name"] for test in faulty.tests("passed")), faulty.output
    assert all("[quantized" in test["name"] for test in faulty.tests("failed")), faulty.output
    assert any("503" in test["reason"] for test in faulty.tests("failed")), faulty.output
    models["quantized"].raw("PUT", "/sim/faults", json=[])
    healed = run(tmp_path / "healed", *reuse)
    assert healed.status == 0, healed.output
    assert healed.record["simulated"] is True


PROFILE = """
name = "second"
overlay = "local-sim"
namespace = "vllm-stage"
[models.quantized]
inference_service = "smollm2-135m-quantized"
tool_format = "hermes"
[models.full]
inference_service = "smollm2-135m"
tool_format = "hermes"
[load]
rates = [4]
concurrencies = []
duration_s = 8
prompt_tokens = 32
output_tokens = 8
warmup_requests = 2
[slo]
error_rate = 0
ttft_p50_ms = 5000
[resilience]
roles = ["full"]
recovery_s = 120
window_error_rate = 0.95
ttft_p99_ms = 10000
"""


@pytest.fixture(scope="module")
def deployer(first: Outcome, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The kubeconfig of a ServiceAccount with the rights of a deployment alone, as an administrator grants them."""
    cluster = kept.find(first.record["run_id"]).cluster
    kubectl, path = Kubectl(cluster, DEPLOYERS_NAMESPACE), tmp_path_factory.mktemp("deployer") / "kubeconfig"
    kubectl("apply", "-k", str(DEPLOY))
    yield write_kubeconfig(cluster, DEPLOYERS_NAMESPACE, "vllm-stage-deployer", path).kubeconfig
    kubectl("delete", "-k", str(DEPLOY), "--wait=false")


@pytest.fixture
def second(stage: kept.Kept, deployer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    """Options for a stage of its own in this cluster, which a run knows by its kubeconfig alone."""
    (tmp_path / "second.toml").write_text(PROFILE)
    env_file = tmp_path / "env"
    env_file.touch(mode=0o600)
    env_file.write_text(f"MINIO_ACCESS_KEY=minioroot\nMINIO_SECRET_KEY={SECRET}\n")
    monkeypatch.setenv("KUBECONFIG", str(deployer))
    return (
        f"--stage-profile={tmp_path / 'second.toml'}", f"--stage-context={stage.cluster.context}",
        "--stage-deploy", "--stage-namespace=second", f"--stage-env-file={env_file}",
    )  # fmt: skip


def test_a_stage_is_deployed_by_kubeconfig_validated_and_removed(
    stage: kept.Kept, second: tuple[str, ...], tmp_path: Path
) -> None:
    """As on a cluster of one's own: nothing is known but a context, and another stage there is left alone."""
    with client.connection(stage.cluster, "second") as kube:
        before = described(kube, stage.stage.namespace)
        suites = ("suites/deployment", "suites/inference/test_answers.py")
        outcome = run(tmp_path / "second", *suites, *second, "-p", "tests.real.recorded_requests")
        assert outcome.status == 0, outcome.output
        assert find_undeclared(outcome.output, "deploy") == []
        assert objects.get(kube, "Namespace", "second") is None
        assert described(kube, stage.stage.namespace) == before
    deployment = [test for test in outcome.record["tests"] if test["name"].startswith("suites/deployment/")]
    assert len(deployment) > 25
    assert {test["outcome"] for test in deployment} == {"passed"}, outcome.output
    assert {"deploy", "teardown"} <= outcome.record["steps"].keys()
    assert outcome.record["simulated"] is True
    assert outcome.record["profile"]["namespace"] == "second"
    assert "namespace second" in outcome.output
    assert SECRET not in outcome.output + (tmp_path / "second" / "run.json").read_text()


def find_undeclared(output: str, *modes: str) -> list[str]:
    """Rights that a run has used and that no Role of its modes has."""
    used = read_rights(output)
    assert Right("get", "inferenceservices", "serving.kserve.io") in used
    declared = {right for mode in modes for role in load_roles(mode) for right in role.rights}
    return sorted(map(str, used - declared))


def described(kube: DynamicClient, namespace: str) -> dict[str, str]:
    """Every pod and service with its identity."""
    found = [one for kind in ("Pod", "InferenceService") for one in objects.listed(kube, kind, namespace)]
    return {objects.reference(one): one["metadata"]["uid"] for one in found}


@pytest.mark.nightly
def test_the_rights_of_load_workers_and_disruptions_are_enough(
    stage: kept.Kept, second: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Load from pods of an existing stage, as its validator; and a killed pod under traffic, as its deployer."""
    recorded = ("-p", "tests.real.recorded_requests")
    kubectl = Kubectl(stage.cluster, DEPLOYERS_NAMESPACE)
    kubectl("apply", "-k", str(DISRUPT))
    disruption = ("--stage-disrupt=pod", f"--stage-disrupt-cluster={stage.cluster.context}")
    disrupted = run(tmp_path / "disrupted", "suites/resilience", *second, *disruption, *recorded)
    kubectl("delete", "-k", str(DISRUPT), "--wait=false")
    assert disrupted.status == 0, disrupted.output
    assert len(disrupted.record["disruptions"]) == 1, disrupted.output
    assert find_undeclared(disrupted.output, "deploy", "disrupt") == []

    validators = Kubectl(stage.cluster, stage.stage.namespace)
    for folder in (READ_ONLY, LOAD):
        validators("apply", "-k", str(folder))
    user = write_kubeconfig(stage.cluster, stage.stage.namespace, VALIDATOR, tmp_path / "validator")
    monkeypatch.setenv("KUBECONFIG", str(user.kubeconfig))
    existing = [option for option in second if option.startswith(("--stage-profile", "--stage-context"))]
    loaded = run(tmp_path / "loaded", "suites/slo", "-k", "rate", *existing, "--stage-load-from=cluster", *recorded)
    for folder in (LOAD, READ_ONLY):
        validators("delete", "-k", str(folder))
    assert loaded.status == 0, loaded.output
    assert len(loaded.tests("passed")) == len(stage.stage.targets), loaded.output
    assert find_undeclared(loaded.output, "read-only", "load") == []


@pytest.fixture
def publisher(stage: kept.Kept, tmp_path: Path) -> Iterator[Path]:
    """The kubeconfig of a validator that may read the stage and publish, but see no other Secret."""
    kubectl = Kubectl(stage.cluster, stage.stage.namespace)
    for folder in (READ_ONLY, PUBLISH):
        kubectl("apply", "-k", str(folder))
    kubectl("delete", "rolebinding/vllm-stage-read-secrets")
    yield write_kubeconfig(stage.cluster, stage.stage.namespace, VALIDATOR, tmp_path / "publisher").kubeconfig
    for folder in (PUBLISH, READ_ONLY):
        kubectl("delete", "-k", str(folder), "--ignore-not-found")


def make_publishing_run(stage: kept.Kept, folder: Path) -> Run:
    """A run on the existing stage that publishes, in this process."""
    (folder / "second.toml").write_text(PROFILE)
    options = {"profile": "second.toml", "context": stage.cluster.context, "publish": "always"}
    config = resolve_settings(options.get, {}, lambda _name: None, folder)
    return Run(RunIdentity(new_run_id(), str(folder / new_run_id()), os.getpid()), lambda: config, lambda _line: None)


def test_results_are_published_with_the_roles_for_it_alone(
    stage: kept.Kept, publisher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The numbers are made up, and the stage is taken for a real one: those of a simulated engine are not published."""
    monkeypatch.setenv("KUBECONFIG", str(publisher))
    run = make_publishing_run(stage, tmp_path)
    cluster = lifecycle.cluster_of(run)
    attached = dataclasses.replace(lifecycle.stage_of(run, cluster), simulated=False)
    measurement = measured(rate_step(1.0), run=run.run_id, later_s=time.time() - STARTED_AT)
    write_folder(steps.folder_of(run), [measurement])
    published = publish_run.publication_of(run, cluster, attached, "quantized").own
    assert published is not None
    prefix = published.uri.partition("test-results/")[2]
    with client.connection(stage.cluster, stage.stage.namespace) as kube:
        bucket = find_object_store(stage.stage, kube).client()
    stored = bucket.list_objects_v2(Bucket="test-results", Prefix=prefix).get("Contents", [])
    assert f"{prefix}publication.json" in {item["Key"] for item in stored}

    Kubectl(stage.cluster, stage.stage.namespace)("delete", "rolebinding/vllm-stage-publish")
    missing = f"{ACCOUNT} may not get secrets/minio-credentials in namespace vllm-stage, which a run needs (publish)"

    def observe() -> Observation:
        """A change of a Role is in force a moment later."""
        try:
            lifecycle.make_cluster(run)
        except EnvironmentUnusable as error:
            return Observation(missing in error.message, error.message)
        return Observation(False, "nothing is missing")

    wait_until("the missing right is named", observe, timeout_s=180, journal=SILENT, error=EnvironmentUnusable)


def test_a_namespace_that_is_anothers_is_not_touched(stage: kept.Kept, second: tuple[str, ...], tmp_path: Path) -> None:
    options = [option for option in second if not option.startswith("--stage-namespace")]
    with client.connection(stage.cluster, stage.stage.namespace) as kube:
        before = described(kube, stage.stage.namespace)
        outcome = run(tmp_path / "refused", "suites/deployment", *options)
        assert outcome.status == 4, outcome.output
        assert outcome.tests("passed") == [] or all("declaration" in one["name"] for one in outcome.tests("passed"))
        assert described(kube, stage.stage.namespace) == before


@pytest.fixture
def nightly(stage: kept.Kept, tmp_path: Path) -> Iterator[Kubectl]:
    """The recipe's CronJob with the least rights; removed afterwards, since other tests judge the namespace."""
    kubectl = Kubectl(stage.cluster, stage.stage.namespace)
    (tmp_path / "job").mkdir()
    (tmp_path / "job" / "second.toml").write_text(PROFILE)
    cron = image_free(stage.cluster, tmp_path / "job" / "second.toml", IN_THE_JOB)
    kubectl("apply", "-k", str(READ_ONLY))
    kubectl("apply", "-f", "-", stdin=json.dumps(cron))
    yield kubectl
    kubectl("delete", "--cascade=foreground", "cronjob/vllm-stage-nightly")
    kubectl("delete", "-k", str(READ_ONLY))


def test_the_suite_runs_as_a_job_with_the_least_rights_and_stores_its_report(
    stage: kept.Kept, nightly: Kubectl
) -> None:
    """In the cluster, read-only; and without one verb it ends before anything else, with the verb, Role and command."""
    green = run_job(nightly, "green")
    assert green.succeeded, green.log
    assert int(re.findall(r"(\d+) passed", green.log)[-1]) > 30, green.log
    assert find_undeclared(green.log, "read-only") == []
    with client.connection(stage.cluster, stage.stage.namespace) as kube:
        bucket = find_object_store(stage.stage, kube).client()
        stored = bucket.list_objects_v2(Bucket="test-results", Prefix="reports/").get("Contents", [])
    assert any(item["Key"].endswith("/report.html") for item in stored), stored

    role = json.loads(nightly("get", "role/vllm-stage-read-only", "-o", "json"))
    for rule in role["rules"]:
        rule["resources"] = [resource for resource in rule["resources"] if resource != "pods/log"]
    nightly("replace", "-f", "-", stdin=json.dumps(role))
    refused = run_job(nightly, "refused")
    assert refused.exit_code == ENVIRONMENT_EXIT_CODE, refused.log
    assert f"{ACCOUNT} may not get pods/log in namespace vllm-stage" in refused.log
    assert f"Role vllm-stage-read-only ({READ_ONLY / 'stage.yaml'}) grants it" in refused.log
    assert f"an administrator runs: kubectl -n vllm-stage apply -f {READ_ONLY / 'stage.yaml'} && " in refused.log
    assert not re.search(r"\d+ passed", refused.log), refused.log


def shared_step(stage: kept.Kept, models: dict[str, EndpointClient], seconds: float) -> SharedJob:
    """Four workers' step of 8 requests/s on the quantized model."""
    endpoint = models["quantized"]
    step = LoadStep(
        "quantized", endpoint.target.model, CONSTANT, seconds, 48, 8, request_rate=8, warmup_requests=4,
        request_timeout_s=60,
    )  # fmt: skip
    maker = create_prompt_maker(endpoint, "chat")
    return SharedJob(
        prepare_shared(step, endpoint, maker, workers=4, base_url=endpoint.target.base_url, gpu_metrics=None)
    )


def objects_of_workers(kube: DynamicClient, namespace: str) -> list[str]:
    """What load workers have left behind."""
    found = [one for kind in ("Job", "ConfigMap", "Secret", "Pod") for one in objects.listed(kube, kind, namespace)]
    return [objects.reference(one) for one in found if objects.name_of(one).startswith("load-")]


def test_four_load_workers_of_the_cluster_send_one_schedule(
    stage: kept.Kept, models: dict[str, EndpointClient]
) -> None:
    """No worker has a right in the cluster, all samples come back, and nothing is left of them."""
    job = shared_step(stage, models, 5.0)
    step = job.assignment.step
    with client.connection(stage.cluster, stage.stage.namespace) as kube:
        reader = StageReader(kube, stage.cluster, stage.stage.namespace)
        place = WorkerPlace(reader, OVERLAY, stage.run_id, SILENT)
        # A busy kubelet writes an annotation into its pod late.
        measured = measure_in_cluster(place, job, lead_s=20.0)
        assert objects_of_workers(kube, stage.stage.namespace) == []
    workers = measured.facts[LOAD_WORKERS]
    assert (workers["count"], workers["lost"], sorted(workers["clock_offset_ms"])) == (4, [], ["0", "1", "2", "3"])
    assert [one.scheduled_s for one in measured.samples] == pytest.approx(step.schedule_s(), abs=1e-5)
    assert {one.failure for one in measured.samples} == {None}
    assert len({one.prompt_digest for one in measured.samples}) == len(measured.samples) == 40
    assert measured.server, "one worker reads the engine's metrics"


def test_a_deleted_load_worker_is_named_and_makes_the_step_invalid(
    stage: kept.Kept, models: dict[str, EndpointClient]
) -> None:
    job = shared_step(stage, models, 60.0)
    namespace = stage.stage.namespace
    with client.connection(stage.cluster, namespace) as kube, ThreadPoolExecutor(1) as pool:
        place = WorkerPlace(StageReader(kube, stage.cluster, namespace), OVERLAY, stage.run_id, SILENT)
        measuring = pool.submit(measure_in_cluster, place, job, lead_s=20.0)
        deleted: list[str] = []

        def delete_worker() -> Observation:
            for pod in objects.listed(kube, "Pod", namespace, {"app.kubernetes.io/name": "load-workers"}):
                running = (pod.get("status") or {}).get("phase") == "Running"
                if pod["metadata"]["annotations"].get(INDEX_ANNOTATION) == "2" and running:
                    objects.delete(kube, pod, namespace, "Background")
                    deleted.append(objects.name_of(pod))
            return Observation(bool(deleted) or measuring.done(), "not running yet")

        wait_until("worker 2 is deleted", delete_worker, timeout_s=180, journal=SILENT, interval_s=0.2)
        measured = measuring.result(timeout=180)
        assert objects_of_workers(kube, namespace) == []
    named = {lost["worker"]: lost["name"] for lost in measured.facts[LOAD_WORKERS]["lost"]}
    assert named == {2: f"pod/{deleted[0]}"}, measured.facts[LOAD_WORKERS]["lost"]
    _, verdict = judge(measured, (), gates=1)
    assert verdict.outcome is Verdict.INVALID
    assert f"load worker 2 of 4 (pod/{deleted[0]}) has no result" in verdict.why


def test_a_run_for_vllm_does_not_take_it(stage: kept.Kept, tmp_path: Path) -> None:
    refused = run(tmp_path / "refused", "suites/inference", "-m", "smoke", f"--stage-reuse={stage.run_id}")
    assert refused.status == 4
    assert "kept a stage of engine sim, and this run is for vllm" in refused.output
    assert refused.tests("passed") == []


def test_a_machine_that_reaches_the_api_server_alone_validates_through_port_forwards(
    stage: kept.Kept, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KUBECONFIG", stage.cluster.kubeconfig)
    monkeypatch.setenv("PATH", f"{Path(stage.cluster.kubectl).parent}:{os.environ['PATH']}")
    context = f"--stage-context={stage.cluster.context}"
    plugin = ("-p", "tests.real.only_api_server")
    outcome = run(tmp_path / "far", "suites/inference/test_service.py", *plugin, context, "-n", "2")
    assert outcome.status == 0, outcome.output
    assert len(outcome.tests("passed")) > 5
    ways = {address["name"]: address["way"] for address in outcome.record["addresses"]}
    assert ways.pop("minio") == "port-forward"
    assert ways == {target.inference_service: "port-forward" for target in stage.stage.targets}
    (model, *_) = outcome.record["addresses"]
    assert model["passed_over"][-1].endswith("is not reachable from here")
    assert "reached   " in outcome.output


def stream_until_cut(url: str, model: str, cut: Callable[[], object]) -> None:
    """Begin a long stream and cut its way after the first piece: it must not reach its end."""
    body = {"model": model, "prompt": "count", "max_tokens": 1500, "ignore_eos": True, "stream": True}
    received = ""
    try:
        with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60, trust_env=False) as answer:
            for piece in answer.iter_text():
                if not received:
                    cut()
                received += piece
    except httpx.HTTPError:
        pass
    assert received
    assert "[DONE]" not in received


@contextmanager
def forward_by_relay(stage: kept.Kept, folder: Path) -> Iterator[tuple[Relay, DynamicClient, ServiceForward]]:
    """A port-forward to the first model whose connections to the API server can be cut."""
    cluster, target = stage.cluster, stage.stage.targets[0]
    config = yaml.safe_load(Path(cluster.kubeconfig).read_text())
    server = urlsplit(config["clusters"][0]["cluster"]["server"])
    with relay_to(str(server.hostname), server.port or 443) as relay:
        config["clusters"][0]["cluster"]["server"] = f"https://127.0.0.1:{relay.port}"
        (folder / "kubeconfig").write_text(yaml.safe_dump(config))
        with connection(str(folder / "kubeconfig"), cluster.context) as kube:
            forward = ServiceForward(kube, stage.stage.namespace, f"{target.inference_service}-predictor", "80")
            yield relay, kube, forward
            forward.close()


def test_a_port_forward_outlives_its_connections_and_its_pod_and_blames_neither_on_the_model(
    stage: kept.Kept, tmp_path: Path
) -> None:
    namespace, target = stage.stage.namespace, stage.stage.targets[0]
    with forward_by_relay(stage, tmp_path) as (relay, kube, forward):
        url = f"http://{forward.address}"

        def answers() -> Observation:
            try:
                status = httpx.get(f"{url}/health", timeout=60, trust_env=False).status_code
            except httpx.HTTPError as error:
                return Observation(False, str(error))
            return Observation(status == 200, str(status))

        assert answers().done
        assert forward.find_break(0.0) == ""
        began_s = time.time()
        stream_until_cut(url, target.inference_service, relay.cut)
        assert answers().done
        assert "the connection to the API server was lost" in forward.find_break(began_s)

        (pod,) = objects.listed(kube, "Pod", namespace, {objects.SERVICE_LABEL: target.inference_service})
        began_s = time.time()
        delete = functools.partial(objects.delete, kube, pod, namespace)
        stream_until_cut(url, target.inference_service, delete)
        assert f"pod/{objects.name_of(pod)} " in forward.find_break(began_s)
        wait_until("an answer of the next pod", answers, timeout_s=180, journal=SILENT)


def test_a_load_step_whose_port_forward_broke_is_invalid_and_names_the_way(
    stage: kept.Kept, models: dict[str, EndpointClient], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The API server's connection is lost in the middle of the step: the failures are not the model's."""
    direct = models[stage.stage.targets[0].role]
    with forward_by_relay(stage, tmp_path) as (relay, _kube, forward), ThreadPoolExecutor(1) as pool:
        monkeypatch.setitem(forwards._OPEN, "port-forward://of-this-test", forward)
        target = dataclasses.replace(direct.target, base_url=f"http://{forward.address}")
        step = LoadStep(
            target.role, target.model, CONSTANT, 4.0, 48, 400, request_rate=2, warmup_requests=0, request_timeout_s=60
        )
        with EndpointClient(target) as through:
            job = prepare(step, through, create_prompt_maker(through, "chat"))
            measuring = pool.submit(process.measure, job, SILENT)

            def is_under_way() -> Observation:
                running = direct.metrics().value("vllm:num_requests_running", model_name=target.model)
                return Observation(running > 0 or measuring.done(), f"{running:g} requests run")

            wait_until("a request of the step runs", is_under_way, timeout_s=180, journal=SILENT, interval_s=0.05)
            relay.cut()
            measured = steps._with_way(measuring.result(timeout=180), through)
    assert any(one.failure for one in measured.samples)
    _, verdict = judge(measured, (), gates=1)
    assert verdict.outcome is Verdict.INVALID
    assert "the connection to the API server was lost" in verdict.why

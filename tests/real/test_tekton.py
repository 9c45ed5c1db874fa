"""The Tekton Task against Tekton itself: its CRDs, its admission webhook, its controller, in the local cluster.

The model is the simulated engine, a stand-in; GuideLLM, MinIO and Tekton are the real ones.
"""

from __future__ import annotations

import copy
import json
import os
import re
import subprocess
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
import yaml
from kubernetes.dynamic import DynamicClient

from pytest_vllm_stage.benchmark import job_runs, job_sequence
from pytest_vllm_stage.benchmark.job_runs import Location
from pytest_vllm_stage.benchmark.job_sequence import JobPlace
from pytest_vllm_stage.cluster import local
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.cluster.local import components, images, tekton_files
from pytest_vllm_stage.cluster.local.images import Image
from pytest_vllm_stage.core.errors import ENVIRONMENT_EXIT_CODE, EnvironmentUnusable, StageError
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import PACKAGE, fixtures_dir
from pytest_vllm_stage.core.waiting import Observation, wait_until
from pytest_vllm_stage.engine import environment
from pytest_vllm_stage.settings.profile import load_profile
from pytest_vllm_stage.stage import client
from pytest_vllm_stage.stage.deploy import addresses, render, secrets, waves
from pytest_vllm_stage.stage.deploy.apply import Ownership, apply
from pytest_vllm_stage.stage.facts import StageFacts
from pytest_vllm_stage.stage.object_store import find_object_store
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.observe.wait import wait_for_all

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client
from tests.real.in_cluster_job import ROOT, host_folders, host_volumes, use_host
from tests.real.live_stage import load_image
from tests.real.machine_locks import starting_cluster

pytestmark = pytest.mark.real

SILENT = Journal()
Object = dict[str, Any]
NAMESPACE, RUN, MODEL = "vllm-stage", "tekton-test", "sim"
TASK = "run-guidellm-v2"
OVERLAYS = fixtures_dir() / "overlays"
RECIPE = ROOT / "docs" / "ci" / "tekton-pipeline.yaml"
READ_ONLY = fixtures_dir() / "access" / "read-only"
EXAMPLES = fixtures_dir() / "benchmarking" / "tekton" / "example"
PROGRAMS = ("webhook", "controller", "entrypoint")
#: What makes a run short; rates are given apart.
SHORT = {
    "duration-s": "3",
    "prompt-tokens": "48",
    "output-tokens": "4",
    "warmup-requests": "8",
    "max-error-rate": "0",
}
WEBHOOKS = (
    "mutatingwebhookconfiguration/webhook.pipeline.tekton.dev",
    "validatingwebhookconfiguration/validation.webhook.pipeline.tekton.dev",
)


class Kubectl:
    """Runs kubectl against one cluster."""

    def __init__(self, facts: ClusterFacts) -> None:
        self._command = [facts.kubectl, "--kubeconfig", facts.kubeconfig, "--cache-dir", f"{facts.state_dir}/discovery"]

    def tried(self, *arguments: str, stdin: object = None) -> subprocess.CompletedProcess[str]:
        text = None if stdin is None else json.dumps(stdin)
        return subprocess.run(
            [*self._command, *arguments], input=text, capture_output=True, text=True, check=False, timeout=300
        )

    def __call__(self, *arguments: str, stdin: object = None) -> str:
        done = self.tried(*arguments, stdin=stdin)
        assert done.returncode == 0, f"kubectl {' '.join(arguments)}: {done.stderr}"
        return done.stdout

    def apply(self, *manifests: Object) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self("apply", "--server-side", "-f", "-", stdin=listed)

    def get(self, name: str) -> Object:
        found: Object = json.loads(self("-n", NAMESPACE, "get", name, "-o", "json"))
        return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[ClusterFacts]:
    """A cluster whose pods find GuideLLM in the engine's environment, and the simulated engine in this package."""
    components.ensure(SILENT, ["tekton"])
    engine = environment.ensure(SILENT)
    mounts = {"engine": engine.prefix, "python": engine.base_prefix, "package": PACKAGE}
    with starting_cluster():
        facts = local.start(run_id=RUN, lifeline_pid=os.getpid(), mounts=mounts, journal=SILENT, wait_s=300)
    yield facts
    assert facts.state_dir
    assert local.stop(facts.state_dir, SILENT) == []


@pytest.fixture(scope="module")
def kubectl(cluster: ClusterFacts) -> Kubectl:
    return Kubectl(cluster)


@pytest.fixture(scope="module")
def kube(cluster: ClusterFacts) -> Iterator[DynamicClient]:
    with client.connection(cluster, NAMESPACE) as connected:
        yield connected


@pytest.fixture(scope="module")
def view(cluster: ClusterFacts, kube: DynamicClient, kubectl: Kubectl) -> StageReader:
    """The part of the stage that a benchmark needs: MinIO as the local overlay declares it, and a model's Service."""
    seen, profile = StageReader(kube, cluster, NAMESPACE), load_profile("local", Path("/"))
    rendered = render.render(OVERLAYS / "local", cluster.kubectl)
    names = ("minio", "minio-data", "minio-buckets", "minio-credentials", "s3-client", NAMESPACE)
    chosen = [manifest for manifest in rendered if manifest["metadata"]["name"] in names]
    values = secrets.complete(chosen, secrets.Values(), generate=True)
    for wave in render.waves(chosen):
        apply(kube, wave, NAMESPACE, Ownership.for_run(RUN), values)
        wait_for_all(seen, waves.conditions_of(wave, profile.waits_s), SILENT)
    kubectl.apply(*model())
    kubectl("-n", NAMESPACE, "wait", "--for=condition=Ready", f"pod/{MODEL}", "--timeout=240s")
    return seen


def model() -> list[Object]:
    """The simulated engine, a stand-in, behind the name that KServe gives a predictor's Service."""
    host = {name: f"/{name}" for name in ("usr", "lib", "lib64")}
    mounted = host | {"python": "/mnt/vllm-stage/python", "package": "/mnt/vllm-stage/package"}
    inside = mounted | {"package": "/mnt/vllm-stage/packages/pytest_vllm_stage"}
    labels = {"app": MODEL}
    container = {
        "name": "engine",
        "image": images.BASE,
        "command": ["/mnt/vllm-stage/python/bin/python3", "-m", "pytest_vllm_stage.standins.engine"],
        "args": ["--host=0.0.0.0", "--port=8080", f"--model={MODEL}", "--ttft-ms=10", "--itl-ms=3"],
        "env": [
            {"name": "PYTHONPATH", "value": "/mnt/vllm-stage/packages"},
            {"name": "LD_LIBRARY_PATH", "value": "/mnt/vllm-stage/python/lib"},
        ],
        # A busy machine must not take it out of its Service while a benchmark asks it.
        "readinessProbe": {
            "httpGet": {"path": "/health", "port": 8080},
            "periodSeconds": 1,
            "timeoutSeconds": 20,
            "failureThreshold": 30,
        },
        "volumeMounts": [{"name": name, "mountPath": path, "readOnly": True} for name, path in inside.items()],
    }
    volumes = [{"name": name, "hostPath": {"path": path, "type": "Directory"}} for name, path in mounted.items()]
    metadata = {"name": MODEL, "namespace": NAMESPACE, "labels": labels}
    spec = {"containers": [container], "volumes": volumes, "terminationGracePeriodSeconds": 0}
    service = {"selector": labels, "ports": [{"port": 80, "targetPort": 8080}]}
    return [
        {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {**metadata, "name": f"{MODEL}-predictor"},
            "spec": service,
        },
    ]


@pytest.fixture(scope="module")
def minio(cluster: ClusterFacts, view: StageReader) -> S3Client:
    url = addresses.find_minio_address(view.kube, cluster, NAMESPACE).url
    return find_object_store(StageFacts(NAMESPACE, RUN, True, (), url), view.kube).client()


@pytest.fixture(scope="module")
def tekton(cluster: ClusterFacts, kubectl: Kubectl) -> None:
    """Tekton as its own manifests install it, each program in an image with nothing but itself."""
    built = components.ensure(SILENT, ["tekton"])
    names = {program: f"vllm-stage.local/tekton-{program}:1" for program in PROGRAMS}
    archives = images.ensure(
        [
            Image(names[program], (f"/ko-app/{program}",), {f"ko-app/{program}": built[program]}, rooted=False)
            for program in PROGRAMS
        ]
    )
    for archive in archives:
        load_image(cluster, archive)
    manifests = tekton_files.manifests(built["webhook"].parent, names)
    first = [manifest for manifest in manifests if manifest["kind"] in ("Namespace", "CustomResourceDefinition")]
    kubectl.apply(*first)
    kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=240s")
    kubectl.apply(*(manifest for manifest in manifests if manifest not in first))
    for name in ("webhook", "controller"):
        kubectl("-n", "tekton-pipelines", "rollout", "status", f"deployment/tekton-pipelines-{name}", "--timeout=240s")
    # Until it has written its rules and its certificate's authority there, nothing is asked and everything is accepted.
    wait_until(
        "Tekton's webhooks are registered",
        lambda: Observation(all(registered(kubectl, name) for name in WEBHOOKS), "not yet"),
        timeout_s=480,
        journal=SILENT,
        error=EnvironmentUnusable,
    )


def registered(kubectl: Kubectl, name: str) -> bool:
    (hook,) = json.loads(kubectl("get", name, "-o", "json"))["webhooks"]
    return bool(hook.get("rules") and hook["clientConfig"].get("caBundle"))


@pytest.fixture(scope="module")
def task(cluster: ClusterFacts, kubectl: Kubectl, view: StageReader, tekton: None) -> Object:
    """The Task of the local overlay, with the script that it mounts, in the cluster."""
    manifests = render.render(OVERLAYS / "local" / "tekton", cluster.kubectl)
    kubectl.apply(*manifests)
    return one(manifests)


def one(manifests: list[Object]) -> Object:
    found = render.named(manifests, "Task", TASK)
    assert found is not None
    return found


class Ended(NamedTuple):
    """A TaskRun or PipelineRun that has ended."""

    succeeded: bool
    message: str
    results: dict[str, str]
    run: Object


def carried_out(kubectl: Kubectl, run: Object, timeout_s: float = 480) -> Ended:
    """Create a run and wait for its end."""
    name = kubectl("-n", NAMESPACE, "create", "-f", "-", "-o", "name", stdin=run).strip()

    def look() -> Observation:
        condition: Object = next(iter(kubectl.get(name).get("status", {}).get("conditions", [])), {})
        return Observation(condition.get("status") in ("True", "False"), str(condition.get("message", "not begun")))

    wait_until(f"{name} ended", look, timeout_s=timeout_s, journal=SILENT, error=EnvironmentUnusable)
    found = kubectl.get(name)
    (condition,) = found["status"]["conditions"]
    results = {result["name"]: result["value"] for result in found["status"].get("results", [])}
    return Ended(condition["status"] == "True", condition["message"], results, found)


def example(name: str) -> Object:
    found: Object = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())
    found["metadata"]["namespace"] = NAMESPACE
    return found


def shortened(params: list[Object], rates: str) -> list[Object]:
    """An example's parameters, for the stand-in model and with short steps."""
    names = [param["name"] for param in params]
    assert names == ["model", "rates"]
    given = {"model": MODEL, "rates": rates} | SHORT
    return [{"name": name, "value": value} for name, value in given.items()]


@pytest.mark.parametrize("overlay", ["local", "openshift"])
def test_the_task_is_taken_as_it_is_declared(
    cluster: ClusterFacts, kubectl: Kubectl, task: Object, overlay: str
) -> None:
    declared = one(render.render(OVERLAYS / overlay / "tekton", cluster.kubectl))
    arguments = ("apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-", "-o", "json")
    taken = json.loads(kubectl(*arguments, stdin=declared))
    assert taken["spec"] == declared["spec"]


def test_what_the_job_sets_is_what_the_task_takes_as_a_default(task: Object) -> None:
    params = {param["name"]: param.get("default") for param in task["spec"]["params"]}
    assert params["rates"] == "1 5"
    assert [name for name, default in params.items() if default is None] == ["model"]


def recipe(kind: str) -> Object:
    """The Task, the Pipeline or the PipelineRun of docs/ci."""
    (found,) = (one for one in yaml.safe_load_all(RECIPE.read_text(encoding="utf-8")) if one["kind"] == kind)
    return dict(found)


def find_differences(declared: Any, accepted: Any, path: str = "spec") -> list[str]:
    """Declared fields that are absent or different; what Tekton adds as a default is passed over."""
    if isinstance(declared, dict) and isinstance(accepted, dict):
        pairs = [(value, accepted.get(key), f"{path}.{key}") for key, value in declared.items()]
    elif isinstance(declared, list) and isinstance(accepted, list) and len(declared) == len(accepted):
        pairs = [(*pair, f"{path}[{index}]") for index, pair in enumerate(zip(declared, accepted, strict=True))]
    else:
        return [] if declared == accepted else [f"{path}: expected {declared!r}, got {accepted!r}"]
    return [line for pair in pairs for line in find_differences(*pair)]


@pytest.mark.parametrize("kind", ["Task", "Pipeline", "PipelineRun"])
def test_tekton_accepts_the_recipe_as_it_is_declared(kubectl: Kubectl, task: Object, kind: str) -> None:
    declared = recipe(kind)
    accepted = json.loads(kubectl("create", "--dry-run=server", "-f", "-", "-o", "json", stdin=declared))
    assert find_differences(declared["spec"], accepted["spec"]) == []


def test_tekton_refuses_the_recipe_with_an_unknown_parameter(kubectl: Kubectl, task: Object) -> None:
    declared = recipe("Pipeline")
    declared["spec"]["tasks"][0]["params"][0]["value"] = "$(params.picture)"
    done = kubectl.tried("create", "--dry-run=server", "-f", "-", stdin=declared)
    assert done.returncode != 0, "it was accepted"
    assert "params.picture" in done.stderr


@pytest.mark.usefixtures("benchmarks")
def test_recipe_runs_as_the_service_account_and_names_the_right_that_is_missing(
    cluster: ClusterFacts, kubectl: Kubectl, task: Object
) -> None:
    """Without the Role, so that a run ends before it looks for a stage, which this cluster does not have."""
    kubectl("-n", NAMESPACE, "apply", "-f", str(READ_ONLY / "service-account.yaml"))
    spec = copy.deepcopy(recipe("Task")["spec"])
    spec["params"] = [param for param in spec["params"] if param["name"] != "image"]
    folders = host_folders(cluster)
    use_host(spec["steps"][0], cluster, folders, {"SUITES": str(ROOT / "suites" / "deployment")})
    spec["volumes"] = host_volumes(folders)
    account = recipe("PipelineRun")["spec"]["taskRunTemplate"]["serviceAccountName"]
    run = {
        "apiVersion": "tekton.dev/v1",
        "kind": "TaskRun",
        "metadata": {"generateName": "validate-", "namespace": NAMESPACE},
        "spec": {
            "serviceAccountName": account,
            "podTemplate": {"securityContext": {"runAsUser": 0}},
            "params": [{"name": "profile", "value": "local"}],
            "taskSpec": spec,
            "workspaces": [{"name": "state", "emptyDir": {}}],
        },
    }
    ended = carried_out(kubectl, run)
    name = ended.run["metadata"]["name"]
    log = kubectl("-n", NAMESPACE, "logs", f"pod/{ended.run['status']['podName']}", "-c", "step-pytest")
    (step,) = ended.run["status"]["steps"]
    assert step["terminated"]["exitCode"] == ENVIRONMENT_EXIT_CODE, log
    assert f"system:serviceaccount:{NAMESPACE}:{account} may not get, list " in log
    assert f"Role vllm-stage-read-only ({READ_ONLY / 'stage.yaml'}) grants it" in log
    assert f"reports/{name}" in log


def broken(task: Object, **changes: Any) -> Object:
    """The Task under another name, with fields of its specification or of its step changed."""
    made = copy.deepcopy(task)
    made["metadata"]["name"] = "broken"
    step = {key: value for key, value in changes.items() if key != "steps"}
    made["spec"]["steps"][0] |= step
    made["spec"] |= {key: value for key, value in changes.items() if key == "steps"}
    return made


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"env": [{"name": "SPEED", "value": "$(params.speed)"}]}, r'non-existent variable .*in "\$\(params\.speed\)"'),
        ({"steps": []}, r"missing field\(s\): .*steps"),
        ({"image": ""}, r"missing field\(s\): .*[iI]mage"),
    ],
    ids=["unknown parameter", "no step", "no image"],
)
def test_tekton_refuses_a_broken_task(kubectl: Kubectl, task: Object, changes: Object, expected: str) -> None:
    done = kubectl.tried("create", "-f", "-", stdin=broken(task, **changes))
    assert done.returncode != 0, "it was accepted"
    assert 'admission webhook "validation.webhook.pipeline.tekton.dev" denied the request' in done.stderr
    assert re.search(expected, done.stderr), done.stderr


def test_tektons_types_refuse_an_unknown_field(kubectl: Kubectl, task: Object) -> None:
    done = kubectl.tried("create", "-f", "-", stdin=broken(task, shout="loud"))
    assert done.returncode != 0, "it was accepted"
    assert 'unknown field "spec.steps[0].shout"' in done.stderr


@pytest.mark.parametrize("name", ["taskrun", "pipelinerun"])
def test_the_examples_are_taken(kubectl: Kubectl, task: Object, name: str) -> None:
    kubectl("-n", NAMESPACE, "create", "--dry-run=server", "-f", "-", stdin=example(name))


class Benchmarks(NamedTuple):
    """A TaskRun, a Job with the same settings, and a TaskRun that cannot succeed; they run at the same time.

    After the Job, another one that was held meanwhile.
    """

    task: Future[Ended]
    jobs: Future[list[Location]]
    failing: Future[Ended]


@pytest.fixture(scope="module")
def benchmarks(
    cluster: ClusterFacts, kubectl: Kubectl, view: StageReader, minio: S3Client, task: Object
) -> Iterator[Benchmarks]:
    with ThreadPoolExecutor(3) as pool:
        yield Benchmarks(
            pool.submit(run_task, kubectl),
            pool.submit(run_jobs, cluster, view, minio),
            pool.submit(run_task_for_another_model, kubectl),
        )


def run_task(kubectl: Kubectl) -> Ended:
    run = example("taskrun")
    run["spec"]["params"] = shortened(run["spec"]["params"], "2 5")
    return carried_out(kubectl, run)


def run_jobs(cluster: ClusterFacts, view: StageReader, minio: S3Client) -> list[Location]:
    manifests = job_runs.manifests_of(OVERLAYS / "local", cluster.kubectl, NAMESPACE)
    jobs = []
    for name in ("first", "held"):
        job = copy.deepcopy(job_runs.job_of(manifests, "smollm2-135m"))
        job["metadata"]["name"] = name
        settings = {"MODEL": MODEL, "RATES": "2 5", "DURATION_S": "3", "REQUEST_TIMEOUT_S": "120"}
        for entry in job["spec"]["template"]["spec"]["containers"][0]["env"]:
            entry.update({"value": settings[entry["name"]]} if entry["name"] in settings else {})
        jobs.append(job)
    # The script is there already, for the Task.
    outcomes = job_sequence.carry_out(JobPlace(view, minio, [], RUN, RUN, SILENT), jobs)
    assert [view.get("Job", name) for name in outcomes] == [None, None]
    failed = [str(outcome) for outcome in outcomes.values() if isinstance(outcome, StageError)]
    assert not failed, "\n".join(failed)
    return [outcome for outcome in outcomes.values() if isinstance(outcome, Location)]


def run_task_for_another_model(kubectl: Kubectl) -> Ended:
    """No load is sent to a server that serves another model."""
    run = example("taskrun")
    params = [param for param in shortened(run["spec"]["params"], "2") if param["name"] != "model"]
    url = {"name": "url", "value": f"http://{MODEL}-predictor.{NAMESPACE}.svc.cluster.local"}
    run["spec"]["params"] = [*params, {"name": "model", "value": "another"}, url]
    return carried_out(kubectl, run)


def test_a_task_run_publishes_each_rate(benchmarks: Benchmarks, minio: S3Client) -> None:
    task_run = benchmarks.task.result()
    assert task_run.succeeded, task_run.message
    reports = job_runs.fetch(minio, Location.parse(task_run.results["location"]))
    assert sorted(reports.contents) == ["rate-2.json", "rate-5.json"]
    assert [(step["samples"], step["failed"]) for step in reports.summary["steps"]] == [(6, 0), (15, 0)]


def test_the_job_does_the_same(benchmarks: Benchmarks, minio: S3Client) -> None:
    """The Job with the same settings leaves the same kind of reports, by its summary and by GuideLLM's own settings."""
    ours = job_runs.fetch(minio, benchmarks.jobs.result()[0])
    theirs = job_runs.fetch(minio, Location.parse(benchmarks.task.result().results["location"]))
    assert same_in_both(ours) == same_in_both(theirs)


def test_the_held_job_sends_after_the_other_has_ended(benchmarks: Benchmarks, minio: S3Client) -> None:
    """It was ready before: its pod runs and imports GuideLLM while the other one measures."""
    first, held = (job_runs.fetch(minio, location) for location in benchmarks.jobs.result())
    assert (first.summary["prepared_s"], first.summary["held_s"]) == (0, 0)
    assert held.summary["prepared_s"] > 0, "it was not held"
    assert held.summary["held_s"] > 0
    assert [(step["samples"], step["failed"]) for step in held.summary["steps"]] == [(6, 0), (15, 0)]
    assert max(request_times(first, "request_end")) < min(request_times(held, "request_start"))
    assert "Contents" not in minio.list_objects_v2(Bucket=held.location.bucket, Prefix=job_sequence.HOLDS)


def request_times(reports: job_runs.Reports, event: str) -> list[float]:
    """When each request of all rates began or ended, by the machine's clock."""
    found = []
    for content in reports.contents.values():
        for rows in json.loads(content)["benchmarks"][0]["requests"].values():
            found += [row["info"]["timings"][event] for row in rows or []]
    return found


def same_in_both(reports: job_runs.Reports) -> Object:
    """All of a run but its times, its digests, its token times and its temporary folder."""
    steps = [{name: value for name, value in step.items() if name != "sha256"} for step in reports.summary["steps"]]
    backends = {}
    for name, content in reports.contents.items():
        spec = json.loads(content)["config"]["spec"]
        backends[name] = {key: spec[key] for key in ("backend", "profile", "constraints")}
    return {**reports.summary, "steps": steps, "backends": backends}


def test_a_benchmark_that_cannot_be_is_a_failed_run(benchmarks: Benchmarks) -> None:
    ended = benchmarks.failing.result()
    assert not ended.succeeded
    assert ended.results == {}


@pytest.mark.nightly
def test_the_pipeline_of_the_example_runs(kubectl: Kubectl, task: Object, minio: S3Client) -> None:
    run = example("pipelinerun")
    for one_task in run["spec"]["pipelineSpec"]["tasks"]:
        one_task["params"] = shortened(one_task["params"], "2")
    ended = carried_out(kubectl, run, timeout_s=480)
    assert ended.succeeded, ended.message
    assert sorted(ended.results) == ["full", "quantized"]
    assert len(set(ended.results.values())) == 2
    for location in ended.results.values():
        assert list(job_runs.fetch(minio, Location.parse(location)).contents) == ["rate-2.json"]

"""suites/registry on a real MinIO and the registry's stand-in: silent on sound results, each planted fault named.

For each fault the table names every check that must fail, and no other may. The cluster is a fake; what is stored and
registered is not.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import ENVIRONMENT_EXIT_CODE
from pytest_vllm_stage.publication import properties
from pytest_vllm_stage.publication.bucket import stored, upload
from pytest_vllm_stage.publication.bucket.names import PUBLISHED
from pytest_vllm_stage.publication.publishing import PublicationTarget
from pytest_vllm_stage.publication.registry import write
from pytest_vllm_stage.publication.registry.client import RegistryClient
from pytest_vllm_stage.publication.registry.values import encode, text_of
from tests.defects.forks import forks
from tests.real import servers
from tests.real.publishing import LABELS, LATER, files, properties_of, publish_run, results_of, version_of
from tests.unit.made_results import RUN, SERVICE
from tests.unit.web_server import Reply, web_server

pytestmark = pytest.mark.real

ROOT = Path(__file__).parents[2]
SUITE = ROOT / "suites" / "registry"
REVISION = f"{SERVICE}-predictor-5d4c8"

P99 = "benchmark_rate_5_ttft_p99"

REGISTERED = "test_model_and_version_are_registered"
LABELLED = "test_labels_and_ids_agree"
WEIGHTS = "test_artifact_uri_is_the_one_the_service_loads"
CLAIMED = "test_no_other_version_claims_this_revision"
OWN = "test_results_of_this_run_are_published"
EQUAL_ARTIFACT = "test_published_numbers_equal_the_artifact"
OFFICIAL = "test_official_client_reads_the_published_numbers"
EQUAL_SAMPLES = "test_published_numbers_equal_the_samples"
BELONG = "test_results_belong_here"
FRESH = "test_results_are_of_what_runs_now"
FIT = "test_properties_fit_the_page"
OTHERS = "test_other_versions_are_untouched"
FINISHED = "test_no_publication_was_left_unfinished"
HASHES = "test_artifact_uri_resolves_and_hashes_match"
PRIVATE = "test_results_are_private"
#: Every check of what is published; those of a run's own publication come on top.
ALL = {
    REGISTERED, LABELLED, WEIGHTS, CLAIMED, EQUAL_ARTIFACT, OFFICIAL, EQUAL_SAMPLES, BELONG, FRESH, FIT,
    FINISHED, HASHES, PRIVATE,
}  # fmt: skip
#: What reads the results' document, and what needs nothing but the bucket.
READS_NUMBERS = {EQUAL_ARTIFACT, OFFICIAL}
READS_DOCUMENT = {*READS_NUMBERS, EQUAL_SAMPLES, BELONG}
READS_BUCKET = {*READS_DOCUMENT, HASHES, PRIVATE, FINISHED}

#: Ends a run that hangs: at a load of 16 on two cores, six of eight runs took more than 60 s.
RUN_TIMEOUT_S = 240
#: What every run of the suite imports in addition to pytest.
IMPORTED = (
    "boto3", "botocore.auth", "execnet.multi", "httpcore", "kubernetes", "model_registry", "s3transfer.subscribers",
    "pytest_vllm_stage.publication.publish_run", "pytest_vllm_stage.load.guidellm.reading",
)  # fmt: skip
CAUSE_REPORTED = r"^SKIPPED \S*::(\w+).*? - (?:Skipped: )?(?:stage failed|environment unusable|configuration error):"

FAKE_STAGE = '''
"""A fake cluster whose objects are in world.json; MinIO and the registry are real servers."""
import base64, json, sys
from pathlib import Path
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.publication import publishing
from pytest_vllm_stage.publication.registry import client as registry, write
from pytest_vllm_stage.session import finish, lifecycle
from pytest_vllm_stage.stage import client, objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.facts import StageFacts, TargetFacts
from tests.unit.made_objects import pod, service
from tests.unit.made_results import measured, rate_step, write_folder

WORLD = json.loads((Path(__file__).parent / "world.json").read_text())
NAME = WORLD["service"]
registry.PATIENCE_S, write.SETTLE_S, write.WINDOW_S = 1.0, 0.3, 0.2

def secret(text):
    return base64.b64encode(text.encode()).decode()

OWNER = [{"kind": "ReplicaSet", "name": WORLD["revision"], "uid": "r"}]
POD = pod("p")
POD["metadata"] |= {"ownerReferences": OWNER}
OBJECTS = {
    ("InferenceService", NAME): service(NAME, labels=WORLD["labels"], **WORLD["model"]),
    ("Secret", "minio-credentials"): {
        "data": {"accesskey": secret(WORLD["access"]), "secretkey": secret(WORLD["secret"])}
    },
    ("ReplicaSet", WORLD["revision"]): {"metadata": {"creationTimestamp": WORLD["created_at"]}},
}

def make_stage(run, cluster):
    if WORLD["measures"]:
        rows = [measured(rate_step(rate), run=run.run_id, **WORLD["facts"]) for rate in (1.0, 5.0)]
        write_folder(run.directory / "benchmarks", rows)
    target = TargetFacts("quantized", NAME, "http://127.0.0.1:9")
    return StageFacts("vllm-stage", run.run_id, WORLD["owned"], (target,), WORLD["minio_url"])

class NoCluster:
    class client:
        @staticmethod
        def close():
            pass

lifecycle.make_cluster = lambda run: ClusterFacts("local", "/k", "c", "v1.34.4", "kubectl", True, True, "/state")
lifecycle.make_stage = make_stage
finish.end, finish.diagnose = lambda run, cluster: [], lambda run, cluster: []
client.connect = lambda cluster, namespace: NoCluster()
objects.get = lambda kube, kind, name, namespace=None: OBJECTS.get((kind, name))
objects.listed = lambda kube, kind, namespace=None, labels=None, fields=None: [POD] if kind == "Pod" else []
render.render = lambda overlay, kubectl: []

if WORLD["dies"]:
    import os, signal
    publishing.publish_to_registry = lambda place, results: os.kill(os.getpid(), signal.SIGKILL)

if WORLD["touches"]:
    import httpx
    really = publishing.publish
    def touching(place, results, files):
        done = really(place, results, files)
        url = f"{WORLD['registry_url']}/api/model_registry/v1/model_versions/{WORLD['touches']}"
        httpx.patch(url, json={"customProperties": {}}, trust_env=False).raise_for_status()
        return done
    publishing.publish = touching
'''

PROFILE = """
name = "small"
overlay = "overlay"
namespace = "vllm-stage"
[models.quantized]
inference_service = "{service}"
[load]
rates = [1, 5]
duration_s = 40
prompt_tokens = 64
output_tokens = 16
[slo]
ttft_p50_ms = 500
[registry]
bucket = "{bucket}"
{names}
"""


@dataclass
class World:
    """What a run of the suite finds: the fake cluster, and options.

    Attributes:
        changes: To the fake cluster's facts.
        options: Of the run.
        names: Lines for the profile's ``[registry.models]``.
        exit_code: Of the last run.
    """

    place: PublicationTarget
    minio: servers.MinioServer
    standin: servers.Standin
    pytester: pytest.Pytester
    changes: dict[str, Any] = field(default_factory=dict)
    options: list[str] = field(default_factory=lambda: ["--stage-publish=never"])
    names: str = ""
    runs: int = 0
    exit_code: int = -1

    @property
    def prefix(self) -> str:
        return f"{SERVICE}/w4a16/{RUN}/"

    def facts(self) -> dict[str, Any]:
        known = {
            "service": SERVICE, "labels": LABELS, "model": {}, "revision": REVISION, "facts": {}, "owned": True,
            "created_at": "2026-11-24T09:00:00Z", "access": self.minio.access, "secret": self.minio.secret,
            "minio_url": self.minio.url, "registry_url": self.standin.url, "measures": False, "touches": "",
            "dies": False,
        }  # fmt: skip
        return known | self.changes

    def run(self) -> tuple[set[str], str, dict[str, int]]:
        """The names of the checks that failed, the output, and the numbers of outcomes."""
        folder = self.pytester.path
        (folder / "world.json").write_text(json.dumps(self.facts()))
        (folder / "small.toml").write_text(
            PROFILE.format(service=SERVICE, bucket=self.place.bucket.name, names=self.names)
        )
        self.runs += 1
        printed = folder / f"output-{self.runs}"
        command = [
            str(SUITE), f"--rootdir={folder}", f"--confcutdir={ROOT}", "-p", "fake_stage",
            f"--stage-run-dir={folder}/run-{self.runs}", f"--stage-profile={folder}/small.toml",
            f"--stage-registry-url={self.standin.url}", "-p", "no:cacheprovider", "-rfEs",
            "--no-fold-skipped", "--stage-report=never", *self.options,
        ]  # fmt: skip
        self.exit_code = forks(*IMPORTED).run(command, folder, os.environ, printed, RUN_TIMEOUT_S)
        output = printed.read_text(errors="replace")
        failed = set(re.findall(r"^(?:FAILED|ERROR) \S*::(\w+)", output, re.MULTILINE))
        # A cause that several checks share is reported once; the other checks are skipped with it as the reason.
        failed |= set(re.findall(CAUSE_REPORTED, output, re.MULTILINE))
        killed = self.exit_code < 0
        return failed, output, {} if killed else pytest.RunResult.parse_summary_nouns(output.splitlines())

    def set(self, changes: dict[str, Any]) -> None:
        """Change properties of the version."""
        self.standin.set_properties(version_of(self.place)["id"], changes)

    def alter(self, name: str, change: Callable[[bytes], bytes]) -> None:
        """Change a file in the bucket."""
        content = self.place.bucket.get(self.prefix + name)
        assert content is not None
        changed = change(content)
        assert changed != content
        self.place.bucket.put(self.prefix + name, changed, "application/json")

    def remove(self, *names: str) -> None:
        for name in names:
            self.place.bucket.delete(self.prefix + name)


@pytest.fixture
def world(
    place: PublicationTarget,
    minio: servers.MinioServer,
    standin: servers.Standin,
    pytester: pytest.Pytester,
    monkeypatch: pytest.MonkeyPatch,
) -> World:
    for variable in ("PYTEST_ADDOPTS", "CI", "BUILD_NUMBER"):
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{pytester.path}")
    monkeypatch.setattr(write, "SETTLE_S", 0.3)  # as in the runs: no other publisher is there
    monkeypatch.setattr(write, "WINDOW_S", 0.2)
    pytester.makeini("[pytest]\nfilterwarnings = error\n")
    pytester.makepyfile(fake_stage=FAKE_STAGE)
    (pytester.path / "overlay").mkdir()
    (pytester.path / "overlay" / "kustomization.yaml").write_text("resources: []\n")
    return World(place, minio, standin, pytester)


def forge(world: World) -> None:
    """A number that is altered alike in the document, the manifest and the registry: only the samples know better."""
    world.alter("publication.json", lambda content: changed_number(content, P99, 219.7))
    content = world.place.bucket.get(world.prefix + "publication.json") or b""
    digest = hashlib.sha256(content).hexdigest()

    def fix(manifest: bytes) -> bytes:
        data = json.loads(manifest)
        for entry in data["files"]:
            if entry["name"] == "publication.json":
                entry |= {"sha256": digest, "size_bytes": len(content)}
        return json.dumps(data).encode()

    world.alter("manifest.json", fix)
    world.set({P99: encode(219.7)})


def changed_number(content: bytes, name: str, value: float) -> bytes:
    data = json.loads(content)
    next(entry for entry in data["properties"] if entry["name"] == name)["value"] = value
    return (json.dumps(data, indent=1) + "\n").encode()


def other_models_results(world: World) -> None:
    """What taking the first item of a list does: another model's results on this version."""
    other = "mistral-24b"
    uri = f"s3://{world.place.bucket.name}/{other}/bf16/{RUN}/"
    results = results_of(world.place, model=other, version="bf16", uri=uri, service=SERVICE)
    upload.upload_run(
        world.place.bucket, other, "bf16", RUN, files(world.pytester.path / "o", results), world.place.journal
    )
    world.set({name: encode(value) for name, value in results.values.items()})


def public(world: World) -> None:
    bucket = world.place.bucket
    statement = {
        "Effect": "Allow", "Principal": "*", "Action": ["s3:GetObject"], "Resource": [f"arn:aws:s3:::{bucket.name}/*"],
    }  # fmt: skip
    policy = json.dumps({"Version": "2012-10-17", "Statement": [statement]})
    bucket.client.put_bucket_policy(Bucket=bucket.name, Policy=policy)


def second_version(world: World) -> None:
    model = version_of(world.place)["registeredModelId"]
    other = world.standin.call("POST", "model_versions", {"name": "quant-w4a16", "registeredModelId": model})
    there = properties_of(world.place)
    world.standin.set_properties(other["id"], properties.ours(there))


def partial_upload(world: World) -> None:
    world.place.bucket.put(f"{SERVICE}/w4a16/{LATER}/quantized-rate-5.json", b"{}", "application/json")


def change_world(**changes: Any) -> Callable[[World], None]:
    return lambda world: world.changes.update(changes)


@dataclass
class Fault:
    """A planted fault.

    Attributes:
        plant: Does it.
        caught_by: Every check that must fail.
        says: What the output must say.
    """

    plant: Callable[[World], Any]
    caught_by: set[str]
    says: str


TEXT = {"metadataType": "MetadataStringValue", "string_value": "119.9"}
FAULTS: dict[str, Fault] = {
    "number altered in the registry": Fault(
        lambda w: w.set({P99: encode(1.0)}), READS_NUMBERS, f"{P99} is 1: expected 119.7 (artifact of run {RUN})"
    ),
    "number missing in the registry": Fault(
        lambda w: w.set({P99: None}), {EQUAL_ARTIFACT}, f"{P99} is not published (119.7 in the artifact)"
    ),
    "run id altered in the registry": Fault(
        lambda w: w.set({properties.RUN: encode("other")}),
        READS_NUMBERS,
        "benchmark_test_run is 'other': expected '2026",
    ),
    "property of the wrong type": Fault(
        lambda w: w.set({P99: TEXT}),
        READS_NUMBERS,
        f"{P99} is a MetadataStringValue (119.9): expected MetadataDoubleValue",
    ),
    "whole number of ten digits": Fault(
        lambda w: w.set({"build": {"metadataType": "MetadataIntValue", "int_value": "1234567890"}}),
        {OFFICIAL},
        "build is the whole number 1234567890: notebooks cannot read the version",
    ),
    "number of an earlier run left over": Fault(
        lambda w: w.set({"benchmark_rate_9_ttft_p99": encode(3.0)}),
        {EQUAL_ARTIFACT},
        "benchmark_rate_9_ttft_p99 is published, and the artifact of run",
    ),
    "number altered in MinIO": Fault(
        lambda w: w.alter("publication.json", lambda content: changed_number(content, P99, 219.7)),
        {*READS_NUMBERS, EQUAL_SAMPLES, HASHES},
        "publication.json was altered: expected sha256",
    ),
    "metric altered in a step's file": Fault(
        lambda w: w.alter("quantized-rate-5.json", lambda c: c.replace(b'_p99_ms": 119.7', b'_p99_ms": 129.7')),
        {EQUAL_SAMPLES, HASHES},
        "quantized-rate-5.json: ttft_p99_ms is 129.7, the samples give 119.7",
    ),
    "number altered everywhere but in the samples": Fault(
        forge, {EQUAL_SAMPLES}, f"{P99} is 219.7 in publication.json, the samples give 119.7"
    ),
    "samples deleted": Fault(
        lambda w: w.remove("quantized-rate-5.samples.jsonl.gz"),
        {EQUAL_SAMPLES, HASHES},
        "quantized-rate-5.samples.jsonl.gz is missing: it was deleted",
    ),
    "artifact deleted": Fault(
        lambda w: w.remove(*[key.removeprefix(w.prefix) for key in w.place.bucket.list_keys(w.prefix)]),
        {*READS_DOCUMENT, HASHES},
        "it is empty: the artifact was deleted",
    ),
    "artifact truncated": Fault(
        lambda w: w.alter("quantized-rate-5.samples.jsonl.gz", lambda content: content[:100]),
        {EQUAL_SAMPLES, HASHES},
        "quantized-rate-5.samples.jsonl.gz is truncated: 100 of",
    ),
    "manifest deleted": Fault(
        lambda w: w.remove("manifest.json"), {*READS_DOCUMENT, HASHES}, "partial upload: 7 files and no manifest.json"
    ),
    "results of another model": Fault(
        other_models_results, {BELONG}, f"model: the results are of 'mistral-24b', and are published for '{SERVICE}'"
    ),
    "25 properties of others": Fault(
        lambda w: w.set({f"build-{i}": encode("x") for i in range(25)}), {FIT}, "custom properties, its page shows 24"
    ),
    "public bucket": Fault(public, {PRIVATE}, "is public: its policy allows s3:GetObject to everyone"),
    "expired credentials": Fault(
        change_world(secret="0" * 32), READS_BUCKET, "rejects the credentials of secret minio-credentials"
    ),
    "service labelled otherwise": Fault(
        change_world(labels=LABELS | {"vllm-stage/version": "quant-w4a16"}),
        ALL,
        "version quant-w4a16 of model smollm2-135m-quantized is not registered; existing versions: w4a16",
    ),
    "profile with another version name": Fault(
        lambda w: vars(w).update(names='[registry.models.quantized]\nversion = "quantized-w4a16"'),
        ALL,
        "is labelled vllm-stage/version=w4a16, and the profile says that its version is 'quantized-w4a16'",
    ),
    "label with another version's id": Fault(
        change_world(labels=LABELS | {"modelregistry.kubeflow.org/model-version-id": "77"}),
        {LABELLED},
        "label modelregistry.kubeflow.org/model-version-id is '77', and version w4a16 of the registry has the id",
    ),
    "archived version": Fault(
        lambda w: w.standin.call("PATCH", f"model_versions/{version_of(w.place)['id']}", {"state": "ARCHIVED"}),
        {REGISTERED},
        "version w4a16 is ARCHIVED in the registry",
    ),
    "other weights": Fault(
        change_world(model={"storageUri": "pvc://elsewhere"}),
        {WEIGHTS},
        "expected a live model artifact with the URI pvc://else",
    ),
    "version registered twice": Fault(
        lambda w: w.standin.call(
            "POST",
            "model_versions",
            {"name": "W4A16", "registeredModelId": version_of(w.place)["registeredModelId"]},
        ),
        {REGISTERED},
        "version 'W4A16' (id ",
    ),
    "weights registered twice": Fault(
        lambda w: w.standin.call(
            "POST",
            f"model_versions/{version_of(w.place)['id']}/artifacts",
            {"artifactType": "model-artifact", "name": "old", "uri": "pvc://model-of-last-year", "state": "LIVE"},
        ),
        {WEIGHTS},
        "clients that take another live artifact load old: pvc://model-of-last-year",
    ),
    "revision claimed by a second version": Fault(
        second_version, {CLAIMED}, "version 'quant-w4a16' of the model holds results of inferenceservice/"
    ),
    "stale: another revision runs": Fault(
        change_world(revision="new-7f"),
        {FRESH},
        f"are of revision '{REVISION}', 'new-7f' runs now",
    ),
    "stale: older than the revision": Fault(
        change_world(created_at="2026-11-24T12:00:00Z"), {FRESH}, "was created at 2026-11-24T12:00:00Z"
    ),
    "partial upload of another run": Fault(
        partial_upload, {FINISHED}, f"run {LATER}: a partial upload: it was cut off"
    ),
    "registry unavailable": Fault(lambda w: w.standin.faults("unavailable"), ALL, "the registry at"),
}


def test_sound_results_pass(world: World) -> None:
    publish_run(world.place, world.pytester.path / "first")
    failed, output, outcomes = world.run()
    assert not failed, output
    assert outcomes == {"passed": len(ALL)}, output


def test_list_that_returns_another_model_first_misleads_no_check(world: World) -> None:
    for name in ("another-model", "x"):
        world.standin.call("POST", "registered_models", {"name": name})
    world.standin.faults({"fault": "other-first", "avoid": SERVICE})
    world.options, world.changes = [], {"measures": True}
    failed, output, _ = world.run()
    assert not failed, output
    models = world.standin.call("GET", "registered_models")["items"]
    assert models[0]["name"] != SERVICE
    versions = {
        model["name"]: world.standin.call("GET", f"registered_models/{model['id']}/versions")["items"]
        for model in models
    }
    assert {name: len(found) for name, found in versions.items()} == {"another-model": 0, "x": 0, SERVICE: 1}


def test_a_mesh_that_denies_the_registry_makes_the_environment_unusable(world: World) -> None:
    denied = Reply(403, "RBAC: access denied", {"content-type": "text/plain", "server": "istio-envoy"})
    with web_server(lambda _: denied) as mesh:
        world.standin = servers.Standin(mesh.url)
        failed, output, _ = world.run()
    assert failed == ALL, output
    assert world.exit_code == ENVIRONMENT_EXIT_CODE
    assert f"the service mesh's proxy (istio-envoy) answers 403 in place of the registry at {mesh.url}" in output
    assert "RBAC: access denied\n  next: an AuthorizationPolicy of the mesh must allow this client" in output
    assert "VLLM_STAGE_REGISTRY_TOKEN" not in output


def test_the_official_client_does_not_apply_to_a_registry_without_v1(world: World, tmp_path: Path) -> None:
    with servers.standin(tmp_path, "v1alpha3") as old:
        client = RegistryClient(old.url, world.place.journal, patience_s=1.0)
        publish_run(replace(world.place, registry=client), world.pytester.path / "first")
        client.close()
        world.standin = old
        failed, output, outcomes = world.run()
    assert not failed, output
    assert outcomes == {"passed": len(ALL) - 1, "skipped": 1}, output
    assert f"does not apply: the Model Registry at {old.url} speaks v1alpha3 only" in output


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_reported_by_its_checks_and_no_other(world: World, name: str) -> None:
    fault = FAULTS[name]
    publish_run(world.place, world.pytester.path / "first")
    fault.plant(world)
    failed, output, _ = world.run()
    world.standin.faults()
    missed, unexpected = fault.caught_by - failed, failed - fault.caught_by
    assert failed == fault.caught_by, f"missed: {missed}; unexpected: {unexpected}\n{output}"
    assert fault.says in output, f"no message says {fault.says!r}:\n{output}"
    assert world.minio.secret not in output


def test_run_publishes_its_results_and_passes(world: World) -> None:
    world.options, world.changes = [], {"measures": True}
    failed, output, outcomes = world.run()
    assert not failed, output
    assert outcomes == {"passed": len(ALL | {OWN, OTHERS})}, output
    record = json.loads((world.pytester.path / "run-1" / "run.json").read_text())
    assert record["versions"]["model registry API"] == "v1"
    (published,) = record["publications"]
    uri = f"s3://{world.place.bucket.name}/{SERVICE}/w4a16/{record['run_id']}/"
    assert (published["name"], published["uri"], published["state"]) == ("quantized", uri, "written")
    # The summary breaks lines at 100 columns, and a process id in the run's id has three to seven digits.
    assert f"published quantized: {uri} (written)" in " ".join(output.split())


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        ({"simulated": True}, "quantized-rate-1 is simulated: its numbers are not a model's"),
        ({"failures": 200}, "quantized-rate-5 is vacuous: not one token came from 200 requests"),
    ],
    ids=["simulated", "vacuous"],
)
def test_simulated_and_vacuous_results_are_refused_and_nothing_is_written(
    world: World, facts: dict[str, Any], says: str
) -> None:
    world.options, world.changes = [], {"measures": True, "facts": facts}
    failed, output, _ = world.run()
    assert failed, output
    assert says in output
    assert world.place.bucket.list_keys() == []
    assert world.standin.writes() == []


def test_a_rollout_after_the_measurement_is_refused(world: World) -> None:
    world.options, world.changes = [], {"measures": True, "created_at": "2026-11-24T10:00:01Z"}
    failed, output, _ = world.run()
    assert failed, output
    assert "after the measurement began (2026-11-24T10:00:00Z): the results are of another revision" in output
    assert world.standin.writes() == []


def test_a_publication_that_the_registry_cut_off_is_completed_by_the_next_run(world: World) -> None:
    world.options, world.changes = [], {"measures": True}
    world.standin.faults({"fault": "unavailable", "method": "PATCH"})
    failed, output, _ = world.run()
    assert failed, output
    assert re.search(r"run \S+ is not published: the registry at \S+ answers 503 to PATCH", output)
    world.standin.faults()
    world.changes = {"measures": False}
    failed, output, outcomes = world.run()
    assert not failed, output
    assert outcomes == {"passed": len(ALL), "skipped": 2}, output
    assert stored.find_unfinished(world.place.bucket, SERVICE, "w4a16") == []


def test_a_run_that_is_killed_between_upload_and_publication_is_completed_by_the_next(world: World) -> None:
    world.options, world.changes = [], {"measures": True, "dies": True}
    _, output, outcomes = world.run()
    assert outcomes == {}, output
    (left,) = stored.find_unfinished(world.place.bucket, SERVICE, "w4a16")
    assert left.complete
    assert world.standin.writes() == []
    world.changes = {"measures": False}
    failed, output, outcomes = world.run()
    assert not failed, output
    assert outcomes == {"passed": len(ALL), "skipped": 2}, output
    assert text_of(properties_of(world.place), properties.RUN) == left.run


def test_workers_publish_once(world: World) -> None:
    world.options, world.changes = ["-n", "2"], {"measures": True}
    failed, output, outcomes = world.run()
    assert not failed, output
    assert outcomes == {"passed": len(ALL | {OWN, OTHERS})}, output
    writes = world.standin.writes()
    assert [write.split()[0] for write in writes] == ["POST", "POST", "POST", "PATCH"], writes


def test_a_change_to_another_version_during_the_publication_is_named(world: World) -> None:
    model = world.standin.call("POST", "registered_models", {"name": SERVICE})
    other = world.standin.call("POST", "model_versions", {"name": "w8a8", "registeredModelId": model["id"]})
    world.standin.set_properties(other["id"], {"owner": encode("team")})
    world.options, world.changes = [], {"measures": True, "touches": other["id"]}
    failed, output, _ = world.run()
    assert failed == {OTHERS}, output
    assert "version w8a8: owner changed during this run's publication" in output


def test_missing_publication_skips_on_the_runs_own_stage_and_fails_on_an_existing_one(world: World) -> None:
    world.options = []
    failed, output, outcomes = world.run()
    assert not failed, output
    assert set(outcomes) == {"skipped"}, output
    assert "is not registered; existing versions: none: this run has no load results of this model" in output
    world.options, world.changes = ["--stage-publish=never"], {"owned": False}
    failed, output, _ = world.run()
    assert failed == ALL, output


def test_the_marked_run_is_the_one_that_is_published(world: World) -> None:
    publish_run(world.place, world.pytester.path / "first")
    mark = world.place.bucket.get(world.prefix + PUBLISHED)
    assert mark is not None
    assert json.loads(mark)["run"] == RUN

"""Six planted faults on a real cluster: each ends the deployment early, and is named in the error's first line."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import pytest

from pytest_vllm_stage.checks.stage import weights as stage_weights
from pytest_vllm_stage.cluster import local
from pytest_vllm_stage.cluster.facts import ClusterFacts
from pytest_vllm_stage.core.errors import WaitFailed
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.engine import environment, simulated
from pytest_vllm_stage.settings.profile import parse_profile
from pytest_vllm_stage.stage import client
from pytest_vllm_stage.stage.deploy import render, secrets, teardown, waves
from pytest_vllm_stage.stage.deploy.apply import Ownership, apply
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe.reader import StageReader
from pytest_vllm_stage.stage.observe.wait import wait_for_all
from tests.real.machine_locks import starting_cluster

pytestmark = pytest.mark.real

SILENT = Journal()
MODEL = "smollm2-135m-quantized"
AT_ONCE = 2
#: The other model is left out: what is planted needs one.
BASE = """
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
resources:
  - {base}
patches:
  - patch: |
      $patch: delete
      apiVersion: serving.kserve.io/v1beta1
      kind: InferenceService
      metadata: {{name: smollm2-135m}}
  - patch: |
      {{apiVersion: batch/v1, kind: Job, metadata: {{name: download-smollm2-135m}}, $patch: delete}}
  - patch: |
      {{apiVersion: v1, kind: PersistentVolumeClaim, metadata: {{name: model-smollm2-135m}}, $patch: delete}}
"""


@pytest.fixture(scope="module")
def variants(tmp_path_factory: pytest.TempPathFactory) -> tuple[environment.EngineEnvironment, Path]:
    """The engine, and a folder of made-up weights, which no fault lets it read, that has one altered variant more."""
    engine = environment.ensure(SILENT)
    _, made = simulated.ensure(SILENT)
    folder = tmp_path_factory.mktemp("weights")
    shutil.copytree(made / MODEL, folder / MODEL)
    shutil.copytree(made / MODEL, folder / "altered")
    flip_a_byte(folder / "altered" / "model.safetensors")
    return engine, folder


def flip_a_byte(path: Path) -> None:
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        last = file.read(1)[0]
        file.seek(-1, os.SEEK_END)
        file.write(bytes([last ^ 1]))


@pytest.fixture(scope="module")
def cluster(variants: tuple[environment.EngineEnvironment, Path]) -> Iterator[ClusterFacts]:
    engine, folder = variants
    mounts = {"engine": engine.prefix, "python": engine.base_prefix, "weights": folder}
    with starting_cluster():
        facts = local.start(run_id="faults", lifeline_pid=os.getpid(), mounts=mounts, journal=SILENT, wait_s=900)
    yield facts
    assert facts.state_dir
    assert local.stop(facts.state_dir, SILENT) == []


def overlay_with(folder: Path, patch: str, target: str) -> Path:
    """An overlay of the local one with one JSON patch."""
    base = os.path.relpath((fixtures_dir() / "overlays" / "local").resolve(), folder.resolve())
    planted = f"  - path: fault.yaml\n    target: {target}\n"
    (folder / "fault.yaml").write_text(patch)
    (folder / "kustomization.yaml").write_text(BASE.format(base=base) + planted)
    return folder


def deploy_with_fault(cluster: ClusterFacts, overlay: Path, namespace: str) -> str:
    """Deploy the overlay, which must fail; return the error's first line."""
    data = {
        "name": "fault",
        "description": "",
        "overlay": str(overlay),
        "namespace": namespace,
        "models": {"quantized": {"inference_service": MODEL}},
        "waits": {
            "persistent_volume_claim_s": 120,
            "minio_s": 120,
            "model_download_s": 120,
            "inference_service_s": 240,
        },
    }
    profile = parse_profile(data, overlay / "fault.toml")
    with pytest.raises(WaitFailed) as failed:
        waves.deploy(
            cluster,
            profile,
            namespace=namespace,
            run_id="faults",
            secrets=secrets.load(overlay, None),
            journal=SILENT,
            diagnostics=overlay / "diagnostics",
        )
    assert list((overlay / "diagnostics").iterdir()), "no diagnostics were collected"
    return failed.value.message.splitlines()[0]


class Fault(NamedTuple):
    """A planted fault.

    Attributes:
        target: Kustomize's selector of the object that the patch changes.
        patch: The change.
        headline: A pattern for the first line of the deployment's error.
    """

    target: str
    patch: str
    headline: str


#: Those that start vLLM first: their pods end slowly, while others are deployed.
FAULTS = {
    "wrong model path": Fault(
        "{kind: ServingRuntime, name: vllm}",
        "- {op: replace, path: /spec/containers/0/args/1, value: --model=/mnt/models/nowhere}\n",
        rf"inferenceservice/{MODEL} cannot become Ready.*model path /mnt/models/nowhere does not exist \(vLLM: ",
    ),
    "memory limit too small": Fault(
        f"{{kind: InferenceService, name: {MODEL}}}",
        "- {op: replace, path: /spec/predictor/model/resources, "
        "value: {requests: {cpu: 200m, memory: 200Mi}, limits: {memory: 200Mi}}}\n",
        f"inferenceservice/{MODEL} cannot become Ready"
        r".*container kserve-container was OOM-killed \(memory limit 200Mi\)",
    ),
    "missing secret key": Fault(
        "{kind: Secret, name: minio-credentials}",
        "- {op: remove, path: /stringData/secretkey}\n",
        r"(?=.*(deployment/minio cannot become Available|job/minio-buckets cannot complete))"
        r'.*secret minio-credentials has no key "secretkey"',
    ),
    "claim that cannot bind": Fault(
        f"{{kind: PersistentVolumeClaim, name: model-{MODEL}}}",
        "- {op: replace, path: /spec/resources/requests/storage, value: 500Gi}\n",
        f"PVC model-{MODEL} cannot bind: no PersistentVolume of StorageClass vllm-stage-local offers 500Gi",
    ),
    "altered weights at the source": Fault(
        f"{{kind: Job, name: download-{MODEL}}}",
        f"""
        apiVersion: batch/v1
        kind: Job
        metadata: {{name: download-{MODEL}}}
        spec: {{template: {{spec: {{containers: [{{name: loader, env: [
          {{name: MODEL_SOURCE, value: 'file:///mnt/vllm-stage/weights/altered'}}]}}]}}}}}}
        """,
        f"job/download-{MODEL} cannot complete: weights altered: "
        r"file model\.safetensors has sha256 .*, manifest says ",
    ),
    "unpullable image": Fault(
        "{kind: ServingRuntime, name: vllm}",
        "- {op: replace, path: /spec/containers/0/image, value: 'vllm-stage.local/absent:1'}\n",
        f"inferenceservice/{MODEL} cannot become Ready.*image vllm-stage.local/absent:1 cannot be pulled: ",
    ),
}


class Planted(NamedTuple):
    """A fault's deployment: the error's first line, and what is left after its removal."""

    headline: Future[str]
    left: Future[list[str]]


@pytest.fixture(scope="module")
def planted(
    cluster: ClusterFacts, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Planted]]:
    """Each fault of this run; a few are deployed at a time, each in its namespace, and removed meanwhile."""
    own = [item for item in request.session.items if item.path == request.path and hasattr(item, "callspec")]
    chosen = dict.fromkeys(item.callspec.params["fault"] for item in own)
    deploying, removing = ThreadPoolExecutor(AT_ONCE), ThreadPoolExecutor(len(FAULTS))
    running = {}
    for name in chosen:
        fault, namespace = FAULTS[name], f"fault-{name.replace(' ', '-')}"
        overlay = overlay_with(tmp_path_factory.mktemp("overlay"), fault.patch, fault.target)
        headline = deploying.submit(deploy_with_fault, cluster, overlay, namespace)
        running[name] = Planted(headline, removing.submit(remove_after, headline, cluster, namespace))
    yield running
    deploying.shutdown(cancel_futures=True)
    removing.shutdown()


def remove_after(headline: Future[str], cluster: ClusterFacts, namespace: str) -> list[str]:
    """Remove a stage when its deployment has ended; return what is left of it."""
    with suppress(CancelledError):
        headline.exception()
    return teardown.teardown(cluster, namespace, "faults", {"teardown_s": 120}, SILENT)


def alteration(download: Object) -> Object:
    """A Job that flips the last byte of the weights on the volume, as a download Job's sibling."""
    job = stage_weights.verification_job(download, None)
    job["metadata"]["name"] = "alter"
    spec = job["spec"]["template"]["spec"]
    for volume in spec["volumes"]:
        if "persistentVolumeClaim" in volume:
            volume["persistentVolumeClaim"]["readOnly"] = False
    container = spec["containers"][0]
    for mount in container["volumeMounts"]:
        if mount["mountPath"] == "/mnt/models":
            mount["readOnly"] = False
    flip = "f = open('/mnt/models/model.safetensors', 'r+b'); f.seek(-1, 2); b = f.read(1)[0]; f.seek(-1, 2); "
    container["args"] = ["-c", flip + "f.write(bytes([b ^ 1]))"]
    container["command"] = container["command"][:1]
    return job


@pytest.mark.usefixtures("planted")
def test_weights_altered_on_the_volume(cluster: ClusterFacts, tmp_path: Path) -> None:
    namespace = "fault-volume"
    overlay = overlay_with(tmp_path, "[]\n", "{kind: ServingRuntime, name: vllm}")
    manifests = render.in_namespace(render.render(overlay, cluster.kubectl), namespace)
    values = secrets.complete(manifests, secrets.load(overlay, None), generate=True)
    waits_s = dict.fromkeys(("namespace_s", "persistent_volume_claim_s", "minio_s", "model_download_s"), 120.0)
    download = render.named(manifests, "Job", f"download-{MODEL}")
    assert download is not None
    with client.connection(cluster, namespace) as kube:
        view, ownership = StageReader(kube, cluster, namespace), Ownership.for_run("faults")
        try:
            for wave in render.waves(manifests)[:2]:
                apply(kube, wave, namespace, ownership, values)
                wait_for_all(view, waves.conditions_of(wave, waits_s), SILENT)
            unaltered = stage_weights.verify(view, download, None, "faults", 120, SILENT)
            assert stage_weights.problems(unaltered) == []
            assert unaltered.source == unaltered.manifest
            apply(kube, [alteration(download)], namespace, ownership, {})
            wait_for_all(view, waves.conditions_of([alteration(download)], waits_s), SILENT)
            altered = stage_weights.verify(view, download, None, "faults", 120, SILENT)
        finally:
            teardown.teardown(cluster, namespace, "faults", {"teardown_s": 120}, SILENT)
    (line,) = stage_weights.problems(altered)
    assert line.startswith("weights altered: file model.safetensors has sha256 ")
    assert line.endswith(f"manifest says {unaltered.files['model.safetensors'][1]}")


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_ends_the_deployment_and_is_named(fault: str, planted: dict[str, Planted]) -> None:
    headline = planted[fault].headline.result()
    assert re.search(FAULTS[fault].headline, headline), headline


@pytest.mark.parametrize("fault", FAULTS)
def test_nothing_is_left_of_a_deployment_that_failed(fault: str, planted: dict[str, Planted]) -> None:
    assert planted[fault].left.result() == []

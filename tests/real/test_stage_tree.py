"""The GitOps tree as kustomize renders it: both overlays hold what a stage needs, and the reference's numbers."""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import pytest

from pytest_vllm_stage.cluster.local import components
from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.settings.profile import load_profile
from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.deploy import render, secrets
from pytest_vllm_stage.stage.facts import SIMULATED_LABEL
from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import health
from pytest_vllm_stage.standins.engine import __main__ as sim_program
from pytest_vllm_stage.standins.registry import __main__ as registry_program

pytestmark = pytest.mark.real
OVERLAYS = ("local", "local-sim", "openshift", "kind")


@pytest.fixture(scope="module")
def kubectl() -> str:
    return shutil.which("kubectl") or str(components.ensure(Journal(), ["kubernetes"])["kubectl"])


@pytest.fixture(scope="module")
def rendered(kubectl: str) -> dict[str, list[Object]]:
    return {name: render.render(fixtures_dir() / "overlays" / name, kubectl) for name in OVERLAYS}


def one(manifests: list[Object], kind: str, name: str) -> Object:
    found = render.named(manifests, kind, name)
    assert found is not None, f"{kind}/{name} is not rendered"
    return found


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_images_are_pinned_labels_agree_and_secrets_are_declared(
    rendered: dict[str, list[Object]], overlay: str
) -> None:
    manifests = rendered[overlay]
    assert drift.unpinned(manifests) == []
    assert drift.labels(manifests) == []
    # The sixth is the local stage's own Model Registry, and OpenShift's workbench; kind's stage has one model less.
    assert len(drift.images(manifests)) == (4 if overlay == "kind" else 6)
    declared = {objects.name_of(s): list(s["stringData"]) for s in render.select_kind(manifests, "Secret")}
    references = health.secret_references(manifests)
    assert health.check_secrets(references, declared) == []
    assert {ref.secret for ref in references} == {"minio-credentials", "kserve-s3"} | (
        {"huggingface-token"} if overlay == "openshift" else set()
    )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_waves_are_namespace_then_storage_then_models(rendered: dict[str, list[Object]], overlay: str) -> None:
    first, second, third = render.waves(rendered[overlay])
    assert [item["kind"] for item in first] == ["Namespace"]
    assert {item["kind"] for item in third} == {"InferenceService"}
    assert {"Secret", "Job", "ServingRuntime", "PersistentVolumeClaim"} <= {item["kind"] for item in second}


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_model_has_its_volume_and_download(rendered: dict[str, list[Object]], overlay: str) -> None:
    for service in render.select_kind(rendered[overlay], "InferenceService"):
        kinds = [item["kind"] for item in drift.find_model_objects(rendered[overlay], service)]
        assert kinds == ["PersistentVolumeClaim", "Job"], objects.name_of(service)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_runtime_has_shared_memory_and_serves_under_the_services_name(
    rendered: dict[str, list[Object]], overlay: str
) -> None:
    runtime = one(rendered[overlay], "ServingRuntime", "vllm")
    container = drift.serving_container(runtime["spec"])
    assert {"name": "shm", "mountPath": "/dev/shm"} in container["volumeMounts"]  # noqa: S108
    assert {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": "2Gi"}} in runtime["spec"]["volumes"]
    assert container["ports"][0]["containerPort"] == 8080
    assert container["readinessProbe"]["httpGet"] == {"path": "/health", "port": 8080}
    for service in render.select_kind(rendered[overlay], "InferenceService"):
        assert f"--served-model-name={objects.name_of(service)}" in drift.demand(service, runtime).args


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_probe_has_the_default_timeout(rendered: dict[str, list[Object]], overlay: str) -> None:
    """After the default of 1 s a busy machine takes a healthy server out of its Service."""
    probe = re.compile(r".*\.(?:readiness|liveness|startup)Probe")
    fields = render.flatten(rendered[overlay])
    timeouts = {
        found[0]: fields.get(f"{found[0]}.timeoutSeconds", "1") for field in fields if (found := probe.match(field))
    }
    assert len(timeouts) >= 4
    assert {name: timeout for name, timeout in timeouts.items() if int(timeout) < 5} == {}


def test_no_path_of_this_machine_is_in_the_tree(rendered: dict[str, list[Object]]) -> None:
    allowed = ("/usr", "/lib", "/lib64", "/mnt/vllm-stage/")
    for manifests in rendered.values():
        paths = [value for field, value in render.flatten(manifests).items() if field.endswith("hostPath.path")]
        assert all(path.startswith(allowed) for path in paths)
    assert not any("hostPath" in field for field in render.flatten(rendered["openshift"]))


def test_the_openshift_overlay_carries_the_references_numbers(rendered: dict[str, list[Object]]) -> None:
    manifests = rendered["openshift"]
    runtime = one(manifests, "ServingRuntime", "vllm")
    full, quantized = (one(manifests, "InferenceService", name) for name in ("mistral-24b", "mistral-24b-quantized"))
    assert {
        "--tensor-parallel-size=4",
        "--max-model-len=32768",
        "--max-num-seqs=24",
        "--gpu-memory-utilization=0.85",
    } <= {*drift.demand(full, runtime).args}
    assert {"--max-model-len=8192", "--max-num-seqs=16", "--gpu-memory-utilization=0.70"} <= {
        *drift.demand(quantized, runtime).args
    }
    assert full["spec"]["predictor"]["containerConcurrency"] == 32
    assert drift.demand(full, runtime).resources["limits.nvidia.com/gpu"] == "4"
    assert drift.demand(quantized, runtime).resources["limits.memory"] == "20Gi"
    probes = drift.serving_container(runtime["spec"])
    assert [probes["readinessProbe"][key] for key in ("initialDelaySeconds", "periodSeconds", "failureThreshold")] == [
        180, 10, 30,
    ]  # fmt: skip
    sizes = {c["metadata"]["name"]: c["spec"]["resources"]["requests"]["storage"]
             for c in render.select_kind(manifests, "PersistentVolumeClaim")}  # fmt: skip
    assert (sizes["model-mistral-24b"], sizes["model-mistral-24b-quantized"]) == ("120Gi", "40Gi")


def test_the_simulated_stage_is_the_local_one_with_another_program(rendered: dict[str, list[Object]]) -> None:
    """Names, ports, volumes and downloads are kept; every difference is the engine's, and is labelled."""
    real, simulated = (render.flatten(rendered[name]) for name in ("local", "local-sim"))
    differing = {field for field in real.keys() | simulated.keys() if real.get(field) != simulated.get(field)}
    labels = {field for field in differing if field.endswith(f" metadata.labels.{SIMULATED_LABEL}")}
    assert {simulated.get(field) for field in labels} == {"true"}
    assert {field.split(" ")[0] for field in labels} == {field.split(" ")[0] for field in differing} | {
        f"{kind}-{model}"
        for kind in ("Job/download", "PersistentVolumeClaim/model")
        for model in ("smollm2-135m", "smollm2-135m-quantized")
    }
    container = r"ServingRuntime/vllm spec\.containers\[0\]\.(command|args|env|readinessProbe|livenessProbe)\b.*"
    model = r"InferenceService/\S+ spec\.predictor\.model\.(args|resources)\b.*"
    assert [field for field in differing - labels if not re.fullmatch(f"{container}|{model}", field)] == []
    for service in render.select_kind(rendered["local"], "InferenceService"):
        declared = service["spec"]["predictor"]["model"]["args"]
        own = one(rendered["local-sim"], "InferenceService", objects.name_of(service))["spec"]["predictor"]["model"]
        assert own["args"][: len(declared)] == declared
        runtime = one(rendered["local-sim"], "ServingRuntime", "vllm")
        parsed = sim_program.parser().parse_args(drift.demand(service, runtime).args)
        assert (parsed.served_model_name, parsed.max_model_len, parsed.max_num_seqs) == (
            objects.name_of(service), 2048, 16,
        )  # fmt: skip


@pytest.mark.parametrize("overlay", ["local", "local-sim"])
def test_the_model_registry_of_the_local_stage_is_a_labelled_stand_in(
    rendered: dict[str, list[Object]], overlay: str
) -> None:
    deployment, service = (one(rendered[overlay], kind, "model-registry") for kind in ("Deployment", "Service"))
    assert [item["metadata"]["labels"]["vllm-stage/stand-in"] for item in (deployment, service)] == ["true", "true"]
    pod = deployment["spec"]["template"]
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert [port["port"] for port in service["spec"]["ports"]] == [8080]
    (container,) = pod["spec"]["containers"]
    assert container["command"][1:] == ["-m", "pytest_vllm_stage.standins.registry"]
    parsed = registry_program.parser().parse_args(container["args"])
    assert (parsed.host, parsed.port, parsed.api) == ("0.0.0.0", 8080, "both")  # noqa: S104 - in a pod
    mounted = {mount["mountPath"] for mount in container["volumeMounts"]}
    assert any(parsed.database.startswith(f"{path}/") for path in mounted)


def test_where_the_platform_has_a_model_registry_none_is_deployed(rendered: dict[str, list[Object]]) -> None:
    assert not [item for item in rendered["openshift"] if objects.name_of(item) == "model-registry"]


def test_a_download_runs_where_its_model_will(rendered: dict[str, list[Object]]) -> None:
    for service in render.select_kind(rendered["openshift"], "InferenceService"):
        (job,) = (item for item in drift.find_model_objects(rendered["openshift"], service) if item["kind"] == "Job")
        pod, predictor = job["spec"]["template"]["spec"], service["spec"]["predictor"]
        assert pod["nodeSelector"] == predictor["nodeSelector"]
        assert pod["tolerations"] == predictor["tolerations"]


@pytest.mark.parametrize(("profile", "overlay"), [("local", "local"), ("l4", "openshift")])
def test_profiles_name_the_services_of_their_overlay(
    rendered: dict[str, list[Object]], profile: str, overlay: str
) -> None:
    found = load_profile(profile, Path("/"))
    assert found.overlay.name == overlay
    assert list(found.models) == ["quantized", "full"]
    for model in found.models.values():
        one(rendered[overlay], "InferenceService", model.inference_service)


def test_what_an_overlay_needs_is_asked_for(rendered: dict[str, list[Object]]) -> None:
    with pytest.raises(ConfigError, match=r"MINIO_ACCESS_KEY.*HF_TOKEN|HF_TOKEN.*MINIO_ACCESS_KEY"):
        secrets.complete(rendered["openshift"], secrets.Values(), generate=False)
    assert set(secrets.complete(rendered["local"], secrets.Values(), generate=True)) == {
        "MINIO_ACCESS_KEY",
        "MINIO_SECRET_KEY",
    }


def test_real_images_can_replace_the_machines_programs(kubectl: str, tmp_path: Path) -> None:
    """An overlay next to the local one that leaves out the component runs images from a registry."""
    tree = shutil.copytree(fixtures_dir(), tmp_path / "fixtures")
    file = tree / "overlays" / "local" / "kustomization.yaml"
    text = file.read_text().replace("components:\n  - host-runtime\n", "")
    digest = "sha256:" + "a" * 64
    image = f"    newName: registry.example/vllm\n    digest: {digest}\n"
    text = text.replace('    newName: vllm-stage.local/base\n    newTag: "1"\n', image)
    file.write_text(text)
    manifests = render.render(Path(os.fspath(file.parent)), kubectl)
    flat = render.flatten(manifests)
    assert {value for field, value in flat.items() if field.endswith("hostPath.path")} == {"/mnt/vllm-stage/weights"}
    container = drift.serving_container(one(manifests, "ServingRuntime", "vllm")["spec"])
    assert container["command"] == ["python3", "-m", "vllm.entrypoints.openai.api_server"]
    assert container["image"] == f"registry.example/vllm@{digest}"

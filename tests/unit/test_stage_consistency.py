"""Manifests that contradict themselves are reported, and those of the three overlays are not."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from pytest_vllm_stage.checks.stage.consistency import find_contradictions
from pytest_vllm_stage.checks.stage.engine_arguments import read_arguments
from pytest_vllm_stage.core.paths import fixtures_dir
from pytest_vllm_stage.stage.deploy import render
from tests.unit.recorded_stage import RecordedStage

Object = dict[str, Any]
FULL, QUANTIZED = "mistral-24b", "mistral-24b-quantized"


def read_reference() -> list[Object]:
    """The reference's runtime, models, Secret and object store, as they are in the tree, with volumes and downloads."""
    tree = fixtures_dir()
    files = (
        "vllm/servingruntime.yaml",
        f"overlays/openshift/{FULL}.yaml",
        f"overlays/openshift/{QUANTIZED}.yaml",
        "base-secrets/kserve-s3.yaml",
        "minio/minio.yaml",
        "benchmarking/job/job.yaml",
    )
    found = [item for file in files for item in yaml.safe_load_all((tree / file).read_text(encoding="utf-8")) if item]
    for model in (FULL, QUANTIZED):
        job, claim = (
            yaml.safe_load((tree / "model-loader" / "job" / f"{name}.yaml").read_text(encoding="utf-8"))
            for name in ("job", "pvc")
        )
        claim["metadata"]["name"] = f"model-{model}"
        job["metadata"]["name"] = f"download-{model}"
        spec = job["spec"]["template"]["spec"]
        spec["volumes"][0]["persistentVolumeClaim"]["claimName"] = f"model-{model}"
        spec["containers"][0]["env"].append({"name": "MODEL_SOURCE", "value": f"hf://org/{model}"})
        found += [claim, job]
    return found


REFERENCE = read_reference()


def test_manifests_of_the_overlays_contradict_nothing() -> None:
    assert len(render.select_kind(REFERENCE, "InferenceService")) == 2
    assert find_contradictions(REFERENCE) == []
    assert find_contradictions(RecordedStage.load().declared) == []


def model_of(manifests: list[Object], name: str = FULL) -> Object:
    found = render.named(manifests, "InferenceService", name)
    assert found is not None
    predictor: Object = found["spec"]["predictor"]
    return predictor


def container_of(manifests: list[Object], kind: str = "ServingRuntime", name: str = "vllm") -> Object:
    found = render.named(manifests, kind, name)
    assert found is not None
    spec = found["spec"] if kind == "ServingRuntime" else found["spec"]["template"]["spec"]
    made: Object = spec["containers"][0]
    return made


def with_argument(old: str, new: str, name: str = FULL) -> Callable[[list[Object]], None]:
    def change(manifests: list[Object]) -> None:
        args = model_of(manifests, name)["model"]["args"]
        args[args.index(old)] = new

    return change


def without_argument(old: str) -> Callable[[list[Object]], None]:
    return lambda manifests: model_of(manifests)["model"]["args"].remove(old)


def request_gpus(count: str) -> Callable[[list[Object]], None]:
    def change(manifests: list[Object]) -> None:
        for part in ("requests", "limits"):
            model_of(manifests)["model"]["resources"][part]["nvidia.com/gpu"] = count

    return change


def change_probe(kind: str, **fields: Any) -> Callable[[list[Object]], None]:
    return lambda manifests: container_of(manifests)[f"{kind}Probe"].update(fields)


def replace_argument_of_runtime(old: str, new: str) -> Callable[[list[Object]], None]:
    def change(manifests: list[Object]) -> None:
        args = container_of(manifests)["args"]
        args[args.index(old)] = new

    return change


def download_the_other_model(manifests: list[Object]) -> None:
    container_of(manifests, "Job", f"download-{QUANTIZED}")["env"][-1]["value"] = f"hf://org/{FULL}"


def rename_endpoint(manifests: list[Object]) -> None:
    secret = render.named(manifests, "Secret", "kserve-s3")
    assert secret is not None
    secret["metadata"]["annotations"]["serving.kserve.io/s3-endpoint"] = "minio.vllm-stage.svc:9001"


def change_address_of_job(manifests: list[Object]) -> None:
    (entry,) = [one for one in container_of(manifests, "Job", "benchmark")["env"] if one["name"] == "S3_ENDPOINT"]
    entry["value"] = "http://minio:9090"


def add_service(manifests: list[Object]) -> None:
    model_of(manifests).pop("enableServiceLinks")
    manifests.append({"kind": "Service", "metadata": {"name": "vllm"}, "spec": {"ports": [{"port": 80}]}})


def add_argument(argument: str) -> Callable[[list[Object]], None]:
    return lambda manifests: model_of(manifests)["model"]["args"].append(argument)


def change_shared_memory(**fields: str) -> Callable[[list[Object]], None]:
    def change(manifests: list[Object]) -> None:
        runtime = render.named(manifests, "ServingRuntime", "vllm")
        assert runtime is not None
        runtime["spec"]["volumes"][0]["emptyDir"] = fields

    return change


def annotate(key: str, value: str, kind: str = "InferenceService", name: str = FULL) -> Callable[[list[Object]], None]:
    def change(manifests: list[Object]) -> None:
        found = render.named(manifests, kind, name)
        assert found is not None
        found["metadata"].setdefault("annotations", {})[key] = value

    return change


def scrape(port: str) -> Callable[[list[Object]], None]:
    def change(manifests: list[Object]) -> None:
        runtime = render.named(manifests, "ServingRuntime", "vllm")
        assert runtime is not None
        runtime["spec"]["annotations"]["prometheus.io/port"] = port

    return change


def request_no_gpu(manifests: list[Object]) -> None:
    for part in model_of(manifests)["model"]["resources"].values():
        del part["nvidia.com/gpu"]


def ask_for_models_with_a_key(manifests: list[Object]) -> None:
    change_probe("liveness", httpGet={"path": "/v1/models", "port": "http1"})(manifests)
    add_argument("--api-key=$(KEY)")(manifests)


AUTH = "security.opendatahub.io/enable-auth"
CONTRADICTIONS: dict[str, tuple[Callable[[list[Object]], None], str]] = {
    "GPUs": (request_gpus("2"), f"{FULL}: tensor-parallel-size 4 uses 4 GPUs, the resources request 2"),
    "no tensor parallelism": (
        without_argument("--tensor-parallel-size=4"),
        f"{FULL}: tensor-parallel-size 1 uses 1 GPUs, the resources request 4",
    ),
    "tensor parallelism on one GPU": (
        with_argument("--dtype=auto", "--tensor-parallel-size 2", QUANTIZED),
        f"{QUANTIZED}: tensor-parallel-size 2 uses 2 GPUs, the resources request 1",
    ),
    "served name": (
        replace_argument_of_runtime("--served-model-name={{.Name}}", "--served-model-name=mistral"),
        f"{FULL}: served-model-name is mistral, and clients ask for {FULL}",
    ),
    "model path": (
        replace_argument_of_runtime("--model=/mnt/models", "--model=/models"),
        f"{FULL}: --model names /models, where nothing is mounted",
    ),
    "port": (
        replace_argument_of_runtime("--port=8080", "--port=8000"),
        f"{FULL}: the engine listens on --port 8000, its container declares 8080",
    ),
    "probe": (
        change_probe("readiness", httpGet={"path": "/health", "port": 8000}),
        f"{FULL}: the readiness probe asks port 8000, the engine listens on --port 8080",
    ),
    "liveness": (
        change_probe("liveness", initialDelaySeconds=30, periodSeconds=10),
        f"{FULL}: the liveness probe restarts the container 80 s after its start, before the first readiness",
    ),
    "tools": (
        without_argument("--tool-call-parser=mistral"),
        f"{FULL}: enable-auto-tool-choice needs a tool-call-parser",
    ),
    "concurrency": (
        lambda manifests: model_of(manifests).update(containerConcurrency=8),
        f"{FULL}: containerConcurrency 8 admits fewer requests than max-num-seqs 24",
    ),
    "shared memory": (
        lambda manifests: container_of(manifests).update(volumeMounts=[]),
        f"{FULL}: tensor-parallel-size 4 exchanges data through /dev/shm",
    ),
    "claim": (
        lambda manifests: model_of(manifests)["model"].update(storageUri="pvc://mistral"),
        f"{FULL}: storageUri names PVC mistral, which no manifest declares",
    ),
    "links": (add_service, f"{FULL}: Service/vllm sets VLLM_PORT"),
    "source": (download_the_other_model, f"Job/download-{QUANTIZED} and Job/download-{FULL} download the same model"),
    "default port": (
        lambda manifests: container_of(manifests)["args"].remove("--port=8080"),
        f"{FULL}: no --port is given, so that the engine listens on 8000; its container declares 8080",
    ),
    "loopback": (
        add_argument("--host=127.0.0.1"),
        f"{FULL}: the engine listens on --host 127.0.0.1, where the readiness probe does not reach it",
    ),
    "path of a probe": (
        change_probe("liveness", httpGet={"path": "/healthz", "port": 8080}),
        f"{FULL}: the liveness probe asks /healthz, which vLLM does not serve",
    ),
    "probe that needs the key": (
        ask_for_models_with_a_key,
        f"{FULL}: the liveness probe asks /v1/models, which answers 401 without the API key",
    ),
    "probe by HTTPS": (
        change_probe("liveness", httpGet={"path": "/health", "port": 8080, "scheme": "HTTPS"}),
        f"{FULL}: the liveness probe asks by HTTPS, the engine speaks HTTP",
    ),
    "probe by HTTP": (
        add_argument("--ssl-certfile=/tls/tls.crt"),
        f"{FULL}: the readiness probe asks by HTTP, the engine speaks HTTPS (--ssl-certfile)",
    ),
    "metrics": (scrape("9090"), f"{FULL}: annotation prometheus.io/port names 9090, and the engine's metrics are on"),
    "shared memory on the disk": (
        change_shared_memory(sizeLimit="2Gi"),
        f"{FULL}: the volume at /dev/shm is on the node's disk",
    ),
    "little shared memory": (
        change_shared_memory(medium="Memory", sizeLimit="64Mi"),
        f"{FULL}: the volume at /dev/shm has 64Mi: tensor-parallel-size 4 needs at least 256Mi there",
    ),
    "parser of another family": (
        with_argument("--tool-call-parser=mistral", "--tool-call-parser=llama3_json"),
        f"{FULL}: tool-call-parser llama3_json does not read the calls of a mistral model",
    ),
    "random weights": (add_argument("--load-format=dummy"), f"{FULL}: load-format dummy serves random weights"),
    "GPU node without a GPU": (
        request_no_gpu,
        f"{FULL}: the node selector nvidia.com/gpu.present chooses GPU nodes, and the resources request no GPU",
    ),
    "domain of another project": (
        annotate("serving.kserve.org/s3-verifyssl", "0", "Secret", "kserve-s3"),
        "Secret/kserve-s3: annotation serving.kserve.org/s3-verifyssl is not read: KServe's domain is serving.kse",
    ),
    "key with a typing error": (
        annotate("serving.kserve.io/s3-verify-ssl", "0", "Secret", "kserve-s3"),
        "Secret/kserve-s3: annotation serving.kserve.io/s3-verify-ssl is not read: KServe's is called serving.",
    ),
    "mode with a typing error": (
        annotate("serving.kserve.io/deploymentMode", "Raw"),
        f"{FULL}: annotation serving.kserve.io/deploymentMode is 'Raw', and KServe takes its default mode",
    ),
    "protection that no controller reads": (
        annotate("serving.kserve.io/enable-auth", "true"),
        f"{FULL}: annotation serving.kserve.io/enable-auth is not read, and protects nothing: {AUTH} does",
    ),
    "protection without a valid value": (
        annotate(AUTH, "yes"),
        f"{FULL}: annotation {AUTH} is 'yes', and protects nothing: expected true or false",
    ),
    "S3 endpoint": (rename_endpoint, "Secret/kserve-s3: annotation serving.kserve.io/s3-endpoint names port 9001 of"),
    "S3 endpoint of a Job": (
        change_address_of_job,
        "Job/benchmark: variable S3_ENDPOINT names port 9090 of Service/minio",
    ),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_reported(name: str) -> None:
    change, line = CONTRADICTIONS[name]
    manifests = copy.deepcopy(REFERENCE)
    change(manifests)
    found = find_contradictions(manifests)
    assert any(one.removeprefix("InferenceService/").startswith(line) for one in found), found


@pytest.mark.parametrize("mode", ["Standard", "RawDeployment"])
def test_concurrency_that_nothing_enforces_is_not_reported(mode: str) -> None:
    manifests = copy.deepcopy(REFERENCE)
    model_of(manifests)["containerConcurrency"] = 8
    service = render.named(manifests, "InferenceService", FULL)
    assert service is not None
    service["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] = mode
    assert find_contradictions(manifests) == []


@pytest.mark.parametrize(
    "change",
    [
        annotate("serving.kserve.io/some-new-key", "1"),
        annotate(
            "serving.kubeflow.org/s3-endpoint", "minio:9000", "Secret", "kserve-s3"
        ),  # besides the one that is read
        annotate("example.com/enable-cache", "yes"),
        annotate(AUTH, "True"),
        annotate("serving.kserve.io/deploymentMode", "Knative"),
        change_probe("liveness", tcpSocket={"port": 8080}, httpGet=None),
        change_probe("liveness", httpGet={"path": "/v1/models", "port": 8080}),
        change_shared_memory(medium="Memory"),
        with_argument("--tool-call-parser=mistral", "--tool-call-parser=hermes"),
        with_argument("--tool-call-parser=mistral", "--tool-call-parser=our_plugin"),
        add_argument("--host=0.0.0.0"),
        scrape("8080"),
    ],
)
def test_what_fits_is_not_reported(change: Callable[[list[Object]], None]) -> None:
    manifests = copy.deepcopy(REFERENCE)
    change(manifests)
    assert find_contradictions(manifests) == []


def test_parser_that_models_of_two_families_need_fits_both() -> None:
    manifests = copy.deepcopy(REFERENCE)
    with_argument("--tool-call-parser=mistral", "--tool-call-parser=qwen3_coder")(manifests)
    service = render.named(manifests, "InferenceService", FULL)
    assert service is not None
    (line,) = find_contradictions(manifests)
    assert "tool-call-parser qwen3_coder does not read the calls of a mistral model" in line
    service["metadata"]["labels"]["vllm-stage/model"] = "nemotron-3-nano"
    assert find_contradictions(manifests) == []


def test_declared_random_weights_and_claimed_gpus_are_not_reported() -> None:
    manifests = copy.deepcopy(REFERENCE)
    add_argument("--load-format=dummy")(manifests)
    request_no_gpu(manifests)
    model_of(manifests)["resourceClaims"] = [{"name": "gpu", "resourceClaimTemplateName": "four-l4"}]
    assert find_contradictions(manifests, {FULL}) == []


def test_arguments_are_read_however_they_are_written() -> None:
    args = ("--port=8080", "--max_model_len", "2048", "--dtype auto", "--enable-prefix-caching", "--port", "9")
    assert read_arguments(args) == {
        "port": "9",
        "max-model-len": "2048",
        "dtype": "auto",
        "enable-prefix-caching": "",
    }


def test_short_flags_begin_a_flag_and_negative_numbers_do_not() -> None:
    assert read_arguments(("--port=8080", "-O3", "-tp=4", "-pp", "2", "--seed", "-1")) == {
        "port": "8080",
        "O3": "",
        "tensor-parallel-size": "4",
        "pipeline-parallel-size": "2",
        "seed": "-1",
    }


@pytest.mark.parametrize(
    ("command", "args"),
    [
        (["sh", "-c"], ["exec vllm serve /mnt/models --port 8080 --tensor-parallel-size 4"]),
        (["vllm", "serve"], ["/mnt/models", "--port=8080", "--tensor-parallel-size=$(GPUS)"]),
        (["vllm", "serve"], ["/mnt/models", "--port=8080", "--config=/etc/vllm/config.yaml"]),
        (["vllm", "serve", "/mnt/models"], ["--port", "8080", "-tp", "2", "--data-parallel-size", "2"]),
    ],
    ids=["shell", "variable", "configuration file", "data parallelism"],
)
def test_what_the_arguments_do_not_say_is_not_reported(command: list[str], args: list[str]) -> None:
    manifests = copy.deepcopy(REFERENCE)
    container_of(manifests).update(command=command, args=args)
    model_of(manifests)["model"]["args"] = []
    manifests.remove(next(one for one in manifests if one["metadata"]["name"] == QUANTIZED))
    assert find_contradictions(manifests) == []


def serve_twice(names: dict[str, str], source: str, arguments: dict[str, str] | None = None) -> list[Object]:
    """The full model under each name, with its label of a version, from one source; each has a volume of its own."""
    reference = copy.deepcopy(REFERENCE)
    kept = [
        one for one in reference if QUANTIZED not in one["metadata"]["name"] and FULL not in one["metadata"]["name"]
    ]
    for name, version in names.items():
        for kind, own in (("InferenceService", name), ("PersistentVolumeClaim", f"model-{name}"), ("Job", name)):
            made = copy.deepcopy(
                next(one for one in reference if one["kind"] == kind and one["metadata"]["name"].endswith(FULL))
            )
            made["metadata"]["name"] = own if kind != "Job" else f"download-{name}"
            kept.append(made)
        model, job = kept[-3], kept[-1]
        model["metadata"]["labels"] = {"vllm-stage/model": name, "vllm-stage/version": version} if version else {}
        model["spec"]["predictor"]["model"]["storageUri"] = f"pvc://model-{name}"
        args = model["spec"]["predictor"]["model"]["args"]
        args += [(arguments or {}).get(name, "--enable-prefix-caching"), "--tool-call-parser=hermes"]
        spec = job["spec"]["template"]["spec"]
        spec["volumes"][0]["persistentVolumeClaim"]["claimName"] = f"model-{name}"
        spec["containers"][0]["env"][-1]["value"] = source
    return kept


@pytest.mark.parametrize(
    ("names", "source", "arguments"),
    [
        ({"mistral-24b": "bf16", "mistral-24b-canary": "bf16"}, "hf://org/mistral-24b", {}),
        ({"chat": "", "batch": ""}, "hf://org/mistral-24b", {}),
        ({"mistral-24b": "", "assistant": ""}, "hf://org/mistral-24b", {}),
        ({"mistral-24b-w4a16": "w4a16", "assistant": ""}, "s3://models/mistral-24b-w4a16", {}),
        ({"mistral-24b-quantized-a": "", "mistral-24b-quantized-b": ""}, "hf://org/mistral-24b-awq", {}),
        ({"deepseek-r1": "", "deepseek-r1-llama": ""}, "hf://org/deepseek-r1-distill-llama-8b", {}),
        ({"mistral-24b": "bf16", "mistral-24b-fp8": "fp8"}, "hf://o/m", {"mistral-24b-fp8": "--quantization=fp8"}),
    ],
)
def test_one_model_may_be_served_twice(names: dict[str, str], source: str, arguments: dict[str, str]) -> None:
    assert find_contradictions(serve_twice(names, source, arguments)) == []


@pytest.mark.parametrize(
    ("names", "source"),
    [
        ({"mistral-24b": "bf16", "mistral-24b-quantized": "w4a16"}, "hf://org/mistral-24b"),
        ({"mistral-24b": "bf16", "mistral-24b-quantized": "w4a16"}, "hf://org/mistral-24b-quantized"),
        ({"mistral-24b": "", "mistral-24b-awq": ""}, "hf://org/mistral-24b"),
        ({"mistral-24b": "", "granite-8b": ""}, "hf://org/mistral-24b"),
        ({"chat": "fp16", "chat-small": "int4"}, "s3://models/chat"),
    ],
)
def test_one_source_of_two_different_models_is_a_contradiction(names: dict[str, str], source: str) -> None:
    first, second = names
    expected = [f"Job/download-{second} and Job/download-{first} download the same model: {source}"]
    assert find_contradictions(serve_twice(names, source)) == expected


def test_probe_of_the_model_replaces_that_of_its_runtime() -> None:
    manifests = copy.deepcopy(REFERENCE)
    change_probe("liveness", httpGet={"path": "/healthz", "port": 8080})(manifests)
    assert len(find_contradictions(manifests)) == 2
    for name in (FULL, QUANTIZED):
        model_of(manifests, name)["model"]["livenessProbe"] = {"httpGet": {"path": "/health", "port": 8080}}
    assert find_contradictions(manifests) == []


def test_mounts_of_the_model_count_as_those_of_its_runtime() -> None:
    manifests = copy.deepcopy(REFERENCE)
    for name in (FULL, QUANTIZED):
        model_of(manifests, name)["model"]["volumeMounts"] = [{"name": "shm", "mountPath": "/dev/shm"}]  # noqa: S108
    container_of(manifests).update(volumeMounts=[])
    assert find_contradictions(manifests) == []

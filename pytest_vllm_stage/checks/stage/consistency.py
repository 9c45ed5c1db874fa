"""Manifests that contradict each other, or themselves: pure functions over the declared objects.

Each of them is accepted by the API server, and fails when the model starts, or serves less than it could.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

from pytest_vllm_stage.checks.stage import engine_arguments, unread_keys
from pytest_vllm_stage.checks.stage.drift.expected import merge_serving_container
from pytest_vllm_stage.checks.stage.engine_arguments import FAMILY, PARALLEL, read_arguments
from pytest_vllm_stage.stage import drift, objects
from pytest_vllm_stage.stage.deploy import render
from pytest_vllm_stage.stage.objects import Object

#: Where KServe mounts what a storageUri names.
_MODEL_FOLDER = "/mnt/models"
#: Words for weights of fewer bits and of all bits.
_QUANTIZED = re.compile(
    r"(?<![a-z0-9])(?:quant\w*|w\d+a\d+|int[48]|[mn]?v?x?fp[48]|awq|gptq|gguf|[48]bit)(?![a-z0-9])", re.IGNORECASE
)
_WHOLE = re.compile(r"(?<![a-z0-9])(?:bf16|fp16|bfloat16|float16|full)(?![a-z0-9])", re.IGNORECASE)
#: Methods by which vLLM quantizes whole weights when it starts.
_QUANTIZED_AT_START = ("fp8", "ptpc_fp8", "bitsandbytes", "experts_int8", "torchao")
#: Without Knative nothing enforces containerConcurrency; KServe before 0.16 calls the mode RawDeployment.
_DEPLOYMENT_MODE, _WITHOUT_KNATIVE = "serving.kserve.io/deploymentMode", ("Standard", "RawDeployment")
_S3_ENDPOINT = "serving.kserve.io/s3-endpoint"
_ADDRESS = re.compile(r"(?:https?://)?(?P<service>[a-z][a-z0-9-]*)(?:\.[a-z0-9.-]*)?:(?P<port>\d+)(?:/.*)?")


def find_contradictions(manifests: list[Object], with_random_weights: Container[str] = ()) -> list[str]:
    """One line per contradiction; empty where there is none.

    Args:
        manifests: The declared objects.
        with_random_weights: The InferenceServices that are declared to have no weights, to measure their speed.
    """
    return [
        *_of_models(manifests, with_random_weights),
        *_of_downloads(manifests),
        *_of_addresses(manifests),
        *unread_keys.find_unread_keys(manifests),
    ]


def _of_models(manifests: list[Object], with_random_weights: Container[str]) -> Iterator[str]:
    for service in render.select_kind(manifests, "InferenceService"):
        name, runtime = objects.name_of(service), drift.runtime_name(service)
        made = render.named(manifests, "ServingRuntime", runtime)
        if made is None:
            continue  # another check reports it
        wanted = drift.demand(service, made)
        arguments = read_arguments((*wanted.command, *wanted.args))
        lines = [
            *_of_gpus(service, arguments, wanted.resources),
            *_of_nodes(service, wanted.resources),
            *_of_names(service, arguments),
            *_of_storage(manifests, service, made, arguments),
            *_of_probes(merge_serving_container(service, made), arguments),
            *_of_links(manifests, service),
            *engine_arguments.find_contradictions(service, made, wanted),
        ]
        if arguments.get("load-format") == "dummy" and name not in with_random_weights:
            lines.append("load-format dummy serves random weights, which the profile does not say (dummy_weights)")
        yield from (f"InferenceService/{name}: {line}" for line in lines)


def _of_gpus(service: Object, arguments: Mapping[str, str], resources: Mapping[str, str]) -> Iterator[str]:
    gpus = sum(_number(value) for key, value in resources.items() if re.fullmatch(r"limits\..*/gpu", key))
    given = {name: arguments.get(name, "1") for name in PARALLEL.values()}
    given["data-parallel-size"] = arguments.get("data-parallel-size-local", given["data-parallel-size"])
    # A variable, a configuration file, or workers on other nodes may say what the arguments do not.
    if not all(map(str.isdecimal, given.values())) or "config" in arguments:
        return
    sizes = {name: int(value) for name, value in given.items()}
    processes = math.prod(sizes.values())
    if gpus and processes != gpus and not service["spec"]["predictor"].get("workerSpec"):
        said = ", ".join(f"{name} {size}" for name, size in sizes.items() if size > 1) or "tensor-parallel-size 1"
        yield f"{said} uses {processes} GPUs, the resources request {gpus}"


def _of_nodes(service: Object, resources: Mapping[str, str]) -> Iterator[str]:
    """A pod on a GPU node that requests no GPU gets none, or all of them unaccounted; a claim may request one."""
    predictor = service["spec"]["predictor"]
    chosen = [key for key in predictor.get("nodeSelector") or {} if key.startswith(("nvidia.com/", "amd.com/"))]
    requested = any(re.match(r"limits\.(?:nvidia|amd)\.com/", key) for key in resources)
    if chosen and not requested and not predictor.get("resourceClaims"):
        yield f"the node selector {chosen[0]} chooses GPU nodes, and the resources request no GPU"


def _number(text: str | None) -> int:
    return int(text) if text and text.isdecimal() else 1


def _of_names(service: Object, arguments: Mapping[str, str]) -> Iterator[str]:
    served, name = arguments.get("served-model-name", ""), objects.name_of(service)
    if served and name not in served.split():
        yield f"served-model-name is {served}, and clients ask for {name}"
    if "enable-auto-tool-choice" in arguments and not arguments.get("tool-call-parser"):
        yield "enable-auto-tool-choice needs a tool-call-parser, and none is given"
    mode = (service["metadata"].get("annotations") or {}).get(_DEPLOYMENT_MODE, "")
    admitted = 0 if mode in _WITHOUT_KNATIVE else service["spec"]["predictor"].get("containerConcurrency") or 0
    batch = _number(arguments.get("max-num-seqs"))
    if 0 < admitted < batch:
        yield f"containerConcurrency {admitted} admits fewer requests than max-num-seqs {batch} serves at once"


def _of_storage(
    manifests: list[Object], service: Object, runtime: Object, arguments: Mapping[str, str]
) -> Iterator[str]:
    claim = drift.claim_name(service)
    if claim and render.named(manifests, "PersistentVolumeClaim", claim) is None:
        yield f"storageUri names PVC {claim}, which no manifest declares"
    container = merge_serving_container(service, runtime)
    mounts = [str(mount.get("mountPath", "")).rstrip("/") for mount in container.get("volumeMounts") or []]
    path = arguments.get("model", "").rstrip("/")
    folders = (_MODEL_FOLDER, *mounts)
    if path.startswith("/") and not any(path == folder or path.startswith(f"{folder}/") for folder in folders):
        yield f"--model names {path}, where nothing is mounted: KServe mounts the model at {_MODEL_FOLDER}"
    size = _number(arguments.get("tensor-parallel-size"))
    if size > 1 and "/dev/shm" not in mounts:  # noqa: S108 - a mount, not a temporary file
        yield f"tensor-parallel-size {size} exchanges data through /dev/shm, and ServingRuntime mounts no volume there"


def _of_probes(container: Object, arguments: Mapping[str, str]) -> Iterator[str]:
    port = arguments.get("port", "")
    declared = {str(one.get("name")): str(one.get("containerPort")) for one in container.get("ports") or []}
    if port and declared and port not in declared.values():
        yield f"the engine listens on --port {port}, its container declares {', '.join(declared.values())}"
    for kind in ("startup", "readiness", "liveness"):
        asked = str(((container.get(f"{kind}Probe") or {}).get("httpGet") or {}).get("port", ""))
        asked = declared.get(asked, asked)
        if port and asked and asked != port:
            yield f"the {kind} probe asks port {asked}, the engine listens on --port {port}"
    liveness, readiness = container.get("livenessProbe") or {}, container.get("readinessProbe") or {}
    begins_s = readiness.get("initialDelaySeconds", 0)
    ends_s = liveness.get("initialDelaySeconds", 0) + liveness.get("periodSeconds", 10) * liveness.get(
        "failureThreshold", 3
    )
    if liveness and not container.get("startupProbe") and ends_s <= begins_s:
        yield (
            f"the liveness probe restarts the container {ends_s} s after its start, before the first readiness probe "
            f"({begins_s} s)"
        )


def _of_links(manifests: list[Object], service: Object) -> Iterator[str]:
    linked = service["spec"]["predictor"].get("enableServiceLinks", True)
    if linked and render.named(manifests, "Service", "vllm"):
        yield "Service/vllm sets VLLM_PORT in its pods, which the engine reads: set enableServiceLinks: false"


def _of_downloads(manifests: list[Object]) -> Iterator[str]:
    """Two Jobs that fill the volumes of different models from one source: one of the models is another one's.

    One model may be served twice on purpose, from a volume each.
    """
    seen: dict[str, Object] = {}
    for job in render.select_kind(manifests, "Job"):
        template = job["spec"]["template"]
        source = _variables(template["spec"]["containers"][0]).get("MODEL_SOURCE", "")
        other = seen.setdefault(source, job) if source else job
        if drift.claims_of(other["spec"]["template"]) == drift.claims_of(template):
            continue
        if _are_different_models(_names_of(manifests, job), _names_of(manifests, other), source):
            yield f"Job/{objects.name_of(job)} and Job/{objects.name_of(other)} download the same model: {source}"


def _names_of(manifests: list[Object], job: Object) -> list[str]:
    """What a Job and the models on its volumes are called; empty where vLLM quantizes them when it starts."""
    claims = drift.claims_of(job["spec"]["template"])
    served = [one for one in render.select_kind(manifests, "InferenceService") if drift.claim_name(one) in claims]
    for service in served:
        runtime = render.named(manifests, "ServingRuntime", drift.runtime_name(service))
        wanted = drift.demand(service, runtime) if runtime else None
        arguments = read_arguments((*wanted.command, *wanted.args)) if wanted else {}
        if arguments.get("quantization") in _QUANTIZED_AT_START:
            return []
    labels = [str(value) for one in served for value in (one["metadata"].get("labels") or {}).values()]
    return [name.lower() for name in (objects.name_of(job), *map(objects.name_of, served), *labels)]


def _are_different_models(names: list[str], others: list[str], source: str) -> bool:
    """Whether two models that have one source were not meant to: of two families, or of two precisions."""
    if not names or not others:
        return False
    families = [set(FAMILY.findall(" ".join(one))) for one in (names, others)]
    if all(families) and not families[0] & families[1]:
        return True
    are_quantized = [_is_quantized(one, source) for one in (names, others)]
    if None not in are_quantized and are_quantized[0] != are_quantized[1]:
        return True
    # The names differ by the precision alone.
    differ = bool(_QUANTIZED.search(names[0])) != bool(_QUANTIZED.search(others[0]))
    return differ and len({_QUANTIZED.sub("", name).strip("-._") for name in (names[0], others[0])}) == 1


def _is_quantized(names: list[str], source: str) -> bool | None:
    """Whether names say that weights are quantized, or their source does; None where neither says it."""
    if any(map(_QUANTIZED.search, names)):
        return True
    if any(map(_WHOLE.search, names)):
        return False
    return True if _QUANTIZED.search(source.lower()) else None


def _of_addresses(manifests: list[Object]) -> Iterator[str]:
    """Addresses of declared Services with a port that the Service does not have."""
    services = {objects.name_of(one): one for one in render.select_kind(manifests, "Service")}
    for manifest in manifests:
        for where, address in _addresses_in(manifest):
            match = _ADDRESS.fullmatch(address)
            service = services.get(match["service"]) if match else None
            ports = [str(port.get("port")) for port in (service or {}).get("spec", {}).get("ports") or []]
            if match and ports and match["port"] not in ports:
                name = objects.name_of(manifest)
                yield (
                    f"{manifest['kind']}/{name}: {where} names port {match['port']} of Service/{match['service']}, "
                    f"which has {', '.join(ports)}"
                )


def _addresses_in(manifest: Object) -> Iterator[tuple[str, str]]:
    annotations = manifest["metadata"].get("annotations") or {}
    if _S3_ENDPOINT in annotations:
        yield f"annotation {_S3_ENDPOINT}", str(annotations[_S3_ENDPOINT])
    template = (manifest.get("spec") or {}).get("template") or {}
    for container in (template.get("spec") or {}).get("containers") or []:
        yield from ((f"variable {name}", value) for name, value in _variables(container).items())


def _variables(container: Mapping[str, Any]) -> dict[str, str]:
    return {str(entry["name"]): str(entry["value"]) for entry in container.get("env") or [] if "value" in entry}

"""What a line in a log means: the runbook's symptoms, most specific first. Pure functions over text."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from pytest_vllm_stage.stage.observe import messages

_PATH = r"['\"](?P<path>/[^'\"]+)['\"]"


class Symptom(NamedTuple):
    """One line of the runbook; docs/troubleshooting.md is made from it.

    Attributes:
        pattern: What a log line matches.
        cause: The cause in the runbook's terms; ``{line}`` is the matched line itself, cut.
        action: What to do about it.
    """

    pattern: re.Pattern[str]
    cause: str
    action: str


_MODEL_PATH = "mount the volume at the path that the runtime's --model argument names; check storageUri"
_DOWNLOAD = "run the download Job again and compare the volume with its manifest (suites/deployment does)"
_NEWER_VLLM = "use an image with a vLLM release that lists the model as supported"
_OTHER_GPU = "choose a node with a newer GPU, or another quantisation or data type of the model"
_SERVICE_LINKS = "rename the Service, or set enableServiceLinks: false"
_ROWS = (
    # Our own loader and bucket Job name the cause themselves.
    (r"^error: (?P<cause>.+)$", "{cause}", "the message of the download or bucket Job names the next step"),
    (rf"HFValidationError.*{_PATH}", "model path {path} does not exist (vLLM: {line})", _MODEL_PATH),
    (rf"Repo id must .*{_PATH}", "model path {path} does not exist (vLLM: {line})", _MODEL_PATH),
    (
        rf"[Ii]nvalid repository ID or local directory specified: {_PATH}",
        "model path {path} does not exist (vLLM: {line})",
        _MODEL_PATH,
    ),
    (
        rf"(?:Can't load|Unable to load|couldn't find).*{_PATH}",
        "model path {path} does not hold a model (vLLM: {line})",
        _DOWNLOAD,
    ),
    (
        rf"FileNotFoundError.*No such file or directory: {_PATH}",
        "file {path} does not exist (vLLM: {line})",
        "check the volume mounts of the runtime and the download Job's log",
    ),
    (
        r"Cannot find any model weights with [`'](?P<path>[^`']+)",
        "model path {path} holds no weights (vLLM: {line})",
        _DOWNLOAD,
    ),
    (
        r"supplied chat template \((?P<path>[^)]+)\) looks like a file path",
        "chat template {path} cannot be opened (vLLM: {line})",
        "mount the ConfigMap that holds it at the path that --chat-template names",
    ),
    (
        r"contains custom code which must be executed",
        "the model needs --trust-remote-code (vLLM: {line})",
        "review the model's Python files, then add --trust-remote-code to the arguments of the ServingRuntime",
    ),
    (
        r"Model architectures \[(?P<names>[^\]]*)\] (?:are not supported|failed to be inspected)",
        "the image's vLLM does not support model architecture {names}",
        _NEWER_VLLM,
    ),
    (
        r"has model type [`'](?P<names>[^`']+)[`'] but Transformers does not recognize",
        "the image's Transformers library does not support model type {names}",
        _NEWER_VLLM,
    ),
    (
        r"Error while deserializing header|SafetensorError",
        "weights unreadable (vLLM: {line})",
        "a file is truncated or altered: delete the volume's files and run the download Job again",
    ),
    (
        r"not initialized from checkpoint|size mismatch|mat1 and mat2 shapes",
        "weights do not fit the model (vLLM: {line})",
        "config.json and the weights are of different models or quantisations: download both again",
    ),
    (
        r"(?P<name>VLLM_PORT|\b[A-Z_]+_PORT)\b.*?(?P<value>tcp://[^\s'\"]+)",
        "{name} is {value}: Kubernetes sets it for a Service of that name; " + _SERVICE_LINKS,
        _SERVICE_LINKS,
    ),
    (
        r"invalid literal for int\(\) with base 10: '(?P<value>tcp://[^']+)'",
        "a port variable is {value}: Kubernetes sets it for a Service named as the program; " + _SERVICE_LINKS,
        _SERVICE_LINKS,
    ),
    (
        r"(?i:invalid|pars(?:e|ing)|convert)\b.*?(?P<value>tcp://[\d.]+:\d+)",
        "a port variable is {value}: Kubernetes sets it for a Service named as the program; " + _SERVICE_LINKS,
        _SERVICE_LINKS,
    ),
    (
        r"unrecognized arguments?: (?P<rest>.+)",
        "unknown serving argument {rest} (vLLM: {line})",
        "remove or rename the argument in the ServingRuntime or InferenceService: its spelling depends on the version",
    ),
    (
        r"error: argument (?P<rest>.+)",
        "bad serving argument {rest}",
        "correct the argument's value in the ServingRuntime or InferenceService",
    ),
    (
        r"TypeError: Error: (?P<rest>--\S+ requires .+)",
        "bad serving argument {rest}",
        "correct the arguments in the ServingRuntime or InferenceService",
    ),
    (
        r"invalid (?P<rest>(?:tool call|reasoning) parser: [^'\"]+)",
        "bad serving argument: {rest}",
        "correct --tool-call-parser or --reasoning-parser in the ServingRuntime or InferenceService",
    ),
    (
        r"World size \((?P<size>\d+)\) is larger than the number of available GPUs \((?P<gpus>\d+)\)",
        "tensor-parallel-size {size} needs {size} GPUs, the pod has {gpus}",
        "request as many nvidia.com/gpu as --tensor-parallel-size, or lower it",
    ),
    (
        r"attention heads \((?P<heads>\d+)\) must be divisible by tensor parallel size \((?P<size>\d+)\)",
        "tensor-parallel-size {size} does not divide the model's {heads} attention heads",
        "set --tensor-parallel-size to a divisor of the model's attention heads",
    ),
    (
        r"max_model_len.*(?:greater|larger) than",
        "max-model-len does not fit the model (vLLM: {line})",
        "lower --max-model-len to the model's own context length",
    ),
    (
        r"CUDA out of memory|OutOfMemoryError",
        "GPU memory is too small (vLLM: {line})",
        "lower --gpu-memory-utilization or --max-num-seqs, or raise --tensor-parallel-size; nvidia-smi on the node",
    ),
    (
        r"max seq len \((?P<length>\d+)\).*?(?P<need>[\d.]+ GiB) KV cache is needed.*?available KV cache memory "
        r"\((?P<free>[\d.]+ GiB)\).*?maximum model length is (?P<most>\d+)",
        "no memory for the KV cache: one request of {length} tokens needs {need}, {free} are free; {most} tokens fit",
        "lower --max-model-len to what fits, or raise --gpu-memory-utilization",
    ),
    (
        r"quantization method (?P<method>\S+) is not supported for the current GPU\. Minimum capability: (?P<least>\d+)"
        r"\. Current capability: (?P<has>\d+)",
        "quantisation {method} needs a GPU of compute capability {least}, this one has {has}",
        _OTHER_GPU,
    ),
    (
        r"Bfloat16 is only supported on GPUs with compute capability.*?Your (?P<gpu>.+?) GPU has compute capability "
        r"(?P<has>\d+\.\d+)",
        "bfloat16 is not supported by {gpu} (compute capability {has})",
        _OTHER_GPU,
    ),
    (
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient|unsupported display driver",
        "the node's GPU driver does not fit the image's CUDA (vLLM: {line})",
        "update the node's driver, or use an image that is built for its CUDA version; nvidia-smi prints both",
    ),
    (
        r"no kernel image is available for execution",
        "the image is not built for this GPU (vLLM: {line})",
        "use an image that is built for the GPU's compute capability, or another node",
    ),
    (
        r"No available memory for the cache blocks|larger than the maximum number of tokens|KV cache is needed",
        "no memory for the KV cache (vLLM: {line})",
        "raise --gpu-memory-utilization or lower --max-model-len",
    ),
    (
        r"Failed to infer device type|No CUDA GPUs are available|Found no NVIDIA driver|libcuda\.so\.1: cannot open",
        "no GPU in the pod (vLLM: {line})",
        "request nvidia.com/gpu in the resources; kubectl describe node shows what is allocatable",
    ),
    (
        r"[Aa]ddress already in use",
        "port is taken (vLLM: {line})",
        "give each container of the pod a port of its own",
    ),
    (
        r"Cannot access gated repo for url (?P<url>\S+?)\.?$",
        "token refused: no access to gated model file {url}",
        "renew HF_TOKEN in the Secret huggingface-token, and accept the model's terms for that account",
    ),
    (
        r"(?:401|403) (?:Client Error|Unauthorized|Forbidden)|GatedRepoError|Invalid user token",
        "token refused ({line})",
        "renew HF_TOKEN in the Secret huggingface-token, and accept the model's terms for that account",
    ),
    (
        r"\bdev/shm\b.*No space left|unable to write to file </torch_",
        "shared memory is full ({line})",
        "mount an emptyDir with medium: Memory at /dev/shm of the serving container",
    ),
    (r"No space left on device", "volume is full ({line})", "enlarge the PVC, or remove what is not the model's"),
    (r"ModuleNotFoundError: ", "the image lacks a module ({line})", "use the image that the overlay pins"),
    (r"ImportError: ", "a module cannot be loaded ({line})", "use the image that the overlay pins"),
    (
        r"Invalid credentials|MINIO_ROOT_(?:USER|PASSWORD).*(?:length|should)",
        "MinIO refuses its credentials ({line})",
        "accesskey has 3 or more characters, secretkey 8 or more: correct the Secret minio-credentials",
    ),
)
#: Most specific first.
SYMPTOMS = tuple(Symptom(re.compile(pattern), cause, action) for pattern, cause, action in _ROWS)
LONGEST_QUOTE = 240
#: Lines that state how a process ended but not why.
_NOISE = re.compile(
    r"^\s*(?:File \"|\^|~|raise |return |self\.|await |with |During handling|The above exception|\.\.\.)"
)


def cause_of(lines: Iterable[str]) -> str | None:
    """The cause that a log shows, or None where no line is known; a symptom listed first wins over a later one."""
    read = [line.strip() for line in lines]
    for symptom in SYMPTOMS:
        for line in read:
            match = symptom.pattern.search(line)
            if match:
                groups = {name: messages.humanize(value or "") for name, value in match.groupdict().items()}
                return symptom.cause.format(line=cut(messages.without_log_prefix(line)), **groups)
    return None


def cut(text: str, longest: int = LONGEST_QUOTE) -> str:
    """The text on one line, truncated to ``longest`` characters."""
    flat = " ".join(messages.humanize(text).split())
    return flat if len(flat) <= longest else flat[: longest - 1] + "…"


def informative_lines(lines: Iterable[str], most: int) -> list[str]:
    """The last informative lines of a log: no code excerpts of tracebacks, no blank lines."""
    said = [line.rstrip() for line in lines if line.strip() and not _NOISE.match(messages.without_log_prefix(line))]
    return [cut(line, 300) for line in said[-most:]]

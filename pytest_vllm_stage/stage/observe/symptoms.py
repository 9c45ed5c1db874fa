"""The runbook's symptoms: what a line in a log means, and what to do about it."""

from __future__ import annotations

import re
from typing import NamedTuple

from pytest_vllm_stage.stage.observe import symptoms_downloads, symptoms_gpus

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
_SERVICE_LINKS = "rename the Service, or set enableServiceLinks: false"
_ROWS = (
    # Our own loader and bucket Job name the cause themselves.
    (
        r"^error: (?P<cause>.+)$",
        "{cause}",
        "correct what the download or bucket Job itself names, delete the Job, and deploy again",
    ),
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
        r"(?P<path>\S+) does not appear to have a file named (?P<file>\S+?)\.?(?:\s|$)",
        "model path {path} has no file {file} (vLLM: {line})",
        _DOWNLOAD,
    ),
    (
        r"config file at '(?P<path>[^']+)' is not a valid JSON file",
        "file {path} is not JSON (vLLM: {line})",
        "a pointer of Git LFS or a page of a proxy was stored in its place: run the download Job again",
    ),
    (
        rf"PermissionError: \[Errno 13\] Permission denied: {_PATH}",
        "path {path} is closed to the container's user ({line})",
        "set fsGroup in the pod's securityContext, or the mode of the files; HOME and caches belong under /tmp",
    ),
    (
        rf"\[Errno 30\] Read-only file system: {_PATH}",
        "path {path} is on a read-only file system ({line})",
        "mount an emptyDir there, or point HOME and the caches to a path that is writable",
    ),
    (
        r"Cannot find any model weights with [`'](?P<path>[^`']+)",
        "model path {path} holds no weights (vLLM: {line})",
        _DOWNLOAD,
    ),
    (
        r"(?:Unrecognized model in|No supported config format found in) (?P<path>\S+?)\.(?:\s|$)",
        "model path {path} has no config.json that names a known model ({line})",
        _DOWNLOAD,
    ),
    (
        r"No tokenizer file found in directory: (?P<path>\S+)",
        "model path {path} has no tokenizer of Mistral's own format (vLLM: {line})",
        "download the tokenizer too, or leave out --tokenizer-mode=mistral",
    ),
    (
        r"\[Errno 116\] Stale file handle",
        "the volume's server no longer knows the file ({line})",
        "the export was moved or restored while it was mounted: delete the pod, so that its volume is mounted again",
    ),
    (
        r"\[Errno 5\] Input/output error",
        "the volume cannot be read ({line})",
        "its disk or its network fails: read the node's kernel log, then copy the model to another volume",
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
        r"Error while deserializing header|SafetensorError|UnpicklingError",
        "weights unreadable (vLLM: {line})",
        "a file is truncated or altered: delete the volume's files and run the download Job again",
    ),
    (
        r"not initialized from checkpoint|size mismatch|mat1 and mat2 shapes|Attempted to load weight|"
        r"KeyError: '\S*layers\.\d",
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
        r"ambiguous option: (?P<rest>.+)",
        "ambiguous serving argument {rest}",
        "write the argument's whole name in the ServingRuntime or InferenceService",
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
        r"Unknown quantization method: (?P<name>[^\s.]+)",
        "unknown quantization {name} (vLLM: {line})",
        "correct --quantization, or leave it out: the engine reads the method from the model's config.json",
    ),
    (
        r"max_num_batched_tokens \((?P<tokens>\d+)\) (?:is smaller than max_model_len|must be greater than or equal to "
        r"max_num_seqs) \((?P<least>\d+)\)",
        "max-num-batched-tokens is {tokens}, and has to be at least {least} (vLLM: {line})",
        "raise --max-num-batched-tokens, or lower --max-model-len or --max-num-seqs",
    ),
    (
        # https://github.com/vllm-project/vllm/issues/55613
        r"'_OpNamespace' '_\w*C' object has no attribute '(?P<kernel>\w+)'",
        "vLLM has no kernel {kernel} for the node's hardware, and the model needs it (vLLM: {line})",
        "use an image for the node's hardware, or weights that are not quantised; on CPUs 4-bit weights need AVX-512",
    ),
    (
        r"CPU Generator does not use offset",
        "the prompt of a seeded request was computed in parts, which crashes vLLM's CPU backend (vLLM: {line})",
        "raise --max-num-batched-tokens to what the KV cache holds, so that no prompt is split",
    ),
    (
        r"LoRA rank (?P<rank>\d+) is greater than max_lora_rank (?P<most>\d+)",
        "a LoRA adapter has rank {rank}, max-lora-rank is {most}",
        "raise --max-lora-rank",
    ),
    (
        r"No adapter found for (?P<path>\S+)",
        "path {path} holds no LoRA adapter (vLLM: {line})",
        "mount the adapter at the path that --lora-modules names",
    ),
    (
        r"jinja2\.exceptions\.Template\w+: ",
        "the chat template is invalid ({line})",
        "correct the template that --chat-template or the model's tokenizer_config.json holds",
    ),
    (
        r"AssertionError: (?P<number>\d+) is not divisible by (?P<size>\d+)",
        "tensor-parallel-size {size} does not divide the model's dimension {number}",
        "set --tensor-parallel-size to a divisor of the model's attention heads and of its key-value heads",
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
    *symptoms_gpus.ROWS,
    (
        r"[Aa]ddress already in use",
        "port is taken (vLLM: {line})",
        "give each container of the pod a port of its own",
    ),
    (
        r"bind on address \('[^']*', (?P<port>\d+)[^)]*\): permission denied",
        "port {port} is closed to the container's user",
        "serve on a port above 1023, and name it in the probes and the Service",
    ),
    *symptoms_downloads.ROWS,
    (
        r"\bdev/shm\b.*No space left|unable to write to file </torch_",
        "shared memory is full ({line})",
        "mount an emptyDir with medium: Memory at /dev/shm of the serving container",
    ),
    (
        r"custom_all_reduce\.cuh:\d+",
        "the pod's GPUs cannot read each other's memory, as custom all-reduce does ({line})",
        "add --disable-custom-all-reduce to the arguments: more than two GPUs on PCIe need it",
    ),
    (
        r"NCCL error|NCCL Error|nccl(?:System|UnhandledCuda|Internal|Remote)Error",
        "the GPUs of the pod cannot exchange data ({line})",
        "NCCL_DEBUG=INFO shows why; /dev/shm needs 2 GiB, and GPUs on PCIe --disable-custom-all-reduce",
    ),
    (r"No space left on device", "volume is full ({line})", "enlarge the PVC, or remove what is not the model's"),
    (
        r"can't start new thread|pthread_create failed|fork: (?:retry: )?Resource temporarily unavailable",
        "the pod may not start more threads ({line})",
        "raise podPidsLimit of the node's kubelet, or lower OMP_NUM_THREADS",
    ),
    (
        r"(?<!`)OSError: \[Errno 24\] Too many open files",
        "the container may not open more files ({line})",
        "raise the limit of open files (ulimit -n) of the node's container runtime",
    ),
    (
        r"getpwuid\(\): uid not found: (?P<uid>\d+)",
        "user {uid} has no name in the image",
        "set USER and TORCHINDUCTOR_CACHE_DIR in the ServingRuntime: OpenShift gives the container a random user id",
    ),
    (
        r"Failed to find C compiler",
        "the image has no C compiler, which the engine's kernels need ({line})",
        "use the image that the overlay pins, or --enforce-eager",
    ),
    (
        r"version [`']GLIBC\S*' not found",
        "a program is built for a newer system than the image's ({line})",
        "use the image that the overlay pins",
    ),
    (
        r"Timed out waiting for engine core processes",
        "the engine's processes did not start in its own time limit ({line})",
        "read the log for what they wait for; VLLM_ENGINE_READY_TIMEOUT_S raises the limit for slow volumes",
    ),
    (r"ModuleNotFoundError: ", "the image lacks a module ({line})", "use the image that the overlay pins"),
    (r"ImportError: ", "a module cannot be loaded ({line})", "use the image that the overlay pins"),
    (
        r"Invalid credentials|MINIO_ROOT_(?:USER|PASSWORD).*(?:length|should)",
        "MinIO refuses its credentials ({line})",
        "accesskey has 3 or more characters, secretkey 8 or more: correct the Secret minio-credentials",
    ),
    (
        r"Unable to write to the backend|Unable to initialize backend.*(?:denied|permission)",
        "MinIO's volume is closed to its user ({line})",
        "set fsGroup in the securityContext of MinIO's pod",
    ),
)
#: Most specific first.
SYMPTOMS = tuple(Symptom(re.compile(pattern), cause, action) for pattern, cause, action in _ROWS)

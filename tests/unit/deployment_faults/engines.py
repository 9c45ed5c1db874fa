# ruff: noqa: E501 the texts of other programs stay whole
"""Engines that end, as their logs say it."""

from __future__ import annotations

from tests.unit.deployment_faults.fault import READY, Fault, model
from tests.unit.made_objects import ended, pod


def crashed(planted: str, cause: str, *log: str, code: int = 1) -> Fault:
    return Fault(planted, f"{READY}: {cause}", model(pod(ready=False, statuses=[ended(code, restarts=2)])), log)


INPUT = "[type=value_error, input_value=ArgsKwargs((), {'model_co...additional_config': {}}), input_type=ArgsKwargs]"
INVALID = "pydantic_core._pydantic_core.ValidationError: 1 validation error for ModelConfig"
FURTHER = "    For further information visit https://errors.pydantic.dev/2.11/v/value_error"

FAULTS: tuple[Fault, ...] = (
    crashed(
        "context that is longer than the KV cache",
        "no memory for the KV cache: one request of 131072 tokens needs 16.00 GiB, 5.30 GiB are free; 43424 tokens fit",
        "ValueError: To serve at least one request with the models's max seq len (131072), (16.00 GiB KV cache is needed, "
        "which is larger than the available KV cache memory (5.30 GiB). Based on the available memory, the estimated "
        "maximum model length is 43424. Try increasing `gpu_memory_utilization` or decreasing `max_model_len`.",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ),
    crashed(
        "quantisation that the GPU does not support",
        "quantisation fp8 needs a GPU of compute capability 89, this one has 75",
        INVALID,
        "  Value error, The quantization method fp8 is not supported for the current GPU. Minimum capability: 89. Current "
        f"capability: 75. {INPUT}",
        FURTHER,
    ),
    crashed(
        "data type that the GPU does not support",
        "bfloat16 is not supported by Tesla T4 (compute capability 7.5)",
        "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla T4 GPU has "
        "compute capability 7.5. You can use float16 instead by explicitly setting the `dtype` flag in CLI.",
    ),
    crashed(
        "architecture that the engine does not know",
        "the image's vLLM does not support model architecture 'NewForCausalLM'",
        INVALID,
        "  Value error, Model architectures ['NewForCausalLM'] are not supported for now. Supported architectures: "
        f"dict_keys(['LlamaForCausalLM']) {INPUT}",
        FURTHER,
    ),
    crashed(
        "combination of settings that the engine rejects",
        "container kserve-container ended with exit code 1 and restarted 2 times: Value error, Quantization method specified "
        "in the model config (gptq) does not match the quantization method specified in the `quantization` argument (awq).",
        INVALID,
        "  Value error, Quantization method specified in the model config (gptq) does not match the quantization method "
        f"specified in the `quantization` argument (awq). {INPUT}",
        FURTHER,
    ),
    crashed(
        "model with code of its own",
        "the model needs --trust-remote-code (vLLM: ValueError: The repository /mnt/models contains custom code which must "
        "be executed to correctly load the model.)",
        "ValueError: The repository /mnt/models contains custom code which must be executed to correctly load the model.",
        "Please pass the argument `trust_remote_code=True` to allow custom code to be run.",
    ),
    crashed(
        "folder without weights",
        "model path /mnt/models holds no weights (vLLM: RuntimeError: Cannot find any model weights with `/mnt/models`)",
        "RuntimeError: Cannot find any model weights with `/mnt/models`",
    ),
    crashed(
        "chat template that is not mounted",
        "chat template /templates/chat.jinja cannot be opened (vLLM: ValueError: The supplied chat template "
        "(/templates/chat.jinja) looks like a file path, but it failed to be opened.)",
        "ValueError: The supplied chat template (/templates/chat.jinja) looks like a file path, but it failed to be opened.",
    ),
    crashed(
        "more tensor parallelism than GPUs",
        "tensor-parallel-size 2 needs 2 GPUs, the pod has 1",
        "ValueError: World size (2) is larger than the number of available GPUs (1) in this node.",
    ),
    crashed(
        "gated model without accepted terms",
        "token refused: no access to gated model file https://huggingface.co/org/model/resolve/main/config.json",
        "huggingface_hub.errors.GatedRepoError: 403 Client Error. (Request ID: Root=1-0)",
        "Cannot access gated repo for url https://huggingface.co/org/model/resolve/main/config.json.",
    ),
    crashed(
        "shared memory that is too small for tensor parallelism",
        "shared memory is full (Error while creating shared memory segment /dev/shm/nccl-a (size 33030528), error: No space "
        "left on device (28))",
        "Error while creating shared memory segment /dev/shm/nccl-a (size 33030528), error: No space left on device (28)",
    ),
    crashed(
        "GPU whose memory another process uses",
        "gpu-memory-utilization 0.9 does not fit: 18.2 of 22.03 GiB are free on the GPU when the engine starts",
        "ValueError: Free memory on device (18.2/22.03 GiB) on startup is less than desired GPU memory utilization (0.9, "
        "19.83 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes.",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ),
    crashed(
        "setting outside its range",
        "container kserve-container ended with exit code 1 and restarted 2 times: gpu_memory_utilization: Input should be "
        "less than or equal to 1",
        "pydantic_core._pydantic_core.ValidationError: 1 validation error for CacheConfig",
        "gpu_memory_utilization",
        "  Input should be less than or equal to 1 [type=less_than_equal, input_value=70.0, input_type=float]",
        "    For further information visit https://errors.pydantic.dev/2.11/v/less_than_equal",
    ),
    crashed(
        "volume that the download did not fill",
        "model path /mnt/models has no file config.json (vLLM: OSError: /mnt/models does not appear to have a file named "
        "config.json. Checkout 'https://huggingface.co//mnt/models/tree/None' for available files.)",
        "OSError: /mnt/models does not appear to have a file named config.json. Checkout "
        "'https://huggingface.co//mnt/models/tree/None' for available files.",
    ),
    crashed(
        "model that the hub does not have, or not for this token",
        "Repository not found, or the token has no access to it: https://huggingface.co/api/models/mistralai/Mistrl-24B",
        "huggingface_hub.errors.RepositoryNotFoundError: 401 Client Error. (Request ID: Root=1-0)",
        "Repository Not Found for url: https://huggingface.co/api/models/mistralai/Mistrl-24B.",
        "Invalid username or password.",
    ),
    crashed(
        "quantization that the engine does not know",
        "unknown quantization w4a16 (vLLM: Value error, Unknown quantization method: w4a16. Must be one of ['awq', 'gptq'] "
        f"{INPUT})",
        INVALID,
        f"  Value error, Unknown quantization method: w4a16. Must be one of ['awq', 'gptq'] {INPUT}",
    ),
    crashed(
        "port variable of another program that Kubernetes injects",
        "a port variable is tcp://10.96.0.7:9000: Kubernetes sets it for a Service named as the program; rename the Service, "
        "or set enableServiceLinks: false",
        'panic: strconv.Atoi: parsing "tcp://10.96.0.7:9000": invalid syntax',
        code=2,
    ),
    crashed(
        "engine that is built for another processor generation",
        "container kserve-container ended with exit code 132 (SIGILL: the image needs instructions that the node's processor "
        "lacks) and restarted 2 times",
        code=132,
    ),
    Fault(
        "image for another processor",
        f"{READY}: container kserve-container ended with exit code 255 and restarted 2 times: exec /usr/bin/python3: exec "
        "format error",
        model(pod(ready=False, statuses=[ended(255, restarts=2)])),
        ("exec /usr/bin/python3: exec format error",),
    ),
    Fault(
        "GPU driver that is too old for the engine",
        f"{READY}: the node's GPU driver does not fit the image's CUDA (vLLM: RuntimeError: The NVIDIA driver on your system "
        "is too old (found version 11040).)",
        model(pod(ready=False, statuses=[ended(1, restarts=2)])),
        (
            "RuntimeError: The NVIDIA driver on your system is too old (found version 11040).",
            "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
        ),
    ),
    Fault(
        "file system that the engine may not write to",
        f"{READY}: path /.cache is closed to the container's user (PermissionError: [Errno 13] Permission denied: '/.cache')",
        model(pod(ready=False, statuses=[ended(1, restarts=2)])),
        ("Traceback (most recent call last):", "PermissionError: [Errno 13] Permission denied: '/.cache'"),
    ),
    Fault(
        "serving argument that the engine's version does not have",
        f"{READY}: unknown serving argument --swap-space=4 (vLLM: api_server.py: error: unrecognized arguments: "
        "--swap-space=4)",
        model(pod(ready=False, statuses=[ended(2, restarts=1)])),
        ("api_server.py: error: unrecognized arguments: --swap-space=4",),
    ),
    crashed(
        "GPU driver that was updated under a running node",
        "the node's GPU driver was updated while its old module stays loaded (pynvml.NVMLError_LibRmVersionMismatch: "
        "Driver/library version mismatch)",
        "pynvml.NVMLError_LibRmVersionMismatch: Driver/library version mismatch",
        "RuntimeError: Failed to infer device type, please set the environment variable `VLLM_LOGGING_LEVEL=DEBUG`",
    ),
    crashed(
        "volume whose server was restored while it was mounted",
        "the volume's server no longer knows the file (OSError: [Errno 116] Stale file handle: '/mnt/models/config.json')",
        "OSError: [Errno 116] Stale file handle: '/mnt/models/config.json'",
    ),
    crashed(
        "configuration of another library than Transformers",
        "model path /mnt/models has no config.json that names a known model (Value error, Unrecognized model in /mnt/models. "
        "Should have a `model_type` key in its config.json, or contain one of the following strings in its name: albert)",
        INVALID,
        "  Value error, Unrecognized model in /mnt/models. Should have a `model_type` key in its config.json, or contain one "
        "of the following strings in its name: albert",
    ),
    crashed(
        "custom all-reduce on GPUs without peer access",
        "the pod's GPUs cannot read each other's memory, as custom all-reduce does (Failed: Cuda error "
        "/workspace/csrc/custom_all_reduce.cuh:455 'invalid argument')",
        "Failed: Cuda error /workspace/csrc/custom_all_reduce.cuh:455 'invalid argument'",
        "RuntimeError: Worker proc VllmWorker-0 died unexpectedly, shutting down executor.",
    ),
    crashed(
        "worker process that the kernel ended",
        "container kserve-container ended with exit code 1 and restarted 2 times: Worker proc VllmWorker-1 died unexpectedly, "
        "shutting down executor.",
        "ERROR 07-30 15:32:48 [multiproc_executor.py:140] Worker proc VllmWorker-1 died unexpectedly, shutting down executor.",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ),
)

"""Log lines of real failures, and what they are called."""

from __future__ import annotations

import pytest

from pytest_vllm_stage.stage.observe import runbook

#: Lines of vLLM, PyTorch, huggingface_hub, botocore and MinIO, with the cause that the runbook gives them.
KNOWN_LINES = (
    ("RuntimeError: CUDA error: out of memory", "GPU memory is too small"),
    ("RuntimeError: CUDA error: uncorrectable ECC error encountered", "the node's GPU is defective"),
    ("RuntimeError: CUDA error: all CUDA-capable devices are busy or unavailable", "the GPU is in use by another"),
    ("RuntimeError: CUDA error: invalid device ordinal", "the engine uses a GPU that the pod does not have"),
    (
        "Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized",
        "the node's GPUs are not init",
    ),
    ("ValueError: type fp8e4nv not supported in this architecture.", "quantisation fp8 is not supported by this GPU"),
    ("RuntimeError: NCCL Error 2: unhandled system error", "the GPUs of the pod cannot exchange data"),
    ("OSError: [Errno 30] Read-only file system: '/home/vllm/.triton'", "path /home/vllm/.triton is on a read-only"),
    ("PermissionError: [Errno 13] Permission denied: '/.cache'", "path /.cache is closed to the container's user"),
    ("It looks like the config file at '/m/config.json' is not a valid JSON file.", "file /m/config.json is not JSON"),
    ("_pickle.UnpicklingError: Weights only load failed.", "weights unreadable"),
    ("KeyError: 'layers.0.mlp.down_proj.weight_scale'", "weights do not fit the model"),
    (
        "api_server.py: error: ambiguous option: --max could match --max-model-len, --max-num-seqs",
        "ambiguous serving arg",
    ),
    (
        "ValueError: max_num_batched_tokens (2048) is smaller than max_model_len (8192).",
        "max-num-batched-tokens is 2048, and has to be at least 8192",
    ),
    (
        "ValueError: max_num_batched_tokens (8) must be greater than or equal to max_num_seqs (16).",
        "max-num-batched-tokens is 8, and has to be at least 16",
    ),
    (
        "AttributeError: '_OpNamespace' '_C' object has no attribute 'cpu_gemm_wna16'",
        "vLLM has no kernel cpu_gemm_wna16 for the node's hardware",
    ),
    ("RuntimeError: CPU Generator does not use offset", "the prompt of a seeded request was computed in parts"),
    ("ValueError: LoRA rank 64 is greater than max_lora_rank 16.", "a LoRA adapter has rank 64, max-lora-rank is 16"),
    ("ValueError: Loading lora a failed: No adapter found for /mnt/lora/a", "path /mnt/lora/a holds no LoRA adapter"),
    ("jinja2.exceptions.TemplateSyntaxError: unexpected '}'", "the chat template is invalid"),
    ("AssertionError: 8 is not divisible by 6", "tensor-parallel-size 6 does not divide the model's dimension 8"),
    (
        "PermissionError: [Errno 13] error while attempting to bind on address ('0.0.0.0', 80): permission denied",
        "port 80",
    ),
    ("ProxyError('Unable to connect', OSError('Tunnel connection failed: 403 Forbidden'))", "the proxy refuses the"),
    (
        "[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed: self-signed certificate",
        "a server's certificate is",
    ),
    (
        "SSL validation failed for https://minio:9000/ [SSL: WRONG_VERSION_NUMBER] wrong version",
        "TLS is spoken to a port",
    ),
    ("OSError: [Errno 5] Input/output error: '/mnt/models/model.safetensors'", "the volume cannot be read"),
    ("pynvml.NVMLError_Unknown: Unknown Error", "the container lost its GPU while it ran"),
    ("RuntimeError: CUDA error: no CUDA-capable device is detected", "no GPU in the pod"),
    ("RuntimeError: CUDA unknown error - this may be due to an incorrectly set up env", "the container cannot use the"),
    (
        "ValueError: No supported config format found in /mnt/models. Please",
        "model path /mnt/models has no config.json",
    ),
    ("ValueError: No tokenizer file found in directory: /m", "model path /m has no tokenizer of Mistral's own format"),
    ("FlexibleChecksumError: Expected checksum a did not match calculated checksum: b", "a file did not arrive as it"),
    (
        "LocalEntryNotFoundError: An error happened while trying to locate the files on the Hub",
        "the Hub does not answer",
    ),
    (
        "ClientError: An error occurred (400) when calling the HeadObject operation: Bad Request",
        "the object store refuses",
    ),
    (
        "ValueError: Invalid endpoint: https://minio:9000/models",
        "the S3 endpoint https://minio:9000/models is not a URL",
    ),
    ("InvalidHeader: Invalid leading whitespace, reserved character(s)", "a token that is sent as a header has a line"),
    ("curl: (6) Could not resolve host: huggingface.co", "host huggingface.co cannot be resolved"),
    ("socket.gaierror: [Errno -3] Temporary failure in name resolution", "a host cannot be resolved"),
    (
        "OfflineModeIsEnabled: Cannot reach https://huggingface.co/api: offline mode is enabled.",
        "the model is not on the",
    ),
    (
        "huggingface_hub.errors.HfHubHTTPError: 429 Client Error: Too Many Requests for url",
        "the server limits requests",
    ),
    ("An error occurred (NoSuchBucket) when calling the ListObjects operation", "the bucket does not exist"),
    ("An error occurred (403) when calling the HeadObject operation: Forbidden", "the object store refuses the cred"),
    (
        "An error occurred (SignatureDoesNotMatch) when calling the ListObjectsV2 operation",
        "the object store refuses the",
    ),
    (
        "An error occurred (RequestTimeTooSkewed) when calling the ListObjects operation",
        "the clocks of the node and of",
    ),
    ("botocore.exceptions.NoCredentialsError: Unable to locate credentials", "the container has no S3 credentials"),
    (
        'Could not connect to the endpoint URL: "http://minio:9000/models"',
        "the object store does not answer at http://min",
    ),
    ("RuntimeError: Failed to fetch model. No model found in s3://models/m.", "there is no object under s3://models/m"),
    ("RuntimeError: can't start new thread", "the pod may not start more threads"),
    ("OSError: [Errno 24] Too many open files", "the container may not open more files"),
    ("KeyError: 'getpwuid(): uid not found: 1000680000'", "user 1000680000 has no name in the image"),
    ("RuntimeError: Failed to find C compiler. Please specify via CC", "the image has no C compiler"),
    (
        "python3: /lib64/libc.so.6: version `GLIBC_2.34' not found",
        "a program is built for a newer system than the image",
    ),
    ("TimeoutError: Timed out waiting for engine core processes to start.", "the engine's processes did not start in"),
    ("FATAL Unable to initialize backend: Unable to write to the backend", "MinIO's volume is closed to its user"),
)


@pytest.mark.parametrize(
    ("line", "cause"),
    [
        (
            "error: weights altered: file model.safetensors has sha256 aa, manifest says bb",
            "weights altered: file model.safetensors has sha256 aa, manifest says bb",
        ),
        (
            "(APIServer pid=1) OSError: Repo id must be in the form 'repo_name' or 'namespace/repo_name': "
            "'/mnt/models/nowhere'. Use `repo_type` argument if needed.",
            "model path /mnt/models/nowhere does not exist (vLLM: OSError: Repo id must be",
        ),
        (
            "api_server.py: error: unrecognized arguments: --max-model-length=2048",
            "unknown serving argument --max-model-length=2048 (vLLM: ",
        ),
        (
            "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.",
            "GPU memory is too small (vLLM: torch.OutOfMemoryError",
        ),
        ("RuntimeError: Failed to infer device type, please set", "no GPU in the pod (vLLM: RuntimeError"),
        ("OSError: [Errno 98] Address already in use", "port is taken (vLLM: OSError"),
        ("requests.exceptions.HTTPError: 401 Client Error: Unauthorized for url", "token refused (requests."),
        ("ModuleNotFoundError: No module named 'vllm'", "the image lacks a module (ModuleNotFoundError"),
        ("OSError: [Errno 28] No space left on device", "volume is full (OSError"),
        *KNOWN_LINES,
    ],
)
def test_known_log_line_gives_the_runbooks_cause(line: str, cause: str) -> None:
    found = runbook.cause_of(["INFO starting", line, "INFO bye"])
    assert found is not None
    assert found.startswith(cause)


@pytest.mark.parametrize(
    "line",
    [
        "(APIServer pid=1) INFO 11-24 09:21:08 [model.py:733] Resolved architecture: LlamaForCausalLM",
        "WARNING [system_utils.py:255] This can cause fd limit errors like `OSError: [Errno 24] Too many open files`",
        "Triton is installed, but doesn't include CPU backend. Disabling Triton.",
        "WARNING [custom_all_reduce.py:9] Custom allreduce is disabled because your platform lacks GPU P2P capability",
        "HTTPConnectionPool(host='otel', port=4318): Max retries exceeded with url: /v1/traces (Connection refused)",
        "INFO non-default args: {'enable_auto_tool_choice': True, 'model': '/mnt/models'}",
    ],
)
def test_a_healthy_line_means_nothing(line: str) -> None:
    assert runbook.cause_of([line]) is None


def test_the_own_jobs_word_wins_over_what_python_adds() -> None:
    lines = [
        "OSError: [Errno 28] No space left on device",
        "error: writing to the model volume failed: No space (0 MiB free)",
    ]
    assert runbook.cause_of(lines) == "writing to the model volume failed: No space (0 MiB free)"


def test_informative_lines_leave_out_the_code_of_a_traceback() -> None:
    log = ["Traceback (most recent call last):", '  File "a.py", line 1, in f', "    raise X", "", "ValueError: no"]
    assert runbook.informative_lines(log, 5) == ["Traceback (most recent call last):", "ValueError: no"]


def test_a_long_line_is_cut() -> None:
    assert len(runbook.cut("x" * 1000)) == runbook.LONGEST_QUOTE


def test_a_port_that_kubernetes_injects_is_named() -> None:
    line = "ValueError: VLLM_PORT 'tcp://10.0.0.5:8000' appears to be a URI. This may be caused by a Kubernetes service"
    assert runbook.cause_of([line]) == (
        "VLLM_PORT is tcp://10.0.0.5:8000: Kubernetes sets it for a Service of that name; rename the Service, or set "
        "enableServiceLinks: false"
    )
    found = runbook.cause_of(["ValueError: invalid literal for int() with base 10: 'tcp://10.0.0.5:8000'"])
    assert found is not None
    assert found.startswith("a port variable is tcp://10.0.0.5:8000")

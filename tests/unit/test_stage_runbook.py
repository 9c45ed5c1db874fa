"""Log lines of real failures, and what they are called."""

from __future__ import annotations

import pytest

from pytest_vllm_stage.stage.observe import runbook


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

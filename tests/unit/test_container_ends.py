"""Why an engine died while it served, read from the log of its container."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from pytest_vllm_stage.stage.objects import Object
from pytest_vllm_stage.stage.observe import container_ends, health
from tests.unit.made_objects import container_status, event, pod

#: Of vLLM 0.32 on a CPU: a seeded request, whose prompt was computed in parts, among others.
RECORDED = (Path(__file__).parents[1] / "data" / "engine-death.log").read_text(encoding="utf-8").splitlines()
RECORDED_CAUSE = (
    "the prompt of a seeded request was computed in parts, which crashes vLLM's CPU backend (vLLM: RuntimeError: "
    "CPU Generator does not use offset): raise --max-num-batched-tokens to what the KV cache holds, so that no prompt "
    "is split"
)
ENGINE = "(EngineCore pid=23) ERROR 11-26 22:46:13 [core.py:1512] "
REQUEST = "(APIServer pid=1) ERROR 11-26 22:46:13 [serving.py:500] "
LOST = "EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause."
SYNCHRONOUS = "CUDA kernel errors might be asynchronously reported at some other API call."


def fatal(*error: str, prefix: str = ENGINE, request: str = REQUEST) -> list[str]:
    """The log of an engine that dies of an error while it answers a request."""
    frames = ["Traceback (most recent call last):", '  File "core.py", line 1, in step', "    pass  # ImportError: no"]
    died = [f"{prefix}{line}" for line in ("EngineCore encountered a fatal error.", *frames, *error)]
    return [
        "INFO ready",
        *died,
        *(f"{request}{line}" for line in (*frames, LOST, "TypeError: b")),
        "INFO:     Shutting down",
    ]


@pytest.mark.parametrize(
    ("log", "at", "cause"),
    [
        pytest.param(RECORDED, "22:46:13", RECORDED_CAUSE, id="recorded"),
        pytest.param(fatal("ZeroDivisionError: by 0"), "22:46:13", "ZeroDivisionError: by 0", id="unknown exception"),
        pytest.param(fatal("AssertionError"), "22:46:13", "AssertionError", id="exception without a message"),
        pytest.param(
            fatal("torch.AcceleratorError: an illegal access", SYNCHRONOUS),
            "22:46:13",
            "torch.AcceleratorError: an illegal access",
            id="message of several lines",
        ),
        pytest.param(
            fatal(
                "KeyError: 'a'", "", "During handling of the above exception, another exception occurred:", "OSError: b"
            ),
            "22:46:13",
            "OSError: b",
            id="the last exception of a chain",
        ),
        pytest.param(fatal("ValueError: a", prefix="", request=""), "", "ValueError: a", id="log without prefixes"),
        pytest.param(
            [f"\x1b[1;36m{line}\x1b[0;0m" for line in fatal("ValueError: a")],
            "22:46:13",
            "ValueError: a",
            id="log with colours",
        ),
        pytest.param(
            [
                line
                for pair in zip(fatal("ValueError: a"), [f"{REQUEST}TypeError: b"] * 9, strict=False)
                for line in pair
            ],
            "22:46:13",
            "ValueError: a",
            id="processes that log at the same time",
        ),
        pytest.param(
            [
                "(EngineCore pid=9) ERROR 11-26 22:46:12 [a.py:1] Worker proc W died unexpectedly (exit code: -9)",
                *fatal("RuntimeError: Executor failed."),
            ],
            "22:46:12",
            "Worker proc W died unexpectedly (exit code: -9)",
            id="worker that was killed",
        ),
        pytest.param(
            ["(APIServer pid=1) WARNING 11-26 22:46:12 [a.py:1] engine core exited unexpectedly; starting cleanup"],
            "22:46:12",
            "engine core exited unexpectedly; starting cleanup",
            id="engine that was killed",
        ),
    ],
)
def test_the_log_of_a_dead_engine_names_its_cause(log: list[str], at: str, cause: str) -> None:
    assert container_ends.find_engine_death(log) == container_ends.EngineDeath(at, cause)


def test_a_log_without_a_dead_engine_names_no_cause() -> None:
    assert container_ends.find_engine_death([f"{REQUEST}ValueError: a request's own error", "INFO bye"]) is None
    assert container_ends.find_engine_death([]) is None


def reading(lines: list[str], read: list[tuple[str, str, bool]] | None = None) -> Callable[[str, str, bool], list[str]]:
    """A reader of one log, which notes what was read."""

    def read_log(pod_name: str, container: str, previous: bool) -> list[str]:
        if read is not None:
            read.append((pod_name, container, previous))
        return lines

    return read_log


def restarted(reason: str = "Completed", exit_code: int = 0) -> Object:
    end = {"reason": reason, "exitCode": exit_code, "finishedAt": "2026-11-26T22:46:15Z"}
    return pod(statuses=[container_status(restartCount=1, lastState={"terminated": end})])


def test_a_restart_names_what_the_engine_died_of() -> None:
    read: list[tuple[str, str, bool]] = []
    (line,) = health.check_pods([restarted()], [], reading(RECORDED, read))
    assert line == (
        f"engine died at 22:46:13: {RECORDED_CAUSE}; container kserve-container of pod p was restarted once "
        "(Completed, exit code 0)"
    )
    assert read == [("p", "kserve-container", True)]


def test_the_log_of_a_container_that_runs_since_its_start_is_not_read() -> None:
    read: list[tuple[str, str, bool]] = []
    assert health.check_pods([pod()], [], reading(RECORDED, read)) == []
    assert read == []


def test_a_container_that_was_not_restarted_yet_is_named_with_its_present_log() -> None:
    read: list[tuple[str, str, bool]] = []
    end = {"reason": "Completed", "exitCode": 0, "finishedAt": "2026-11-26T22:46:15Z"}
    dead = pod(statuses=[container_status(state={"terminated": end})])
    (line,) = health.find_ends_since([dead], [], 0.0, reading(fatal("ValueError: a"), read), "quantized")
    assert line == (
        "engine of quantized died at 22:46:13: ValueError: a; container kserve-container of pod p ended and was not "
        "restarted yet (Completed, exit code 0)"
    )
    assert read == [("p", "kserve-container", False)]


def test_the_status_dates_a_death_whose_log_has_no_times() -> None:
    (line,) = health.check_pods([restarted()], [], reading(fatal("ValueError: a", prefix="", request="")))
    assert line.startswith("engine died at 22:46:15: ValueError: a; ")


def test_a_crash_without_a_fatal_error_names_the_last_one_of_its_log() -> None:
    how = "container kserve-container of pod p was restarted once (Error, exit code 1)"
    log = ["Traceback (most recent call last):", "    a()", "ValueError: a", "INFO bye"]
    (line,) = health.check_pods([restarted("Error", 1)], [], reading(log))
    assert line == f"{how}; the last error in its log: ValueError: a"
    old = [*log, *["INFO a healthy line"] * container_ends._LAST_LINES]
    assert health.check_pods([restarted("Error", 1)], [], reading(old)) == [how]
    for nothing in ([], [f"{REQUEST}{LOST}"]):
        assert health.check_pods([restarted("Error", 1)], [], reading(nothing)) == [how]
    known = reading(["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB."])
    assert (
        "its log: GPU memory is too small (vLLM: torch.Out" in health.check_pods([restarted("Error", 1)], [], known)[0]
    )


def test_an_end_by_the_kubelet_or_the_kernel_is_not_blamed_on_an_error_of_a_request() -> None:
    log = reading(["ValueError: a request's own error"])
    (line,) = health.check_pods([restarted("OOMKilled", 137)], [], log)
    assert line.endswith("(OOMKilled, exit code 137)")
    killed = restarted("Error", 137)
    by_probe = event(killed, "Killing", "Container kserve-container failed liveness probe, will be restarted")
    (line,) = health.check_pods([killed], [by_probe], log)
    assert line.endswith("restarts container kserve-container")

"""GuideLLM's scenario and environment, and that it ends with the process that started it."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.engine.environment import EngineEnvironment
from pytest_vllm_stage.load.driver import LoadJob
from pytest_vllm_stage.load.guidellm import keeper, run
from pytest_vllm_stage.load.guidellm.run import (
    count_requests,
    describe_loss,
    describe_progress,
    environ_of,
    missing,
)
from pytest_vllm_stage.load.guidellm.scenario import PROMPTS, REPORT, SCENARIO, reverse_words, write_scenario
from pytest_vllm_stage.load.guidellm.usage import GroupUsage
from pytest_vllm_stage.load.prompts import make_body
from pytest_vllm_stage.measurement.samples import Measurement, ServerReading
from pytest_vllm_stage.measurement.step import CLOSED, CONSTANT, POISSON, LoadStep
from pytest_vllm_stage.slo.decision import Outcome
from pytest_vllm_stage.slo.objectives import Objective
from pytest_vllm_stage.slo.verdict import judge
from tests.unit.made_samples import failed, measurement, open_step, sample

STEP = LoadStep("quantized", "m", CONSTANT, 60, 64, 16, request_rate=5.0, request_timeout_s=30, seed=7)
USERS = replace(STEP, arrivals=CLOSED, request_rate=None, concurrency=4)


def written(tmp_path: Path, step: LoadStep, **changes: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The scenario's spec and the prompts' lines."""
    bodies = [make_body(step, f"Text: number {i}") for i in range(3)]
    write_scenario(LoadJob(step, "http://host:8000", bodies, **changes), bodies, tmp_path)
    lines = [json.loads(line) for line in (tmp_path / PROMPTS).read_text().splitlines()]
    return json.loads((tmp_path / SCENARIO).read_text())["spec"], lines


def test_the_requests_are_the_jobs_own(tmp_path: Path) -> None:
    spec, lines = written(tmp_path, STEP)
    assert lines == [{"messages": [{"role": "user", "content": f"Text: number {i}"}]} for i in range(3)]
    body = json.loads(make_body(STEP, "x"))
    sent = {"model": spec["backend"]["model"], "stream": True, "messages": body["messages"]}
    assert sent | spec["backend"]["extras"]["body"] == body
    assert spec["backend"]["request_format"] == "/v1/chat/completions"
    assert spec["constraints"] == [{"kind": "max_requests", "count": 3}], "a time limit would cancel the slow ones"
    assert spec["data"][0]["path"] == PROMPTS
    assert spec["outputs"] == [{"kind": "json", "path": REPORT}]
    assert (spec["backend"]["verify"], spec["backend"]["timeout"]) == (True, 30)


def test_completions_are_sent_as_plain_prompts(tmp_path: Path) -> None:
    spec, lines = written(tmp_path, replace(STEP, api="completions"))
    assert lines == [{"prompt": f"Text: number {i}"} for i in range(3)]
    assert spec["backend"]["request_format"] == "/v1/completions"


@pytest.mark.parametrize(
    ("step", "profile"),
    [
        (STEP, {"kind": "constant", "rate": [5.0]}),
        (replace(STEP, arrivals=POISSON), {"kind": "poisson", "rate": [5.0]}),
        (USERS, {"kind": "concurrent", "streams": [4]}),
    ],
)
def test_each_kind_of_load_has_its_profile(tmp_path: Path, step: LoadStep, profile: dict[str, Any]) -> None:
    spec, _ = written(tmp_path, step)
    assert spec["profile"] == profile
    assert spec["seed"]["value"] == 7


def test_the_key_is_in_a_file_that_only_its_user_reads(tmp_path: Path) -> None:
    spec, _ = written(tmp_path, STEP, api_key=Secret("sesame"))
    assert spec["backend"]["api_key"] == "sesame"
    assert stat.S_IMODE((tmp_path / SCENARIO).stat().st_mode) == 0o600
    assert "sesame" not in (tmp_path / PROMPTS).read_text()


def test_bodies_with_different_parameters_are_refused(tmp_path: Path) -> None:
    bodies = [make_body(STEP, "a b"), make_body(replace(STEP, output_tokens=8), "c d")]
    with pytest.raises(ConfigError, match="step quantized-rate-5: bodies: their parameters differ"):
        write_scenario(LoadJob(STEP, "http://host", bodies), bodies, tmp_path)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_a_prompt_is_turned_round(api: str) -> None:
    step = replace(STEP, api=api)
    assert json.loads(reverse_words(make_body(step, "Text: one two"))) == json.loads(make_body(step, "two one Text:"))


def test_an_open_loop_sends_rate_times_duration() -> None:
    assert count_requests(STEP, [], 300) == 300
    assert count_requests(STEP, [], 1000) == 300


def test_a_closed_loop_sends_what_its_users_make_in_the_duration() -> None:
    warmup = [sample(i, 0.0, ttft_s=0.5, itl_s=0.1, tokens=16) for i in range(4)]
    took_s = warmup[0].end_s
    assert took_s == pytest.approx(2.0)
    assert count_requests(USERS, warmup, 1000) == 4 * 60 / 2
    assert count_requests(USERS, [*warmup, failed(4, 0.0)], 1000) == 4 * 60 / 2
    assert count_requests(USERS, warmup, 50) == 50
    assert count_requests(USERS, [failed(0, 0.0)], 1000) == 4, "nothing was answered, and the step shall show it"


def test_a_closed_loop_needs_a_warm_up() -> None:
    with pytest.raises(ConfigError, match="warmup_requests: is 0"):
        count_requests(USERS, [], 1000)


def test_the_users_own_settings_of_guidellm_stay_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GUIDELLM__SPEC__BACKEND__TARGET", "http://elsewhere")
    monkeypatch.setenv("https_proxy", "http://proxy")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy")
    environ = environ_of("ca.pem", tmp_path)
    assert not [name for name in environ if name.lower().endswith("_proxy")]
    assert [name for name in environ if name.startswith("GUIDELLM")] == ["GUIDELLM__MAX_WORKER_PROCESSES"]
    assert environ["GUIDELLM__MAX_WORKER_PROCESSES"] == "1"
    assert environ["SSL_CERT_FILE"] == str(Path("ca.pem").resolve())


def test_progress_shows_the_engine_s_queue() -> None:
    assert describe_progress([]) == "GuideLLM runs"
    assert describe_progress([ServerReading(1, running=3, waiting=2)]) == "GuideLLM runs, engine runs 3, 2 wait"


def lacking(rows: int, lost: int, **changes: Any) -> Measurement:
    """A measurement of so many answered requests; the report had no row of some more."""
    step = open_step(10, (rows + lost) / 10, **changes)
    made = measurement(step, [sample(i, i / 10) for i in range(rows)])
    return replace(made, facts=missing(rows + lost, rows))


def test_lost_rows_are_counted() -> None:
    assert missing(80, 80) == {}
    assert missing(80, 79) == {"lost_rows": 1}
    assert missing(1000, 990) == {"lost_rows": 10}


@pytest.mark.parametrize(("rows", "lost"), [(60, 0), (59, 1), (297, 3)])
def test_few_lost_rows_are_reported_and_the_step_counts(rows: int, lost: int) -> None:
    made = lacking(rows, lost)
    verdict = judge(made, [Objective("ttft_p50_ms", 5000)])[1]
    assert (verdict.outcome, describe_loss(made)) == (Outcome.PASS, "")
    assert (f"no row of {lost} of {rows + lost} requests, which were sent" in verdict.why) == bool(lost)


def test_more_lost_rows_are_measured_again_and_invalidate_the_step() -> None:
    made = lacking(58, 2)
    assert describe_loss(made) == "GuideLLM's report had 58 of 60 samples, none failed"
    verdict = judge(made, [Objective("ttft_p50_ms", 5000)])[1]
    assert verdict.outcome is Outcome.INVALID
    assert verdict.why == "GuideLLM's report has no row of 2 of 60 requests, which were sent"


def test_step_with_failures_or_with_a_shared_prefix_is_not_measured_again() -> None:
    made = lacking(58, 2)
    assert describe_loss(replace(made, samples=(failed(0, 0.0), *made.samples[1:]))) == ""
    assert describe_loss(lacking(58, 2, shared_prefix_tokens=16)) == ""


@pytest.mark.parametrize(("losses", "runs"), [([0], 1), ([1], 1), ([2, 0], 2), ([2, 1], 2), ([3, 2], 2)])
def test_step_is_measured_again_once_with_other_prompts(
    losses: list[int], runs: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs: list[LoadJob] = []

    def carry_out(job: LoadJob, *_rest: object) -> Measurement:
        jobs.append(job)
        return lacking(60 - losses[len(jobs) - 1], losses[len(jobs) - 1])

    monkeypatch.setattr(run, "_carry_out", carry_out)
    bodies = [json.dumps({"prompt": f"a b {number}"}).encode() for number in range(60)]
    installed = EngineEnvironment(tmp_path, tmp_path, tmp_path, {"guidellm": "0.8.1"})
    found = run.measure(LoadJob(open_step(10, 6), "http://server", bodies), Journal(), environment=installed)
    assert len(jobs) == runs
    sent = [body for job in jobs for body in job.bodies]
    assert len(set(sent)) == 60 * runs
    verdict = judge(found, [Objective("ttft_p50_ms", 5000)])[1]
    assert ("measured again: GuideLLM's report had " in verdict.why) == (runs == 2 and losses[-1] < 2)
    assert "measured_again" in [one.name for one in verdict.findings] or runs == 1
    assert (verdict.outcome is Outcome.INVALID) == (losses[-1] > 1)


def kept(code: str) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-I", keeper.__file__, sys.executable, "-c", code]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True)


def test_the_keeper_gives_the_commands_status() -> None:
    with kept("raise SystemExit(7)") as process:
        assert process.wait(30) == 7
    with kept("import os; os.kill(os.getpid(), 9)") as process:
        assert process.wait(30) == 128 + 9


def test_all_that_the_command_started_ends_with_the_parents_pipe() -> None:
    code = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    with kept(code) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        grandchild = int(process.stdout.readline())
        process.stdin.close()
        process.wait(30)
        deadline = time.monotonic() + 30
        while _runs(grandchild) and time.monotonic() < deadline:
            os.sched_yield()
        assert not _runs(grandchild)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] not in "ZX"
    except FileNotFoundError:
        return False


def test_cpu_time_is_taken_from_the_whole_group(tmp_path: Path) -> None:
    go = tmp_path / "go"
    code = (
        "import os, subprocess, sys, time\n"
        f"while not os.path.exists({str(go)!r}): time.sleep(0.01)\n"
        "burn = 'import time\\nwhile time.process_time() < 0.3: pass'\n"
        "subprocess.run([sys.executable, '-c', burn])\n"
        "print(flush=True)\n"
        "time.sleep(600)\n"
    )
    with kept(code) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        usage = GroupUsage(process.pid)
        started = time.time()
        usage.look()
        go.touch()
        process.stdout.readline()
        usage.look()
        ended = time.time()
        whole, half = usage.between(started, ended), usage.between(started, (started + ended) / 2)
        process.stdin.close()
    assert whole >= 0.25, "0.3 s, which the kernel rounds down for each process"
    assert 0 < half < whole

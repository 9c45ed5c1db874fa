"""The load drivers that the bench compares: ours, GuideLLM 0.8.1 and aiperf 0.13.

Each reports TTFT as it does to its users: ours counts from the schedule, the others from when they send.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import uv

from pytest_vllm_stage.core import paths
from pytest_vllm_stage.core.journal import Journal
from pytest_vllm_stage.engine import environment
from pytest_vllm_stage.load.driver import LoadJob
from pytest_vllm_stage.load.guidellm import run as guidellm
from pytest_vllm_stage.load.guidellm.usage import GroupUsage
from pytest_vllm_stage.load.process import measure
from pytest_vllm_stage.measurement.metrics import summarise
from pytest_vllm_stage.measurement.statistics import nearest_rank
from pytest_vllm_stage.measurement.step import LoadStep

AIPERF = "aiperf==0.13.0"
_AIPERF_TIMEOUT_S = 180.0
_NANOSECONDS = 1e9

#: A tokenizer that knows no word: aiperf requires one, and would download its own.
_TOKENIZER = """
import sys
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
tokenizer = Tokenizer(models.WordLevel({"?": 0}, unk_token="?"))
tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="?").save_pretrained(sys.argv[1])
"""


@dataclass(frozen=True)
class Row:
    """One request as a driver reports it: the engine's id for it, and its TTFT."""

    request_id: str
    ttft_s: float


@dataclass(frozen=True)
class Report:
    """What a driver reports of one step; None where it does not know."""

    rows: Sequence[Row]
    requests: int
    failed: int
    lag_p99_ms: float | None
    sent_share: float | None
    cpu_s: float


class Driver(Protocol):
    """The seam for peers: something that carries a step out against a URL."""

    name: str

    def run(self, url: str, step: LoadStep, bodies: Sequence[bytes], warmup: Sequence[bytes]) -> Report:
        """Carry the step out."""


class OurDriver:
    """`pytest_vllm_stage.load` in its own process."""

    name = "pytest-vllm-stage"

    def run(self, url: str, step: LoadStep, bodies: Sequence[bytes], warmup: Sequence[bytes]) -> Report:
        """Carry the step out."""
        measurement = measure(LoadJob(step, url, bodies, warmup), Journal())
        metrics = summarise(measurement.samples, step)
        rows = [
            Row(sample.response_id, sample.first_token_s - sample.scheduled_s)
            for sample in measurement.samples
            if sample.failure is None and sample.first_token_s is not None
        ]
        failed = sum(metrics.failed.values())
        sent_share = metrics.achieved_over_offered
        return Report(rows, metrics.requests, failed, metrics.lag_p99_ms, sent_share, measurement.client.cpu_s)


class GuideLlm:
    """GuideLLM from the engine's environment; its TTFT counts from when a header goes out."""

    name = "GuideLLM 0.8.1"

    def __init__(self) -> None:
        self._environment = environment.ensure(Journal())

    def run(self, url: str, step: LoadStep, bodies: Sequence[bytes], warmup: Sequence[bytes]) -> Report:
        """Carry the step out."""
        measurement = guidellm.measure(LoadJob(step, url, bodies, warmup), Journal(), environment=self._environment)
        metrics = summarise(measurement.samples, step)
        rows = [
            Row(sample.response_id, sample.first_token_s - sample.sent_s)
            for sample in measurement.samples
            if sample.failure is None and sample.first_token_s is not None and sample.sent_s is not None
        ]
        failed = sum(metrics.failed.values())
        sent_share = metrics.achieved_over_offered
        return Report(rows, metrics.requests, failed, metrics.lag_p99_ms, sent_share, measurement.client.cpu_s)


class AiPerf:
    """aiperf in a separate environment in the cache; its schedule is not in its records, only its rate."""

    name = "aiperf 0.13"

    def __init__(self) -> None:
        self._folder = paths.cache_dir() / "bench" / AIPERF
        self._tokenizer = self._folder / "tokenizer"
        if not self._tokenizer.exists():
            program, python = uv.find_uv_bin(), self._folder / "bin" / "python"
            subprocess.run([program, "venv", "-q", "--clear", "--python", sys.executable, self._folder], check=True)
            subprocess.run([program, "pip", "install", "-q", "--python", python, AIPERF], check=True)
            subprocess.run([python, "-c", _TOKENIZER, self._tokenizer], check=True, capture_output=True)

    def run(self, url: str, step: LoadStep, bodies: Sequence[bytes], warmup: Sequence[bytes]) -> Report:
        """Carry the step out; the warm-up is aiperf's own."""
        with tempfile.TemporaryDirectory() as folder:
            usage = self._profile(url, step, bodies, len(warmup), Path(folder))
            lines = (Path(folder) / "artifacts" / "profile_export.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        return _report([one for one in records if one["metadata"]["benchmark_phase"] == "profiling"], step, usage)

    def _profile(self, url: str, step: LoadStep, bodies: Sequence[bytes], warmup: int, folder: Path) -> GroupUsage:
        prompts = folder / "prompts.jsonl"
        fields = [json.loads(body) for body in bodies]
        prompts.write_text("".join(json.dumps({"text": one["messages"][0]["content"]}) + "\n" for one in fields))
        extra = {name: fields[0][name] for name in ("max_tokens", "min_tokens", "ignore_eos", "temperature")}
        command: list[str | Path] = [self._folder / "bin" / "aiperf", "profile", "--model", step.model, "--url", url]
        command += [
            "--endpoint-type",
            "chat",
            "--streaming",
            "--tokenizer",
            self._tokenizer,
            "--use-server-token-count",
        ]
        command += ["--input-file", prompts, "--custom-dataset-type", "single_turn"]
        command += ["--dataset-sampling-strategy", "sequential", "--request-rate", f"{step.request_rate:g}"]
        command += ["--request-rate-mode", "constant", "--request-count", str(len(bodies))]
        command += ["--warmup-request-count", str(warmup), "--extra-inputs", json.dumps(extra), "--ui", "none"]
        command += ["--export-level", "records", "--artifact-dir", folder / "artifacts"]
        command += ["--no-gpu-telemetry", "--no-server-metrics"]
        with (folder / "output").open("wb") as output:
            process = subprocess.Popen(command, cwd=folder, stdout=output, stderr=output, start_new_session=True)
        try:
            return _watched(process, folder)
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def _watched(process: subprocess.Popen[bytes], folder: Path) -> GroupUsage:
    usage, deadline_s = GroupUsage(process.pid), time.monotonic() + _AIPERF_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        usage.look()
        time.sleep(0.2)
    if process.poll() != 0:
        raise RuntimeError(f"aiperf: exit status {process.poll()}\n{(folder / 'output').read_text()[-2000:]}")
    return usage


def _report(records: Sequence[Mapping[str, Any]], step: LoadStep, usage: GroupUsage) -> Report:
    """The lag is taken against the schedule of the planned rate that fits best, since aiperf reports none."""
    whole = [one for one in records if "time_to_first_token" in one["metrics"]]
    rows = [
        Row(f"chatcmpl-{one['metadata']['x_request_id']}", one["metrics"]["time_to_first_token"]["value"] / 1000)
        for one in whole
    ]
    sent = sorted(one["metadata"]["request_start_ns"] / _NANOSECONDS for one in records)
    rate = step.request_rate or 1.0
    offsets = [at - i / rate for i, at in enumerate(sent)]
    lags_ms = sorted(1000 * (offset - min(offsets)) for offset in offsets)
    planned_s, really_s = (len(sent) - 1) / rate, sent[-1] - sent[0]
    ended = max(one["metadata"]["request_end_ns"] for one in records) / _NANOSECONDS
    return Report(
        rows=rows,
        requests=len(records),
        failed=(step.planned_requests or 0) - len(whole),
        lag_p99_ms=nearest_rank(lags_ms, 99),
        sent_share=min(1.0, planned_s / really_s),
        cpu_s=usage.between(sent[0], ended),
    )


#: By the name that the command line takes.
DRIVERS: Mapping[str, type[Driver]] = {"ours": OurDriver, "guidellm": GuideLlm, "aiperf": AiPerf}

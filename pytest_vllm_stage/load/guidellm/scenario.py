"""What GuideLLM is given: a step and its request bodies as a scenario file and a file of prompts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.load.driver import LoadJob
from pytest_vllm_stage.measurement.step import CONSTANT, LoadStep

SCENARIO, PROMPTS, REPORT = "scenario.json", "prompts.jsonl", "report.json"

_FORMATS = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
#: Fields of a body that carry the prompt; GuideLLM takes columns of these names for it, and sends them unaltered.
_PROMPT_FIELDS = ("messages", "prompt")
#: Fields that GuideLLM sets by itself.
_OWN_FIELDS = ("model", "stream")


def write_scenario(job: LoadJob, bodies: Sequence[bytes], folder: Path) -> None:
    """Write both files; the scenario holds the API key, so only this user can read it.

    Args:
        job: The step, the server and the secrets.
        bodies: The requests in order, each sent once; a file with too few would silently end the run.
        folder: Where the files go, and later the report; GuideLLM must run in it, since their paths are relative.
    """
    lines = [json.loads(body) for body in bodies]
    with (folder / PROMPTS).open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps({name: line[name] for name in _PROMPT_FIELDS if name in line}) + "\n")
    scenario = folder / SCENARIO
    scenario.touch(mode=0o600)
    scenario.write_text(json.dumps(_scenario(job, _common_fields(job.step, lines), len(lines))))


def reverse_words(body: bytes) -> bytes:
    """The same request with its prompt's words from back to front: as long, and in no prefix cache."""
    fields = json.loads(body)
    message = fields["messages"][0] if "messages" in fields else fields
    name = "content" if "messages" in fields else "prompt"
    message[name] = " ".join(reversed(message[name].split(" ")))
    return json.dumps(fields).encode()


def _scenario(job: LoadJob, fields: dict[str, Any], requests: int) -> dict[str, Any]:
    step = job.step
    backend = {
        "kind": "openai_http",
        "target": job.base_url,
        "model": step.model,
        "request_format": _FORMATS[step.api],
        "timeout": step.request_timeout_s,
        "timeout_connect": step.request_timeout_s,
        "http2": False,
        "verify": True,
        "validate_backend": False,
        "extras": {"body": fields},
    }
    if job.api_key:
        backend["api_key"] = job.api_key.reveal()
    spec = {
        "backend": backend,
        "profile": profile_of(step),
        "constraints": [{"kind": "max_requests", "count": requests}],
        "data": [{"kind": "json_file", "path": PROMPTS, "load_kwargs": {"split": "train"}}],
        "seed": {"kind": "static", "value": step.seed},
        "outputs": [{"kind": "json", "path": REPORT}],
    }
    return {"metadata": {"labels": {"step": step.id}}, "spec": spec}


def profile_of(step: LoadStep) -> dict[str, Any]:
    """GuideLLM's profile of a step's load."""
    if not step.open_loop:
        return {"kind": "concurrent", "streams": [step.concurrency]}
    return {"kind": "constant" if step.arrivals == CONSTANT else "poisson", "rate": [step.request_rate]}


def _common_fields(step: LoadStep, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What all bodies have in common besides the prompt: GuideLLM adds the same to each."""
    prompts = (*_PROMPT_FIELDS, *_OWN_FIELDS)
    kinds = [{name: value for name, value in line.items() if name not in prompts} for line in lines]
    if any(kind != kinds[0] for kind in kinds):
        raise ConfigError(
            f"step {step.id}: bodies: their parameters differ; GuideLLM sends the same with every request"
        )
    return kinds[0]

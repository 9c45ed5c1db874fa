"""What every worker of a step reads: the step, how its prompts are made, and where they go. It holds no secret."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.driver import LoadJob
from pytest_vllm_stage.load.prompts import PromptMaker, make_body
from pytest_vllm_stage.load.workers.share import Share
from pytest_vllm_stage.measurement.step import LoadStep, step_from_json

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Assignment:
    """A step for several workers.

    Attributes:
        step: The whole step.
        requests: How many bodies the whole step needs.
        workers: How many workers share it.
        overhead: See `PromptMaker`.
        words: See `PromptMaker`.
        base_url: Root of the server as the workers reach it.
        metrics_url: See `LoadJob`.
        gpu_metrics_url: See `LoadJob`.
    """

    step: LoadStep
    requests: int
    workers: int
    overhead: int
    words: tuple[str, ...]
    base_url: str
    metrics_url: str | None = None
    gpu_metrics_url: str | None = None

    def to_text(self) -> str:
        """The text that `parse_assignment` reads."""
        plain = {name: value for name, value in vars(self).items() if name != "step"}
        return json.dumps({"schema_version": SCHEMA_VERSION, "step": self.step.to_json(), **plain})

    def job(self, worker: int, ca_file: str | None, api_key: Secret | None, gpu_token: Secret | None) -> LoadJob:
        """One worker's job; the engine's metrics are worker 0's to read."""
        share = Share(worker, self.workers)
        maker = PromptMaker(self.overhead, self.words, _count_nothing)
        return LoadJob(
            step=self.step,
            base_url=self.base_url,
            bodies=_select(self.step, maker, share, self.requests, "step"),
            warmup_bodies=_select(self.step, maker, share, self.step.warmup_requests, "warm-up"),
            api_key=api_key,
            ca_file=ca_file,
            metrics_url=self.metrics_url,
            gpu_metrics_url=self.gpu_metrics_url,
            gpu_metrics_token=gpu_token,
            share=share,
        )


def _select(step: LoadStep, maker: PromptMaker, share: Share, requests: int, purpose: str) -> list[bytes]:
    """The share's bodies: all texts are made, since each depends on those before it, and few are kept."""
    own = set(share.places(step, requests))
    texts = maker.unchecked_texts(step, requests, purpose)
    return [make_body(step, text) for place, text in enumerate(texts) if place in own]


def _count_nothing(_text: str) -> int:
    raise AssertionError("a worker's prompts were counted before")


def parse_assignment(text: str) -> Assignment:
    """Read an assignment.

    Raises:
        ConfigError: it is another version's.
    """
    data: dict[str, Any] = json.loads(text)
    version = data.pop("schema_version", None)
    if version != SCHEMA_VERSION:
        raise ConfigError(f"the assignment's schema_version: expected {SCHEMA_VERSION}, got {version!r}")
    return Assignment(**data | {"step": step_from_json(data["step"]), "words": tuple(data["words"])})

"""Everything that a step needs before its first request: prompts counted by the server, bodies ready to send."""

from __future__ import annotations

import math
import time
from typing import Any

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.driver import Job
from pytest_vllm_stage.load.prompts import Count, PromptMaker, body_of, prompt_maker
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.serving.client import Client, RequestFailed

#: A closed loop gets bodies for this many times the requests that the fastest lone answer allows.
_RESERVE = 1.5
_PROBES = 3


def maker_for(client: Client, api: str) -> PromptMaker:
    """A prompt maker that counts as this server does; to be kept for all steps of a target.

    Raises:
        StageFailure: the server has no usable ``/tokenize``.
    """
    return prompt_maker(_count(client, api))


def _count(client: Client, api: str) -> Count:
    def count(text: str) -> int:
        try:
            tokens = client.tokenize(messages=text) if api == "chat" else client.tokenize(text)
        except RequestFailed as error:
            raise StageFailure(
                f"prompts of an exact length need the server's tokenizer: {error.message}",
                hint=f"curl -s {client.target.base_url}/tokenize",
            ) from None
        return tokens.count

    return count


def prepare(
    step: LoadStep,
    client: Client,
    maker: PromptMaker,
    *,
    metrics_url: str | None = None,
    gpu_metrics_url: str | None = None,
    gpu_metrics_token: Secret | None = None,
    facts: dict[str, Any] | None = None,
) -> Job:
    """Make the job of a step.

    Args:
        step: The plan.
        client: The target's.
        maker: See `maker_for`.
        metrics_url: Where the engine's metrics are, if not at the target.
        gpu_metrics_url: A DCGM exporter's page, or the root of a Prometheus.
        gpu_metrics_token: Sent there as bearer token.
        facts: What makes runs comparable, and labels; goes into the measurement.
    """
    warmup = [body_of(step, text) for text in maker.texts(step, step.warmup_requests, "warm-up")]
    planned = step.planned_requests
    count = planned if planned is not None else _most_requests(step, client, maker)
    return Job(
        step=step,
        base_url=client.target.base_url,
        bodies=[body_of(step, text) for text in maker.texts(step, count, "step")],
        warmup_bodies=warmup,
        api_key=client.target.api_key,
        ca_file=client.target.ca_file,
        metrics_url=metrics_url,
        gpu_metrics_url=gpu_metrics_url,
        gpu_metrics_token=gpu_metrics_token,
        facts=facts or {},
    )


def _most_requests(step: LoadStep, client: Client, maker: PromptMaker) -> int:
    """How many requests a closed loop can make at most: no answer comes faster than a lone one."""
    fastest_s = math.inf
    for text in maker.texts(step, _PROBES, "probe"):
        parameters = {"max_tokens": step.output_tokens, "min_tokens": step.output_tokens, "ignore_eos": True}
        sent_s = time.perf_counter()
        if step.api == "chat":
            client.chat(text, **parameters)
        else:
            client.completion(text, **parameters)
        fastest_s = min(fastest_s, time.perf_counter() - sent_s)
    users = step.concurrency or 1
    return users + math.ceil(_RESERVE * users * step.duration_s / fastest_s)

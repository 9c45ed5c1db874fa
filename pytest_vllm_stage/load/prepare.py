"""Everything that a step needs before its first request: prompts counted by the server, bodies ready to send."""

from __future__ import annotations

import math
import time
from typing import Any

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.driver import LoadJob
from pytest_vllm_stage.load.prompts import CHECKED, Count, PromptMaker, make_body, make_prompt_maker, pace_key
from pytest_vllm_stage.load.workers.assignment import Assignment
from pytest_vllm_stage.load.workers.share import count_workers
from pytest_vllm_stage.measurement.samples import Measurement
from pytest_vllm_stage.measurement.step import LoadStep
from pytest_vllm_stage.serving.client import EndpointClient, RequestFailed

#: A closed loop gets bodies for this many times the requests that the fastest lone answer allows.
_RESERVE = 1.5
#: A short step gets bodies for so many times these, up to `_FEW`: the lone answer may have come while the machine did
#: something else, and a step that runs out of prompts has no verdict.
_LARGE_RESERVE, _FEW = 6, 600
#: A server that answered a step of the same lengths so short a time ago needs no warm-up.
WARM_FOR_S = 30.0


def create_prompt_maker(client: EndpointClient, api: str) -> PromptMaker:
    """Create a prompt maker that uses this server's tokenizer; to be reused for all steps of a target.

    Raises:
        StageFailure: the server has no usable ``/tokenize``.
    """
    return make_prompt_maker(_count(client, api))


def _count(client: EndpointClient, api: str) -> Count:
    def count(text: str) -> int:
        try:
            tokens = client.tokenize(messages=text) if api == "chat" else client.tokenize(text)
        except RequestFailed as error:
            hint = f"curl -s {client.target.base_url}/tokenize"
            if api == "chat" and "chat template" in error.body:
                hint = 'a base model has no chat template: set api = "completions" in the load table of its profile'
            raise StageFailure(
                f"prompts of an exact length need the server's tokenizer: {error.message}", hint=hint
            ) from None
        return tokens.count

    return count


def prepare(
    step: LoadStep,
    client: EndpointClient,
    maker: PromptMaker,
    *,
    metrics_url: str | None = None,
    gpu_metrics_url: str | None = None,
    gpu_metrics_token: Secret | None = None,
    facts: dict[str, Any] | None = None,
    always_warm_up: bool = False,
) -> LoadJob:
    """Make the job of a step.

    It has a warm-up unless the server is warm from a step that has just ended. A prefix that the step's prompts share
    is its own, and comes into the server's cache by the warm-up.

    Args:
        step: The plan.
        client: The target's.
        maker: See `create_prompt_maker`.
        metrics_url: Where the engine's metrics are, if not at the target.
        gpu_metrics_url: A DCGM exporter's page, or the root of a Prometheus.
        gpu_metrics_token: Sent there as bearer token.
        facts: What makes runs comparable, and labels; goes into the measurement.
        always_warm_up: The driver needs the warm-up's answers.
    """
    warm = not always_warm_up and not step.shared_prefix_tokens and _is_warm(step, maker)
    warmup = [make_body(step, text) for text in maker.texts(step, 0 if warm else step.warmup_requests, "warm-up")]
    texts = maker.texts(step, count_requests(step, client, maker), "step")
    return LoadJob(
        step=step,
        base_url=client.target.base_url,
        bodies=[make_body(step, text) for text in texts],
        warmup_bodies=warmup,
        api_key=client.target.api_key,
        ca_file=client.target.ca_file,
        metrics_url=metrics_url,
        gpu_metrics_url=gpu_metrics_url,
        gpu_metrics_token=gpu_metrics_token,
        facts=facts or {},
    )


def count_requests(step: LoadStep, client: EndpointClient, maker: PromptMaker) -> int:
    """How many prompts a step needs at most."""
    planned = step.planned_requests
    return planned if planned is not None else most_requests(step, fastest_answer_s(step, client, maker))


def prepare_shared(
    step: LoadStep, client: EndpointClient, maker: PromptMaker, *, workers: int, base_url: str, gpu_metrics: str | None
) -> Assignment:
    """Make what several workers need for a step: each makes its own prompts, of which the server counts some here.

    Args:
        step: The plan.
        client: The target's.
        maker: See `create_prompt_maker`.
        workers: How many workers share it, as far as each has something to send.
        base_url: Root of the server as the workers reach it.
        gpu_metrics: A DCGM exporter's page, or the root of a Prometheus, as the workers reach it.
    """
    requests = count_requests(step, client, maker)
    for purpose, count in (("warm-up", step.warmup_requests), ("step", requests)):
        maker.texts(step, min(count, CHECKED), purpose)
    return Assignment(
        step=step,
        requests=requests,
        workers=count_workers(step, workers),
        overhead=maker.overhead,
        words=maker.words,
        base_url=base_url,
        gpu_metrics_url=gpu_metrics,
    )


def most_requests(step: LoadStep, fastest_s: float) -> int:
    """How many requests a closed loop can make at most: no answer comes faster than a lone one."""
    users = step.concurrency or 1
    expected = users * step.duration_s / fastest_s
    return users + math.ceil(max(_RESERVE * expected, min(_LARGE_RESERVE * expected, _FEW)))


def fastest_answer_s(step: LoadStep, client: EndpointClient, maker: PromptMaker) -> float:
    """How long the fastest answer of the step's lengths takes, as far as is known of the target.

    Known from steps that were measured before; only the first step of a target and of its lengths sends a request: one
    whole answer, after a short one that absorbs the server's work on its first request.
    """
    known = maker.fastest_s.get(pace_key(step))
    if known is not None:
        return known
    short, whole = maker.texts(step, 2, "probe")
    _ask(step, client, short, 1)
    sent_s = time.perf_counter()
    _ask(step, client, whole, step.output_tokens)
    maker.learn(step, time.perf_counter() - sent_s)
    return maker.fastest_s[pace_key(step)]


def _ask(step: LoadStep, client: EndpointClient, text: str, tokens: int) -> None:
    parameters = {"max_tokens": tokens, "min_tokens": tokens, "ignore_eos": True}
    if step.api != "chat":
        client.completion(text, **parameters)
        return
    reasons = client.reasons
    # The first token of a model that reasons may only begin its reasoning.
    client.reasons = True
    try:
        client.chat(text, **parameters)
    finally:
        client.reasons = reasons


def _is_warm(step: LoadStep, maker: PromptMaker) -> bool:
    answered_at_s = maker.answered_at_s.get(pace_key(step))
    return answered_at_s is not None and time.monotonic() - answered_at_s < WARM_FOR_S


def learn_from(measurement: Measurement, maker: PromptMaker) -> None:
    """Record how fast answers of these lengths were, and when, so that later steps need no request for it."""
    answered = [one.end_s - (one.sent_s or one.scheduled_s) for one in measurement.samples if one.failure is None]
    if answered and min(answered) > 0:
        maker.learn(measurement.step, min(answered))
        maker.answered_at_s[pace_key(measurement.step)] = time.monotonic()

"""Whether an engine answers at all: a server that accepts requests and never answers is named once, in bounded time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor, wait

from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.failures import RequestFailed

#: Seconds without an answer, and without a token for anybody, after which an engine counts as dead. The first answer
#: after a start may compile kernels for half a minute.
ANSWER_TIMEOUT_S = 60.0
#: The share of it after which the server is asked for its state, while the request still waits.
OBSERVED_AFTER = 0.9
#: Seconds for each question about a server that does not answer.
QUESTION_TIMEOUT_S = 5.0


def find_dead_engine(endpoint: EndpointClient) -> str:
    """What a server that accepts requests and answers none looks like; empty where it answers or fails at once."""
    before = _generated_tokens(endpoint)
    with endpoint.with_new_connections(silence_timeout_s=ANSWER_TIMEOUT_S) as client, ThreadPoolExecutor(1) as pool:
        probe = pool.submit(client.chat, "Say hello.", max_tokens=1)
        wait([probe], timeout=ANSWER_TIMEOUT_S * OBSERVED_AFTER)
        # The queue holds the probe for as long as its client waits.
        seen = "" if probe.done() else f"{_describe_health(endpoint)}, {_describe_queue(endpoint)}"
        error = probe.exception()
    # Any other failure comes at once, and each check names it itself.
    is_silent = isinstance(error, RequestFailed) and "ReadTimeout" in error.message
    if not is_silent or (before is not None and _generated_tokens(endpoint) != before):
        return ""
    return f"{seen}, none answered in {ANSWER_TIMEOUT_S:g} s"


def _describe_health(endpoint: EndpointClient) -> str:
    with endpoint.with_new_connections(silence_timeout_s=QUESTION_TIMEOUT_S) as client:
        try:
            return f"/health is {client.raw('GET', '/health').status_code}"
        except RequestFailed:
            return f"/health does not answer in {QUESTION_TIMEOUT_S:g} s"


def _describe_queue(endpoint: EndpointClient) -> str:
    with endpoint.with_new_connections(silence_timeout_s=QUESTION_TIMEOUT_S) as client:
        try:
            metrics = client.metrics()
            running, waiting = (
                int(metrics.value(f"vllm:num_requests_{state}", model_name=endpoint.target.model))
                for state in ("running", "waiting")
            )
        except (RequestFailed, LookupError, ValueError):
            return "/metrics does not say how many requests wait"
    return f"{running} requests run and {waiting} wait"


def _generated_tokens(endpoint: EndpointClient) -> float | None:
    with endpoint.with_new_connections(silence_timeout_s=QUESTION_TIMEOUT_S) as client:
        try:
            return client.metrics().value("vllm:generation_tokens", model_name=endpoint.target.model)
        except (RequestFailed, LookupError, ValueError):
            return None

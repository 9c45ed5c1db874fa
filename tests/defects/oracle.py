"""The plain oracle that many smoke tests are: one request, status 200, and an answer that is not empty."""

from __future__ import annotations

from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.serving.client import EndpointClient, RequestFailed, Target
from tests.defects.runner import KEY, MODEL


def says_something(url: str) -> bool:
    """Whether the server gives one answer that is not empty."""
    with EndpointClient(Target("oracle", MODEL, url, api_key=Secret(KEY))) as client:
        try:
            return bool(client.chat("Say hello.", max_tokens=16).text.strip())
        except RequestFailed:
            return False

"""A step made ready against a server: what is asked of it, and what it must be able to answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.prepare import maker_for, prepare
from pytest_vllm_stage.measurement.step import CLOSED
from pytest_vllm_stage.serving.client import Client
from pytest_vllm_stage.serving.target import Target
from tests.unit.made_samples import open_step
from tests.unit.sim_engine import Sim, running_sim


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with running_sim("--ttft-ms", "5", "--itl-ms", "1") as sim, Client(target(sim)) as made:
        yield made


def target(sim: Sim) -> Target:
    return Target("full", "sim", sim.url, api_key=Secret("key"), ca_file=None)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_every_prompt_has_the_length_that_the_server_counts(client: Client, api: str) -> None:
    step = open_step(20, 1, model="sim", api=api, warmup_requests=4)
    job = prepare(
        step, client, maker_for(client, api), facts={"gpu": "none"}, gpu_metrics_url="http://gpu:9400/metrics"
    )
    assert (len(job.bodies), len(job.warmup_bodies)) == (20, 4)
    for raw in (*job.bodies, *job.warmup_bodies):
        body = json.loads(raw)
        if api == "chat":
            counted = client.tokenize(messages=body["messages"]).count
        else:
            counted = client.tokenize(body["prompt"]).count
        assert counted == 64
    assert len({*job.bodies, *job.warmup_bodies}) == 24
    assert (job.base_url, job.facts, job.gpu_metrics_url) == (
        client.target.base_url,
        {"gpu": "none"},
        "http://gpu:9400/metrics",
    )
    assert job.api_key == Secret("key")


def test_a_closed_loop_gets_more_prompts_than_it_can_use(client: Client) -> None:
    step = replace(open_step(), model="sim", arrivals=CLOSED, request_rate=None, concurrency=3, duration_s=0.5)
    job = prepare(step, client, maker_for(client, "chat"))
    fastest_s = 0.005 + 64 / 20_000 + 15 * 0.001
    assert 3 < len(job.bodies) <= 3 + 1.5 * 3 * 0.5 / fastest_s + 1


def test_a_server_without_a_tokenizer_is_refused() -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(404, json={"detail": "Not Found"}))
    wanted = "prompts of an exact length need the server's tokenizer: POST /tokenize"
    with (
        Client(Target("full", "m", "http://server"), transport=transport) as bare,
        pytest.raises(StageFailure, match=wanted),
    ):
        maker_for(bare, "chat")

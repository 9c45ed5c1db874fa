"""A step made ready against a server: what is asked of it, and what it must be able to answer."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import httpx
import pytest

from pytest_vllm_stage.core.errors import StageFailure
from pytest_vllm_stage.core.secret import Secret
from pytest_vllm_stage.load.prepare import (
    WARM_FOR_S,
    create_prompt_maker,
    fastest_answer_s,
    learn_from,
    most_requests,
    prepare,
)
from pytest_vllm_stage.load.prompts import make_prompt_maker, pace_key
from pytest_vllm_stage.measurement.step import CLOSED
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.target import Target
from tests.unit.made_samples import closed_step, failed, measurement, open_step, sample
from tests.unit.sim_engine import Sim, running_sim


@pytest.fixture(scope="module")
def client() -> Iterator[EndpointClient]:
    with running_sim("--ttft-ms", "5", "--itl-ms", "1") as sim, EndpointClient(target(sim)) as made:
        yield made


def target(sim: Sim) -> Target:
    return Target("full", "sim", sim.url, api_key=Secret("key"), ca_file=None)


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_every_prompt_has_the_length_that_the_server_counts(client: EndpointClient, api: str) -> None:
    step = open_step(20, 1, model="sim", api=api, warmup_requests=4)
    job = prepare(
        step, client, create_prompt_maker(client, api), facts={"gpu": "none"}, gpu_metrics_url="http://gpu:9400/metrics"
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


def test_a_closed_loop_gets_more_prompts_than_it_can_use(client: EndpointClient) -> None:
    step = replace(open_step(), model="sim", arrivals=CLOSED, request_rate=None, concurrency=3, duration_s=0.5)
    job = prepare(step, client, create_prompt_maker(client, "chat"))
    fastest_s = 0.005 + 64 / 20_000 + 15 * 0.001
    assert 3 < len(job.bodies) <= 3 + 6 * 3 * 0.5 / fastest_s + 1


@pytest.mark.parametrize(
    ("users", "duration_s", "fastest_s", "prompts"),
    [(1, 15.0, 1.5, 1 + 60), (10, 15.0, 0.2, 10 + 1125), (5, 15.0, 0.5, 5 + 600)],
    ids=["few, six times", "many, half more", "between"],
)
def test_a_slow_probe_leaves_a_short_step_enough_prompts(
    users: int, duration_s: float, fastest_s: float, prompts: int
) -> None:
    step = replace(open_step(), arrivals=CLOSED, request_rate=None, concurrency=users, duration_s=duration_s)
    assert most_requests(step, fastest_s) == prompts


class Counted:
    """A server that counts what it is asked: prompts of words that are one token each, and slow answers."""

    def __init__(self) -> None:
        self.tokenized = 0
        self.answered: list[int] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content)
        words = len(body["messages"][0]["content"].split())
        if request.url.path == "/tokenize":
            self.tokenized += 1
            return httpx.Response(200, json={"tokens": [], "count": 10 + words, "max_model_len": 4096})
        self.answered.append(body["max_tokens"])
        message = {"role": "assistant", "content": "a"}
        choice = {"index": 0, "message": message, "finish_reason": "length"}
        usage = {"prompt_tokens": 10 + words, "completion_tokens": body["max_tokens"], "total_tokens": 0}
        return httpx.Response(200, json={"id": "1", "model": "sim", "choices": [choice], "usage": usage})


def test_known_pace_of_a_target_needs_no_request() -> None:
    """Three whole answers one after another before each closed loop took 13.7 s on a GPU with answers of 4.6 s."""
    server = Counted()
    users = closed_step(5, 0.01, model="sim", warmup_requests=20)
    with EndpointClient(Target("full", "sim", "http://server"), transport=httpx.MockTransport(server)) as client:
        maker = create_prompt_maker(client, "chat")
        asked = server.tokenized
        prepare(users, client, maker)
        assert server.answered == [1, users.output_tokens], "one whole answer, and a short one before it"
        first = server.tokenized - asked
        prepare(replace(users, concurrency=10, seed=2), client, maker)
        assert server.answered == [1, users.output_tokens]
        assert server.tokenized - asked - first == 2, "one prompt of the warm-up and one of the step"


def test_the_pace_of_earlier_steps_spares_the_question() -> None:
    server = Counted()
    with EndpointClient(Target("full", "sim", "http://server"), transport=httpx.MockTransport(server)) as client:
        maker = create_prompt_maker(client, "chat")
        step = open_step(2, 10, model="sim")
        learn_from(measurement(step, [sample(i, i / 2, ttft_s=0.5 - i / 100) for i in range(20)]), maker)
        users = closed_step(5, 10, model="sim")
        assert fastest_answer_s(users, client, maker) == pytest.approx(0.31 + 0.15, abs=0.001)
        assert server.answered == []
        assert fastest_answer_s(replace(users, output_tokens=8), client, maker) > 0
        assert server.answered == [1, 8], "other lengths have another pace"


def test_step_soon_after_another_one_of_its_lengths_has_no_warm_up() -> None:
    with EndpointClient(Target("full", "sim", "http://server"), transport=httpx.MockTransport(Counted())) as client:
        maker = create_prompt_maker(client, "chat")
        step = open_step(2, 10, model="sim", warmup_requests=4)
        shared = replace(step, shared_prefix_tokens=32)
        assert len(prepare(step, client, maker).warmup_bodies) == 4, "nothing was answered yet"
        learn_from(measurement(step, [failed(0, 0.0)]), maker)
        assert len(prepare(step, client, maker).warmup_bodies) == 4, "still nothing was answered"
        learn_from(measurement(step, [sample(0, 0.0)]), maker)
        assert prepare(replace(step, request_rate=4.0), client, maker).warmup_bodies == []
        assert len(prepare(replace(step, output_tokens=8), client, maker).warmup_bodies) == 4, "other lengths"
        assert len(prepare(shared, client, maker).warmup_bodies) == 4, "its prefix is not in the cache yet"
        assert len(prepare(step, client, maker, always_warm_up=True).warmup_bodies) == 4
        maker.answered_at_s[pace_key(step)] -= WARM_FOR_S
        assert len(prepare(step, client, maker).warmup_bodies) == 4, "too long ago"


def test_a_server_without_a_tokenizer_is_refused() -> None:
    transport = httpx.MockTransport(lambda _request: httpx.Response(404, json={"detail": "Not Found"}))
    wanted = "prompts of an exact length need the server's tokenizer: POST /tokenize"
    with (
        EndpointClient(Target("full", "m", "http://server"), transport=transport) as bare,
        pytest.raises(StageFailure, match=wanted),
    ):
        create_prompt_maker(bare, "chat")


def test_model_without_a_chat_template_is_to_be_asked_for_completions() -> None:
    refusal = {"error": {"message": "you must provide a chat template if the tokenizer does not define one."}}
    transport = httpx.MockTransport(lambda _request: httpx.Response(400, json=refusal))
    with (
        EndpointClient(Target("full", "m", "http://server"), transport=transport) as base,
        pytest.raises(StageFailure) as caught,
    ):
        create_prompt_maker(base, "chat").texts(open_step(), 1, "step")
    assert 'set api = "completions" in the load table' in caught.value.hint


def test_first_token_of_a_reasoning_model_may_have_no_text() -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        tokens = json.loads(request.content).get("max_tokens")
        message = {"content": None, "reasoning": None if tokens == 1 else "The user"}
        return httpx.Response(200, json={"choices": [{"message": message}]})

    step = replace(open_step(), model="m", arrivals=CLOSED, request_rate=None, concurrency=3)
    maker = make_prompt_maker(lambda text: len(text.split()) + 2)
    with EndpointClient(Target("full", "m", "http://server"), transport=httpx.MockTransport(answer)) as client:
        assert fastest_answer_s(step, client, maker) > 0
        assert not client.reasons

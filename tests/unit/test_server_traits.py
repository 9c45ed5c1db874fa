"""What distinguishes the servers behind one address: release, card, template and scores, but not a batch's rounding."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from pytest_vllm_stage.checks.inference.traits import ServerTraits, find_other_trait, read_traits
from pytest_vllm_stage.serving.client import EndpointClient, Target

STATED = {"GET /version": "0.32.0", "GET /v1/models": {"max_model_len": 2048}}
SCORES = {" cold": -0.5, " wet": -1.5}


def traits(scores: dict[str, float], stated: dict[str, Any] | None = None) -> ServerTraits:
    return ServerTraits(STATED | (stated or {}), scores)


@pytest.mark.parametrize("scores", [SCORES, {}, {" cold": -0.6, " dry": -1.4}], ids=["same", "unasked", "rounded"])
def test_replicas_of_one_model_have_no_other_trait(scores: dict[str, float]) -> None:
    assert find_other_trait(traits(SCORES), traits(scores)) == ""


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (traits(SCORES, {"GET /version": "0.19.1"}), "GET /version gives 0.19.1, the first one 0.32.0"),
        (
            traits(SCORES, {"GET /v1/models": {"max_model_len": 512}}),
            "GET /v1/models gives {'max_model_len': 512}, the first",
        ),
        (traits({" cold": -1.5, " wet": -0.5}), "other weights"),
        (traits({" dry": -0.5}), "other weights"),
    ],
    ids=["release", "card", "scores", "tokens"],
)
def test_other_release_card_or_weights_are_named(other: ServerTraits, said: str) -> None:
    assert said in find_other_trait(traits(SCORES), other)


def test_traits_of_a_model_without_template_or_logprobs_are_read() -> None:
    card = {"id": "m", "root": "/weights", "parent": None, "max_model_len": 512}
    answers: dict[str, tuple[int, dict[str, Any]]] = {
        "/v1/models": (200, {"data": [card]}),
        "/version": (200, {"version": "0.32.0"}),
        "/tokenize": (400, {"error": {"message": "no template"}}),
    }

    def answer(request: httpx.Request) -> httpx.Response:
        status, body = answers[request.url.path]
        return httpx.Response(status, content=json.dumps(body))

    target = Target("full", "m", "http://server")
    with EndpointClient(target, transport=httpx.MockTransport(answer)) as endpoint:
        found = read_traits(endpoint, scores=False)
    assert found.scores == {}
    assert list(found.stated.values()) == [
        "0.32.0",
        {"root": "/weights", "parent": None, "max_model_len": 512},
        "400",
    ]

"""What an older release cannot do follows from its version alone, and places are recognised in other languages."""

from __future__ import annotations

import httpx
import pytest

from pytest_vllm_stage.checks.inference.places import mentions_place
from pytest_vllm_stage.checks.inference.releases import describe_lack, read_release
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.target import Target


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("0.9.2", (0, 9, 2)),
        ("v0.12.1rc1.dev3+g1234", (0, 12, 1)),
        ("0.11", (0, 11, 0)),
        ("0.0.0+vllm-stage-sim", None),
        ("0.1.dev1+gabc", None),
        ("unknown", None),
    ],
)
def test_a_release_is_read_from_its_version(version: str, release: tuple[int, ...] | None) -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(200, json={"version": version}))
    with EndpointClient(Target("full", "m", "http://server"), transport=transport) as endpoint:
        assert read_release(endpoint) == release


def test_a_server_without_a_version_has_every_capability() -> None:
    transport = httpx.MockTransport(lambda _: httpx.Response(404))
    with EndpointClient(Target("full", "m", "http://server"), transport=transport) as endpoint:
        assert describe_lack("structured_outputs", read_release(endpoint)) == ""


def test_a_release_lacks_what_came_later() -> None:
    assert describe_lack("structured_outputs", (0, 10, 2)) == (
        "vLLM 0.10.2 has no structured_outputs, which came with 0.11.0"
    )
    assert describe_lack("token_ids", (0, 10, 1)).startswith("vLLM 0.10.1 has no return_token_ids")
    assert describe_lack("tools", (0, 8, 3)) == describe_lack("logprobs", (0, 6, 0)) == ""


def test_places_are_recognised_in_other_languages_and_not_in_other_words() -> None:
    for text in ("Paris.", "La capital es París", "Die Hauptstadt ist Paris", "首都是巴黎", "Столица Франции — Париж"):
        assert mentions_place(text, "Paris"), text
    assert mentions_place("Die Hauptstadt ist Rom.", "Rome")
    for text in ("It comes from there.", "a romantic prompt", "London"):
        assert not mentions_place(text, "Rome"), text
        assert not mentions_place(text, "Paris"), text

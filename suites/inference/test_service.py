"""The server around the model: alive, counted, guarded, and speaking HTTP as clients and proxies expect it."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import httpx
import pytest

from pytest_vllm_stage import EndpointClient, does_not_apply
from pytest_vllm_stage.checks.inference.patterns import pattern
from pytest_vllm_stage.checks.inference.together import is_counted, together
from pytest_vllm_stage.checks.inference.traits import ServerTraits, find_other_trait, read_traits
from pytest_vllm_stage.serving.client import CHAT, COMPLETIONS, RequestFailed

Needs = Callable[..., None]

#: Clocks differ, and time stamps in another unit differ by factors.
CLOCK_TOLERANCE_S = timedelta(days=1).total_seconds()

#: What Prometheus reads.
METRICS_TYPES = ("text/plain", "application/openmetrics-text")

#: One of two routers that are chosen at random is missed once in 256 runs.
NEW_CONNECTIONS = 8


@pytest.mark.smoke
def test_engine_answers(endpoint: EndpointClient, dead_engine: str, lacks: dict[str, str]) -> None:
    """A request is answered in bounded time, whatever ``/health`` says.

    A server whose engine hangs accepts requests and answers none, and every client waits for its own time-out.
    """
    assert not dead_engine, dead_engine
    ask = endpoint.completion if "chat" in lacks else endpoint.chat
    ask("Say hello.", max_tokens=1)


@pytest.mark.smoke
def test_health_and_version_are_reported(endpoint: EndpointClient) -> None:
    """``/health`` is 200 and ``/version`` names a version.

    Probes and load balancers take an unhealthy server out; a version that is not known makes no bug report useful.
    """
    endpoint.health()
    version = endpoint.version()
    assert version[:1].isdigit(), f"/version reports {version!r}, which is not a version"


@pytest.mark.smoke
def test_responses_have_their_content_type(endpoint: EndpointClient, lacks: dict[str, str]) -> None:
    """Answers and errors are ``application/json``, streams ``text/event-stream``, metrics a format of Prometheus.

    Clients choose their parser by it, proxies whether they may buffer, compress or cache; Prometheus refuses others.
    """
    chat = endpoint.chat_body("Say hello.", max_tokens=1, temperature=0)
    completion = endpoint.completion_body("Hello", max_tokens=1, temperature=0)
    requests = {
        "an answer": (CHAT, chat, "application/json"),
        "a stream": (CHAT, {**chat, "stream": True}, "text/event-stream"),
        "an error": (CHAT, {**chat, "max_tokens": -1}, "application/json"),
        "a completion": (COMPLETIONS, completion, "application/json"),
        "a stream of a completion": (COMPLETIONS, {**completion, "stream": True}, "text/event-stream"),
    }
    for what, (path, sent, expected) in requests.items():
        if path == CHAT and "chat" in lacks:
            continue
        said = endpoint.raw("POST", path, json=sent).headers.get("content-type", "")
        kind, _, parameters = said.partition(";")
        assert kind.strip() == expected, f"{what} has content type {said!r}, expected {expected}"
        charset = parameters.lower().partition("charset=")[2].strip(" \"';")
        assert charset in ("", "utf-8", "utf8"), f"{what} is in UTF-8, and its content type says {said!r}"
    metrics = endpoint.raw("GET", "/metrics")
    said = metrics.headers.get("content-type", "")
    known = said.partition(";")[0].strip() in METRICS_TYPES
    assert known or metrics.status_code != 200, f"/metrics has content type {said!r}, expected {METRICS_TYPES[0]}"


def test_created_is_the_time_of_the_answer(endpoint: EndpointClient) -> None:
    """``created`` is in whole seconds since 1970, about now, and the same in all chunks of a stream.

    Logs and bills are put in order by it; milliseconds or zero put them into another age.
    """
    apis = ((endpoint.chat, endpoint.stream_chat), (endpoint.completion, endpoint.stream_completion))
    for ask, ask_stream in apis:
        body = ask("Say hello.", max_tokens=1, temperature=0, ignore_eos=True).body
        chunks = ask_stream("Say hello.", max_tokens=4, temperature=0).read().chunks
        said = {chunk.get("created") for chunk in chunks}
        assert len(said) == 1, f"the chunks of one stream were created at {sorted(map(str, said))}"
        for created in (body.get("created"), *said):
            assert type(created) is int, f"created is {created!r}, not an integer"
            off_s = abs(created - time.time())
            assert off_s < CLOCK_TOLERANCE_S, f"created is {created}: {off_s:.0f} s from now, {time.time():.0f}"


def test_no_two_answers_share_an_id(endpoint: EndpointClient) -> None:
    """Of twelve answers, asked for eight at a time, each has an id of its own.

    Logs, traces and bills are joined by it: an id that comes again adds one user's tokens to another's.
    """
    answers = together(lambda i: endpoint.completion(pattern(i).prompt(), max_tokens=1), range(12), at_once=8)
    ids = [answer.body.get("id") for answer in answers]
    repeated = sorted({str(id_) for id_ in ids if ids.count(id_) > 1})
    assert not repeated, f"{len(ids)} answers carry only {len(set(ids))} ids; these came more than once: {repeated}"


@pytest.mark.smoke
def test_metrics_count_what_is_served(endpoint: EndpointClient, needs: Needs) -> None:
    """After one answer, ``/metrics`` has counted it: at least one request more, and at least its tokens.

    Autoscaling, alerts and this project's own benchmark read these series; when they stand still, no alert fires.
    Others may use the server meanwhile, so more may be counted, never less.
    """
    needs("metrics")
    before = endpoint.metrics()
    usage = endpoint.completion(pattern(0).prompt(), temperature=0, max_tokens=5, ignore_eos=True).usage
    expected = {
        "vllm:request_success": 1,
        "vllm:prompt_tokens": usage.prompt_tokens,
        "vllm:generation_tokens": usage.completion_tokens,
        "vllm:time_to_first_token_seconds_count": 1,
        "vllm:inter_token_latency_seconds_count": 1,
        "vllm:e2e_request_latency_seconds_count": 1,
    }

    def lacking() -> dict[str, str]:
        after, model = endpoint.metrics(), endpoint.target.model
        counted = {
            name: after.value(name, model_name=model) - before.value(name, model_name=model) for name in expected
        }
        return {name: f"{counted[name]:g} of {expected[name]}" for name in expected if counted[name] < expected[name]}

    assert is_counted(lambda: not lacking()), f"served, but not counted in /metrics: {lacking()}"


def test_request_without_the_key_is_refused(endpoint: EndpointClient) -> None:
    """Where a key is configured, a request without it or with another one gives 401, and with it an answer.

    A gateway that accepts every client looks healthy until the bill arrives; one that compares the beginning of a key,
    or guards one API of two, looks guarded as well.
    """
    if endpoint.target.api_key is None:
        does_not_apply("no key is configured for this endpoint (VLLM_STAGE_API_KEY)")
    key = endpoint.target.api_key.reveal()
    asked: dict[str, dict[str, str]] = {
        "without a key": {},
        "with a wrong key": {"authorization": "Bearer wrong"},
        "with an empty key": {"authorization": "Bearer"},
        "with the key and a letter more": {"authorization": f"Bearer {key}x"},
        "with the key but for its last letter": {"authorization": f"Bearer {key[:-1]}"},
    }
    with EndpointClient(dataclasses.replace(endpoint.target, api_key=None)) as anyone:
        for what, headers in asked.items():
            listing = anyone.raw("GET", "/v1/models", headers=headers)
            chat = anyone.raw("POST", CHAT, json=endpoint.chat_body("Say hello.", max_tokens=1), headers=headers)
            body = endpoint.completion_body("Hello", max_tokens=1)
            for response in (listing, chat, anyone.raw("POST", COMPLETIONS, json=body, headers=headers)):
                said = f"{response.request.url.path} answered {response.status_code} {what}"
                assert response.status_code in (401, 403), f"{said}, expected 401"
    assert endpoint.models(), "with the key, /v1/models lists nothing"


def test_connection_is_kept_for_the_next_request(endpoint: EndpointClient) -> None:
    """Four requests one after the other, a stream among them, go over one connection.

    A server that closes after each answer costs every request a new connection, over TLS two more round trips, and runs
    a busy client out of ports.
    """
    body = endpoint.completion_body(pattern(0).prompt(), max_tokens=2, temperature=0)
    used: list[Any] = []
    with EndpointClient(endpoint.target) as fresh:
        for stream in (False, True, False, True):
            response = fresh.raw("POST", COMPLETIONS, json={**body, "stream": stream})
            assert response.status_code == 200, f"{COMPLETIONS} answered {response.status_code}: {response.text[:200]}"
            used.append(address(response))
    assert None not in used, "the server closed the connection after an answer"
    assert len(set(used)) == 1, f"four requests one after the other took {len(set(used))} connections"


def test_every_new_connection_is_answered(endpoint: EndpointClient, lacks: dict[str, str]) -> None:
    """Eight connections, one after the other, each get an answer, and from the same server as far as a client can see.

    A load balancer gives each connection to one of several routers or replicas, and a client that keeps its connection
    never meets the one that has lost its servers, or that was left behind with another release, template or weights:
    there the same request gets another answer.
    """
    refused: list[str] = []
    seen: list[ServerTraits] = []
    for _ in range(NEW_CONNECTIONS):
        with EndpointClient(endpoint.target) as fresh:
            try:
                seen.append(read_traits(fresh, scores="logprobs" not in lacks))
            except RequestFailed as error:
                refused.append(error.message)
    assert not refused, f"{len(refused)} of {NEW_CONNECTIONS} new connections: {refused[0]}"
    differences = [difference for one in seen[1:] if (difference := find_other_trait(seen[0], one))]
    assert not differences, (
        f"{len(differences)} of {NEW_CONNECTIONS} new connections lead to a server that differs from the first one's: "
        f"{differences[0]}; compare the pods behind the address"
    )


def address(response: httpx.Response) -> Any:
    """The local address of the connection of a response; None once it is closed."""
    try:
        return response.extensions["network_stream"].get_extra_info("client_addr")
    except OSError:
        return None

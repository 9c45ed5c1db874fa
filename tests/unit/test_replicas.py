"""Which engine a scrape shows, and counters that are read of every replica."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from pytest_vllm_stage.benchmark import steps
from pytest_vllm_stage.checks.inference.replicas import prepare_counters
from pytest_vllm_stage.cluster import client
from pytest_vllm_stage.core.errors import EnvironmentUnusable
from pytest_vllm_stage.measurement.samples import SEVERAL_ENGINES, ServerReading
from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.metrics import parse
from pytest_vllm_stage.serving.replicas import LOOKS, ReplicaWatch
from pytest_vllm_stage.serving.target import Target
from pytest_vllm_stage.stage.objects import SERVICE_LABEL
from pytest_vllm_stage.stage.observe.reader import StageReader
from tests.unit.made_api import ApiServer, served, status
from tests.unit.made_objects import pod
from tests.unit.made_samples import measurement, open_step, sample
from tests.unit.web_server import Reply, Request, WebServer, web_server

SERVED = "vllm:request_success"


def exposition(count: float, started: float | None = None) -> str:
    line = f'{SERVED}_total{{model_name="m",finished_reason="stop"}} {count}\n'
    return line if started is None else f"{line}process_start_time_seconds {started}\n"


def alternates(texts: Sequence[str]) -> bool:
    watch = ReplicaWatch()
    for text in texts:
        watch.note(parse(text))
    return watch.alternate


@pytest.mark.parametrize(
    ("counts", "several"),
    [
        ([5, 5, 6, 9], False),
        ([5, 0, 1, 2], False),  # restarted
        ([5, 0, 5], True),
        ([3, 8, 3, 9], True),
        ([0, 0, 0], False),
    ],
)
def test_counters_that_fall_and_return_show_several_replicas(counts: list[float], several: bool) -> None:
    assert alternates([exposition(count) for count in counts]) is several


@pytest.mark.parametrize(
    ("starts", "several"), [([1, 1, 1], False), ([1, 2, 2], False), ([1, 2, 1], True), ([1, 2, 3, 2], True)]
)
def test_start_times_distinguish_replicas_with_equal_counters(starts: list[float], several: bool) -> None:
    assert alternates([exposition(7, started) for started in starts]) is several


@contextmanager
def address_of(engines: int) -> Iterator[tuple[WebServer, EndpointClient]]:
    """An address whose requests so many engines answer in turn."""
    answers = itertools.cycle(range(engines))

    def answer(_request: Request) -> Reply:
        return Reply(200, exposition(7, next(answers)))

    with web_server(answer) as server, EndpointClient(Target("full", "m", server.url)) as endpoint:
        yield server, endpoint


@pytest.mark.parametrize(("engines", "several"), [(1, False), (2, True)])
def test_an_address_of_several_engines_is_found_by_new_connections(engines: int, several: bool) -> None:
    with address_of(engines) as (server, endpoint):
        reason = prepare_counters(endpoint, None)
    assert reason.startswith(f"several replicas answer at {server.url}: ") is several
    assert len(server.requests) == (2 if several else LOOKS)


@pytest.mark.parametrize(("engines", "generated", "several"), [(2, 80, True), (1, 80, None), (2, 160, None)])
def test_a_load_step_looks_for_other_engines_where_one_has_not_sent_all_tokens(
    engines: int, generated: float, several: bool | None
) -> None:
    rows = [sample(index, index / 10) for index in range(10)]
    readings = [ServerReading(at, 1, 0, generation_tokens=at * generated) for at in (0.0, 1.0)]
    with address_of(engines) as (server, endpoint):
        found = steps._with_engines(measurement(open_step(), rows, readings), endpoint)
    assert found.facts.get(SEVERAL_ENGINES) is several
    assert bool(server.requests) is (generated < sum(one.tokens for one in rows))


def test_scrapes_without_known_series_show_nothing() -> None:
    assert not alternates(["up 1\n", "up 0\n", "up 1\n"])


def endpoint_of(texts: Sequence[str]) -> EndpointClient:
    """A client of an address whose scrapes are these texts, the last one from then on."""
    left = list(texts)

    def answer(_request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=left.pop(0) if len(left) > 1 else left[0])

    return EndpointClient(Target("full", "m", "http://m.test"), transport=httpx.MockTransport(answer))


def test_replicas_that_show_only_during_a_check_are_reported_to_it() -> None:
    reasons: list[str] = []
    endpoint = endpoint_of([exposition(7, 1), exposition(3, 2), exposition(8, 1)])
    endpoint.scrapes.on_replicas = reasons.append
    for _ in range(2):
        endpoint.metrics()
    assert reasons == []
    endpoint.metrics()
    assert reasons[0].startswith("several replicas answer at http://m.test: each scrape of /metrics shows one of them")


@contextmanager
def stage_of(folder: Path, *names: str) -> Iterator[tuple[ApiServer, StageReader]]:
    """A stage with these pods of a model, whose engines have counted 10 requests, 11, and so on."""
    with served() as api:
        for count, name in enumerate(names, 10):
            api.add(pod(name, labels={SERVICE_LABEL: "m"}))
            api.answers[f"GET {proxied(name)}"] = (200, exposition(count, count))
        facts = api.facts(folder)
        with client.connection(facts.kubeconfig, facts.context) as kube:
            yield api, StageReader(kube, facts, "ns")


def proxied(name: str) -> str:
    return f"/api/v1/namespaces/ns/pods/{name}:8080/proxy/metrics"


def test_counters_of_known_replicas_are_summed(tmp_path: Path) -> None:
    with stage_of(tmp_path, "a", "b") as (_, reader):
        endpoint = endpoint_of(["not read"])
        assert prepare_counters(endpoint, reader) == ""
        assert endpoint.scrapes.replicas is not None
        assert endpoint.scrapes.replicas.count == 2
        assert endpoint.metrics().value(SERVED, model_name="m") == 21
        with endpoint.with_new_connections() as other:
            assert other.metrics().value(SERVED, model_name="m") == 21


def test_one_replica_is_read_at_the_address(tmp_path: Path) -> None:
    with stage_of(tmp_path, "a") as (api, reader):
        endpoint = endpoint_of([exposition(4)])
        assert prepare_counters(endpoint, reader) == ""
        assert endpoint.metrics().value(SERVED, model_name="m") == 4
        assert f"GET {proxied('a')}" not in api.requests


def test_replicas_that_cannot_be_read_are_inconclusive_with_the_reason(tmp_path: Path) -> None:
    refused: tuple[int, Any] = (403, status(403, 'pods "b:8080" is forbidden: cannot get resource "pods/proxy"'))
    with stage_of(tmp_path, "a", "b") as (api, reader):
        api.answers[f"GET {proxied('b')}"] = refused
        reason = prepare_counters(endpoint_of(["not read"]), reader)
    assert reason.startswith("2 replicas serve m, and not all can be read: ")
    assert "pods/proxy" in reason


def test_pods_that_changed_are_reported_to_the_check(tmp_path: Path) -> None:
    reasons: list[str] = []
    with stage_of(tmp_path, "a", "b") as (api, reader):
        endpoint = endpoint_of(["not read"])
        assert prepare_counters(endpoint, reader) == ""
        endpoint.scrapes.on_replicas = reasons.append
        api.objects.pop(api.path_of(pod("b")))
        with pytest.raises(EnvironmentUnusable, match="the pods of m changed from a, b to a"):
            endpoint.metrics()
    assert reasons == ["the pods of m changed from a, b to a"]


def test_pods_that_an_autoscaler_adds_are_read_too(tmp_path: Path) -> None:
    with stage_of(tmp_path, "a", "b") as (api, reader):
        endpoint = endpoint_of(["not read"])
        assert prepare_counters(endpoint, reader) == ""
        api.add(pod("c", labels={SERVICE_LABEL: "m"}))
        api.answers[f"GET {proxied('c')}"] = (200, exposition(5, 5))
        assert endpoint.metrics().value(SERVED, model_name="m") == 26


def test_replicas_are_known_again_after_one_has_gone(tmp_path: Path) -> None:
    reasons: list[str] = []
    with stage_of(tmp_path, "a", "b") as (api, reader):
        endpoint = endpoint_of([exposition(4)])
        endpoint.scrapes.on_replicas = reasons.append
        assert prepare_counters(endpoint, reader) == ""
        api.objects.pop(api.path_of(pod("b")))
        assert prepare_counters(endpoint, reader) == ""
        assert endpoint.metrics().value(SERVED, model_name="m") == 4
    assert reasons == []

"""The engine's and the GPU exporter's metrics during a step: a missing series is None, never 0."""

from __future__ import annotations

import asyncio
import json
from asyncio import StreamReader, StreamWriter

import pytest

from pytest_vllm_stage.load.connections import parse_address
from pytest_vllm_stage.load.monitor import Monitor, Source, gpu_source, series
from pytest_vllm_stage.measurement.samples import ServerReading
from tests.unit.sim_engine import Handler, request_of, serving

ENGINE = b"""vllm:num_requests_running{engine="0",model_name="m"} 2.0
vllm:num_requests_waiting{engine="0",model_name="m"} 5.0
vllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25
vllm:prefix_cache_queries_total{engine="0",model_name="m"} 100.0
vllm:prefix_cache_hits_total{engine="0",model_name="m"} 40.0
vllm:generation_tokens_total{engine="0",model_name="m"} 7.0
vllm:num_requests_running{engine="0",model_name="other"} 99.0
"""
GPU = b"""DCGM_FI_DEV_FB_USED{gpu="0"} 100
DCGM_FI_DEV_FB_USED{gpu="1"} 300
DCGM_FI_DEV_GPU_UTIL{gpu="0"} 40
DCGM_FI_DEV_GPU_UTIL{gpu="1"} 60
"""


def page(body: bytes, status: bytes = b"200 OK", seen: list[bytes] | None = None) -> Handler:
    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            request = await request_of(reader)
            if seen is not None:
                seen.append(request)
            writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    return serve


#: As Prometheus 2 and 3 answer an instant query.
PROMETHEUS = json.dumps(
    {
        "status": "success",
        "data": {
            "resultType": "vector",
            "result": [
                {"metric": {"__name__": name, "gpu": gpu}, "value": [1795521624.1, value]}
                for name, gpu, value in [
                    ("DCGM_FI_DEV_FB_USED", "0", "100"),
                    ("DCGM_FI_DEV_FB_USED", "1", "300"),
                    ("DCGM_FI_DEV_GPU_UTIL", "0", "50"),
                ]
            ],
        },
    }
).encode()


async def readings(
    engine: Handler, gpu: Handler | None = None, times: int = 1, gpu_path: str = "/metrics"
) -> list[ServerReading]:
    async with serving(engine) as engine_port, serving(gpu or page(b"")) as gpu_port:
        source = Source(parse_address(f"http://127.0.0.1:{engine_port}"), model="m")
        exporter = gpu_source(parse_address(f"http://127.0.0.1:{gpu_port}{gpu_path}")) if gpu else None
        monitor = Monitor(source, exporter, 0.0, b"authorization: Bearer k\r\n", b"authorization: Bearer g\r\n")
        for _ in range(times):
            await monitor.read()
        await monitor.close()
        return monitor.readings


def test_an_engine_and_its_gpus_are_read() -> None:
    seen: list[bytes] = []
    first, second = asyncio.run(readings(page(ENGINE, seen=seen), page(GPU), times=2))
    assert (first.running, first.waiting, first.kv_cache_usage) == (2, 5, 0.25)
    assert (first.prefix_cache_queries, first.prefix_cache_hits, first.generation_tokens) == (100, 40, 7)
    assert first.gpu_memory_used_bytes == 400 * 1024 * 1024
    assert first.gpu_utilization == 0.5
    assert second.at_s > first.at_s
    assert all(b"GET /metrics HTTP/1.1" in request and b"Bearer k" in request for request in seen)


def pages(bodies: dict[bytes, bytes], seen: list[bytes]) -> Handler:
    async def serve(reader: StreamReader, writer: StreamWriter) -> None:
        while True:
            path = (await request_of(reader)).split(b" ")[1]
            seen.append(path)
            body = bodies.get(path, b"")
            status = b"200 OK" if path in bodies else b"404 Not Found"
            writer.write(b"HTTP/1.1 %b\r\ncontent-length: %d\r\n\r\n%b" % (status, len(body), body))

    return serve


def list_models(*names: str) -> bytes:
    return json.dumps({"object": "list", "data": [{"id": name} for name in names]}).encode()


FIRST_NAME = b'vllm:num_requests_running{engine="0",model_name="first"} 2.0\n'


@pytest.mark.parametrize("names", [("first", "m"), ("m", "third", "first")])
def test_series_of_a_models_first_served_name_are_its_own(names: tuple[str, ...]) -> None:
    seen: list[bytes] = []
    server = pages({b"/metrics": FIRST_NAME, b"/v1/models": list_models(*names)}, seen)
    assert [one.running for one in asyncio.run(readings(server, times=3))] == [2, 2, 2]
    assert seen.count(b"/v1/models") == 1


@pytest.mark.parametrize(
    "bodies",
    [
        {b"/metrics": FIRST_NAME},
        {b"/metrics": FIRST_NAME, b"/v1/models": list_models("first")},
        {b"/metrics": FIRST_NAME, b"/v1/models": list_models("m")},
        {b"/metrics": FIRST_NAME, b"/v1/models": b"[]"},
        {
            b"/metrics": FIRST_NAME + FIRST_NAME.replace(b"first", b"second"),
            b"/v1/models": list_models("first", "second", "m"),
        },
    ],
)
def test_series_of_another_model_are_not_taken(bodies: dict[bytes, bytes]) -> None:
    seen: list[bytes] = []
    assert [one.running for one in asyncio.run(readings(pages(bodies, seen), times=2))] == [None, None]
    assert seen.count(b"/v1/models") <= 1


@pytest.mark.parametrize(
    "line",
    [
        b"a 5",
        b"a{} 5 1795509294941",
        b'a{model_name="m"} 5',
        b'a{model_name="m",} 5.0 1795509294.9',
        b'a{le="1",model_name="m"} 5 # {trace_id="x"} 0.67 1795509294.9',
    ],
)
def test_value_of_a_series_is_read_before_its_time_stamp(line: bytes) -> None:
    page = b"# HELP a b\n" + line + b"\nab 6\na_total 7\n"
    assert series(page, b"a", b"m") == [5.0]


def test_models_are_not_listed_where_the_series_have_the_name() -> None:
    seen: list[bytes] = []
    asyncio.run(readings(pages({b"/metrics": ENGINE}, seen), times=2))
    assert seen == [b"/metrics"] * 2


def test_gpus_are_read_from_a_prometheus() -> None:
    seen: list[bytes] = []
    (only,) = asyncio.run(readings(page(ENGINE), page(PROMETHEUS, seen=seen), gpu_path="/thanos"))
    assert (only.gpu_memory_used_bytes, only.gpu_utilization) == (400 * 1024 * 1024, 0.5)
    assert seen[0].startswith(b"GET /thanos/api/v1/query?query=%7B__name__")
    assert b"Bearer g" in seen[0]


@pytest.mark.parametrize("answer", [b'{"status": "error"}', b'{"data": {"result": [1]}}', b"{", b"<html>"])
def test_prometheus_without_a_gpu_gives_no_gpu_reading(answer: bytes) -> None:
    (only,) = asyncio.run(readings(page(ENGINE), page(answer), gpu_path=""))
    assert (only.gpu_memory_used_bytes, only.gpu_utilization) == (None, None)


def test_missing_series_is_not_zero() -> None:
    (only,) = asyncio.run(readings(page(ENGINE)))
    assert (only.preemptions, only.prompt_tokens) == (None, None)
    assert (only.gpu_memory_used_bytes, only.gpu_utilization) == (None, None)


def test_refused_page_gives_no_reading() -> None:
    assert asyncio.run(readings(page(ENGINE, b"404 Not Found"))) == []


def test_server_that_closes_the_connection_gives_no_reading() -> None:
    async def hang_up(reader: StreamReader, _writer: StreamWriter) -> None:
        await request_of(reader)

    assert asyncio.run(readings(hang_up)) == []

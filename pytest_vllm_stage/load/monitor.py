"""What the engine reports during a step, once a second, over a connection of its own."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from pytest_vllm_stage.load.connections import Address, LoadConnection, Pool
from pytest_vllm_stage.load.http1 import ProtocolError, ResponseParser
from pytest_vllm_stage.load.nvml import LocalGpus
from pytest_vllm_stage.measurement.samples import GpuReading, ServerReading

INTERVAL_S = 1.0
#: Without an answer within this time, the reading is skipped.
TIMEOUT_S = 5.0

#: Field of `ServerReading` to the names that vLLM's versions have given the series.
_ENGINE: Mapping[str, tuple[bytes, ...]] = {
    "running": (b"vllm:num_requests_running",),
    "waiting": (b"vllm:num_requests_waiting",),
    "kv_cache_usage": (b"vllm:kv_cache_usage_perc", b"vllm:gpu_cache_usage_perc"),
    "prefix_cache_queries": (b"vllm:prefix_cache_queries_total", b"vllm:prefix_cache_queries"),
    "prefix_cache_hits": (b"vllm:prefix_cache_hits_total", b"vllm:prefix_cache_hits"),
    "generation_tokens": (b"vllm:generation_tokens_total",),
    "prompt_tokens": (b"vllm:prompt_tokens_total",),
    "preemptions": (b"vllm:num_preemptions_total",),
    "ttft_sum_s": (b"vllm:time_to_first_token_seconds_sum",),
    "ttft_count": (b"vllm:time_to_first_token_seconds_count",),
    "token_gap_sum_s": (b"vllm:inter_token_latency_seconds_sum", b"vllm:time_per_output_token_seconds_sum"),
    "token_gap_count": (b"vllm:inter_token_latency_seconds_count", b"vllm:time_per_output_token_seconds_count"),
}
_GPU_MEMORY_MIB = b"DCGM_FI_DEV_FB_USED"
_GPU_UTILIZATION_PERCENT = b"DCGM_FI_DEV_GPU_UTIL"
_MIB = 1024 * 1024
_MODELS = "/v1/models"
_LABELS_END = (b'"}', b'",}', b"{}")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
#: The query to a Prometheus: both series of the DCGM exporters that it scrapes, at their newest.
_GPU_QUERY = '{__name__=~"DCGM_FI_DEV_FB_USED|DCGM_FI_DEV_GPU_UTIL"}'


@dataclass(frozen=True)
class Source:
    """A place to read metrics from.

    Attributes:
        address: The server.
        path: The page, ``/metrics``.
        model: Only the series of this model where they carry its name; empty takes all.
    """

    address: Address
    path: str = "/metrics"
    model: str = ""


def gpu_source(address: Address) -> Source:
    """Where GPUs are read: the page that the URL names if it ends in ``/metrics``, else the Prometheus at the URL."""
    if address.prefix.endswith("/metrics"):
        return Source(replace(address, prefix=""), address.prefix)
    return Source(address, f"/api/v1/query?query={urllib.parse.quote(_GPU_QUERY)}")


def gpu_series(answer: bytes, name: bytes) -> dict[str, float]:
    """The values of a GPU series in an exporter's page or in a Prometheus' answer to a query, by GPU."""
    if not answer.startswith(b"{"):
        found = [(_labels(labels), value) for labels, value in labelled_series(answer, name)]
    else:
        try:
            results = json.loads(answer)["data"]["result"]
            named = [one for one in results if one["metric"].get("__name__") == name.decode()]
            found = [(one["metric"], float(one["value"][1])) for one in named]
        except (ValueError, LookupError, TypeError, AttributeError):
            return {}
    known = [(labels, value) for labels, value in found if math.isfinite(value) and value >= 0]
    return {_gpu_of(labels, number): value for number, (labels, value) in enumerate(known)}


def exporter_gpus(answer: bytes) -> tuple[GpuReading, ...]:
    """Each GPU of an exporter's page or of a Prometheus' answer."""
    memory, used = gpu_series(answer, _GPU_MEMORY_MIB), gpu_series(answer, _GPU_UTILIZATION_PERCENT)
    return tuple(
        GpuReading(
            gpu,
            memory[gpu] * _MIB if gpu in memory else None,
            used[gpu] / 100 if gpu in used else None,
        )
        for gpu in sorted({*memory, *used})
    )


def _gpu_of(labels: Mapping[str, str], number: int) -> str:
    """A GPU's number, with its node's name where the exporter gives one; `number` where it has no label."""
    gpu = labels.get("gpu") or labels.get("UUID") or str(number)
    node = labels.get("Hostname") or labels.get("instance") or ""
    return f"{node}/{gpu}" if node else gpu


def _labels(text: bytes) -> dict[str, str]:
    return dict(_LABEL.findall(text.decode("utf-8", "replace")))


class MetricsPage:
    """One GET of a metrics page; as an exchange it is carried by a `LoadConnection`."""

    def __init__(self) -> None:
        self._parser = ResponseParser()
        self._pieces: list[bytes] = []
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    @property
    def keep_alive(self) -> bool:
        """The connection may be used again."""
        return self._parser.keep_alive

    def received(self, data: bytes, at_s: float) -> bool:
        """Take bytes; see `connections.Carried`."""
        try:
            self._pieces.append(self._parser.feed(data))
        except ProtocolError:
            self._end(b"")
            return True
        if self._parser.complete:
            self._end(b"".join(self._pieces) if self._parser.status == 200 else b"")
        return self._parser.complete

    def lost(self, at_s: float, reason: str) -> None:
        """The connection is gone."""
        self._end(b"".join(self._pieces) if self._parser.closed() else b"")

    def _end(self, page: bytes) -> None:
        if not self.answer.done():
            self.answer.set_result(page)


class Monitor:
    """Reads the engine, and a GPU exporter where one is configured, until it is stopped.

    Args:
        engine: The engine's metrics; None where another driver reads them.
        gpu: A DCGM exporter's, or a Prometheus'; None where there is none.
        zero_s: ``perf_counter`` at the step's start.
        headers: Further header lines for the engine, each with its line end.
        gpu_headers: The same for the GPUs.
        local_gpus: The GPUs of a server on this machine, where no exporter is configured.
    """

    def __init__(
        self,
        engine: Source | None,
        gpu: Source | None,
        zero_s: float,
        headers: bytes = b"",
        gpu_headers: bytes = b"",
        local_gpus: LocalGpus | None = None,
    ) -> None:
        self.readings: list[ServerReading] = []
        self._sources = (engine, gpu)
        self._pools = tuple(Pool(source.address) if source else None for source in self._sources)
        self._headers = (headers, gpu_headers)
        self._zero_s = zero_s
        self._local_gpus = local_gpus
        self._series_name: bytes | None = None

    async def read(self) -> None:
        """Take one reading now; unreadable values stay None."""
        at_s = time.perf_counter() - self._zero_s
        engine, gpu, gpus = await asyncio.gather(self._page(0), self._page(1), self._read_local_gpus())
        if not engine and not gpu and not gpus:
            return
        model = await self._find_series_name(engine)
        values: dict[str, float | None] = {name: _first(engine, names, model) for name, names in _ENGINE.items()}
        gpus = exporter_gpus(gpu) or gpus
        memory = [one.memory_used_bytes for one in gpus if one.memory_used_bytes is not None]
        used = [one.utilization for one in gpus if one.utilization is not None]
        values["gpu_memory_used_bytes"] = sum(memory) if memory else None
        values["gpu_utilization"] = sum(used) / len(used) if used else None
        self.readings.append(ServerReading(at_s=at_s, **values, gpus=gpus))

    async def _find_series_name(self, page: bytes) -> bytes:
        """The name under which the engine's series are the model's.

        vLLM labels them with the first of a model's served names, and those of a LoRA adapter with its base model's:
        another name is taken where the page has no other and the server lists both.
        """
        if self._series_name is None:
            model = self._sources[0].model.encode() if self._sources[0] else b""
            names = {name for name in _model_names(page) if name}
            if not page:
                return model
            self._series_name = model
            if model and model not in names and len(names) == 1:
                listed = _listed_names(await self._page(0, _MODELS))
                self._series_name = names.pop() if {model, *names} <= listed else model
        return self._series_name

    async def _read_local_gpus(self) -> tuple[GpuReading, ...]:
        """In a thread: the driver may take milliseconds, and this loop also times tokens."""
        return await asyncio.to_thread(self._local_gpus.read) if self._local_gpus else ()

    async def run(self, first_s: float = 0.0) -> None:
        """Read once a second until cancelled.

        Args:
            first_s: ``perf_counter`` of the first reading; default: now.
        """
        next_s = max(first_s, time.perf_counter())
        while True:
            await asyncio.sleep(max(0.0, next_s - time.perf_counter()))
            await self.read()
            next_s += INTERVAL_S

    async def close(self) -> None:
        for pool in self._pools:
            if pool is not None:
                await pool.close()
        if self._local_gpus is not None:
            self._local_gpus.close()

    async def _page(self, which: int, path: str = "") -> bytes:
        source, pool = self._sources[which], self._pools[which]
        if source is None or pool is None:
            return b""
        path = f"{source.address.prefix}{path or source.path}"
        request = (
            f"GET {path} HTTP/1.1\r\nhost: {source.address.authority}\r\n".encode() + self._headers[which] + b"\r\n"
        )
        page = MetricsPage()
        connection: LoadConnection | None = None
        try:
            connection = pool.idle()
            if connection is None:
                connection = await asyncio.wait_for(pool.connect(), TIMEOUT_S)
            connection.send(request, page)
            return await asyncio.wait_for(page.answer, TIMEOUT_S)
        except (OSError, TimeoutError):
            if connection is not None:
                connection.close()
            return b""


def _model_names(page: bytes) -> set[bytes]:
    """The models whose requests the page counts."""
    running = labelled_series(page, _ENGINE["running"][0])
    return {_labels(labels).get("model_name", "").encode() for labels, _ in running}


def _listed_names(answer: bytes) -> set[bytes]:
    try:
        return {str(card["id"]).encode() for card in json.loads(answer)["data"]}
    except (ValueError, LookupError, TypeError):
        return set()


def _first(page: bytes, names: Sequence[bytes], model: bytes) -> float | None:
    """The sum over the series of the first name that the page has: replicas in one process have one series each."""
    for name in names:
        found = series(page, name, model)
        if found:
            return sum(found)
    return None


def series(page: bytes, name: bytes, model: bytes = b"") -> list[float]:
    """The values of a series; of one model where its label names models, without NaN."""
    found = labelled_series(page, name)
    return [value for labels, value in found if _is_for_model(labels, model) and math.isfinite(value)]


def labelled_series(page: bytes, name: bytes) -> list[tuple[bytes, float]]:
    """The labels and values of a series.

    Searches bytes instead of parsing the page, which has a thousand lines: the loop that reads it also times tokens.
    """
    values = []
    at = 0 if page.startswith(name) else page.find(b"\n" + name)
    while at >= 0:
        end = page.find(b"\n", at + 1)
        rest = page[at : end if end >= 0 else len(page)].strip()[len(name) :]
        # A time stamp and, in OpenMetrics, an exemplar may follow the value.
        ends = [rest.find(mark) + len(mark) for mark in _LABELS_END if mark in rest] if rest.startswith(b"{") else []
        close = min(ends, default=0)
        value = rest[close:].split(maxsplit=1)[:1]
        if rest[:1] in (b"{", b" ") and value and (number := _number(value[0])) is not None:
            values.append((rest[:close], number))
        at = page.find(b"\n" + name, at + 1)
    return values


def _number(text: bytes) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _is_for_model(labels: bytes, model: bytes) -> bool:
    return not model or b'model_name="' not in labels or b'model_name="%b"' % model in labels

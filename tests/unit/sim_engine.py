"""A simulated engine as a process, for tests of the driver and of verdicts."""

from __future__ import annotations

import asyncio
import json
import re
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, cast

from pytest_vllm_stage.load.driver import LoadJob
from pytest_vllm_stage.load.prompts import PromptMaker, make_body, make_prompt_maker
from pytest_vllm_stage.measurement.step import LoadStep


class Sim:
    """A running simulated engine."""

    def __init__(self, url: str, process: subprocess.Popen[str] | None = None) -> None:
        self.url = url
        self.process = process
        self.maker: PromptMaker = make_prompt_maker(self.count)

    def call(self, path: str, body: Any = None, method: str | None = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(  # noqa: S310 - our own engine's URL
            self.url + path, data, {"content-type": "application/json"}, method=method
        )
        with urllib.request.urlopen(request) as response:  # noqa: S310
            return json.load(response)

    def count(self, text: str) -> int:
        body = {"model": "sim", "messages": [{"role": "user", "content": text}]}
        return cast(int, self.call("/tokenize", body)["count"])

    def faults(self, *faults: dict[str, Any]) -> None:
        self.call("/sim/faults", list(faults), "PUT")

    def truth(self) -> dict[str, dict[str, Any]]:
        return {one["request_id"]: one for one in self.call("/sim/requests")["requests"]}

    def job(self, step: LoadStep, *, requests: int | None = None, **changes: Any) -> LoadJob:
        count = requests or step.planned_requests or 0
        bodies = [make_body(step, text) for text in self.maker.texts(step, count, "step")]
        warmup = [make_body(step, text) for text in self.maker.texts(step, step.warmup_requests, "warm-up")]
        return LoadJob(step, self.url, bodies, warmup, **changes)


Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@asynccontextmanager
async def serving(handler: Handler, tls: ssl.SSLContext | None = None) -> AsyncIterator[int]:
    """A server in this loop; gives its port, and ends only when every connection has."""
    handlers: list[asyncio.Task[None]] = []

    async def guarded(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.append(cast(asyncio.Task[None], asyncio.current_task()))
        try:
            with suppress(asyncio.IncompleteReadError, OSError):
                await handler(reader, writer)
        finally:
            writer.close()

    server = await asyncio.start_server(guarded, "127.0.0.1", 0, ssl=tls)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        await asyncio.gather(*handlers, return_exceptions=True)


async def request_of(reader: asyncio.StreamReader) -> bytes:
    """One whole request, as a server in a test reads it."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return head + await reader.readexactly(length)


@contextmanager
def running_sim(*options: str) -> Iterator[Sim]:
    command = [sys.executable, "-m", "pytest_vllm_stage.standins.engine", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            first = cast(Any, process.stdout).readline()
            found = re.search(r"http://\S+", first)
            assert found is not None, first
            yield Sim(found[0], process)
        finally:
            process.terminate()

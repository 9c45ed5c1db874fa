"""Defects of timing: answers are right, and come late. suites/slo finds them, and no check of suites/inference does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator

from tests.defects.proxy.server import Answer, Defect, Exchange, refuse


class TtftAdded(Defect):
    """Every request waits before it is passed on."""

    added_s = 1.0

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Wait."""
        if exchange.request.generates:
            await asyncio.sleep(self.added_s)
        return None


class GapsDoubled(Defect):
    """Every event of a stream takes twice its time."""

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Hold each event back as long as the server took for it."""
        loop = asyncio.get_running_loop()
        queue: asyncio.Queue[tuple[float, bytes] | None] = asyncio.Queue()

        async def read() -> None:
            async for event in events:
                queue.put_nowait((loop.time(), event))
            queue.put_nowait(None)

        reading = asyncio.ensure_future(read())
        try:
            first_s = sent_s = 0.0
            while (found := await queue.get()) is not None:
                at_s, event = found
                first_s = first_s or at_s
                sent_s = max(sent_s, first_s + 2 * (at_s - first_s))
                await asyncio.sleep(max(0.0, sent_s - loop.time()))
                yield event
        finally:
            reading.cancel()


class RateRefused(Defect):
    """More than so many requests in a second are refused with 429."""

    rate = 2.0

    def __init__(self) -> None:
        self._next_s = 0.0

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Refuse what comes too early."""
        now_s = asyncio.get_running_loop().time()
        if not exchange.request.generates:
            return None
        if now_s < self._next_s:
            return refuse(429, "rate limit exceeded")
        self._next_s = now_s + 1 / self.rate
        return None


class RateQueued(Defect):
    """More than so many requests in a second wait in front of the server."""

    rate = 2.0

    def __init__(self) -> None:
        self._next_s = 0.0

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Wait for a turn."""
        if exchange.request.generates:
            now_s = asyncio.get_running_loop().time()
            turn_s = max(now_s, self._next_s)
            self._next_s = turn_s + 1 / self.rate
            await asyncio.sleep(turn_s - now_s)
        return None


class StallEvery(Defect):
    """Every so often nothing passes for a while, as in a collection of garbage."""

    every_s, stall_s = 5.0, 1.5

    def __init__(self) -> None:
        self._begun_s = 0.0

    async def _pass(self) -> None:
        loop = asyncio.get_running_loop()
        self._begun_s = self._begun_s or loop.time()
        since_s = (loop.time() - self._begun_s) % self.every_s
        if since_s > self.every_s - self.stall_s:
            await asyncio.sleep(self.every_s - since_s)

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Hold it during a stall."""
        if exchange.request.generates:
            await self._pass()
        return None

    async def on_stream(self, exchange: Exchange, events: AsyncIterator[bytes]) -> AsyncGenerator[bytes, None]:
        """Hold each event during a stall."""
        async for event in events:
            await self._pass()
            yield event

"""Defects on the way in, beyond those of `requests`."""

from __future__ import annotations

import asyncio

from tests.defects import checks
from tests.defects.proxy.server import Answer, Defect, Exchange


class EqualIdsAreRetries(
    Defect,
    by={checks.ONE_ID},
    says=r"under an X-Request-Id that others had too.*answers are mixed up",
    source="https://github.com/vllm-project/vllm/issues/10583",
):
    """Requests with one ``X-Request-Id`` count as retries of the first, and get its answer."""

    def __init__(self) -> None:
        self._first: dict[str, asyncio.Future[Answer]] = {}

    async def on_request(self, exchange: Exchange) -> Answer | None:
        """Wait for the first one's answer."""
        id_ = exchange.request.headers.get("x-request-id")
        if not id_ or not exchange.request.generates:
            return None
        if id_ in self._first:
            return await asyncio.shield(self._first[id_])
        exchange.notes["first"] = self._first[id_] = asyncio.get_running_loop().create_future()
        return None

    async def on_answer(self, exchange: Exchange, answer: Answer) -> None:
        """Hand the answer to those who wait."""
        if first := exchange.notes.get("first"):
            first.set_result(answer)

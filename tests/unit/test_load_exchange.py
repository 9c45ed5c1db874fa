"""The driver's background work does not delay a request."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any, cast

import pytest

from pytest_vllm_stage.load.connections import Pool, parse_address
from pytest_vllm_stage.load.driver import LoadJob, _StepInProgress
from pytest_vllm_stage.load.exchange import Exchange, Outgoing
from pytest_vllm_stage.load.progress import LoopLag
from pytest_vllm_stage.measurement.step import CLOSED, CONSTANT, POISSON, LoadStep

STEP = LoadStep("s", "sim", CONSTANT, 10, 64, 8, request_rate=10.0)


class Recording:
    """A pool and its only connection, which record their calls in order."""

    used = False

    def __init__(self) -> None:
        self.asked: list[str] = []

    def idle(self) -> Recording:
        self.asked.append("idle")
        return self

    def send(self, data: bytes, carried: Any) -> float:
        self.asked.append("send")
        return 0.0

    def top_up(self) -> None:
        self.asked.append("top up")


def test_a_request_goes_out_before_spare_connections_are_opened() -> None:
    async def start() -> list[str]:
        pool = Recording()
        outgoing = Outgoing(STEP, cast(Pool, pool), b"", 0.0, lambda _sample: None)
        Exchange(outgoing, 0, b"{}", 0.0).start(0.0)
        return pool.asked

    assert asyncio.run(start()) == ["idle", "send", "top up"]


@pytest.mark.parametrize(
    ("step", "after_s"),
    [
        (STEP, 0.05),
        (replace(STEP, request_rate=0.5), 1.0),
        (replace(STEP, arrivals=POISSON), 0.0),
        (replace(STEP, arrivals=CLOSED, request_rate=None, concurrency=2), 0.0),
    ],
)
def test_readings_fall_between_the_sends_of_a_regular_schedule(step: LoadStep, after_s: float) -> None:
    async def quiet_s() -> float:
        lag = LoopLag()
        job, pool = LoadJob(step, "http://localhost:1", [b"{}"]), Pool(parse_address("http://localhost:1"))
        run = _StepInProgress(job, pool, None, print, lag, zero_s=100.0)
        try:
            return run._quiet_s() - run._zero_s
        finally:
            run._timer.close()
            lag.stop()

    assert asyncio.run(quiet_s()) == pytest.approx(after_s)

"""Where requests wait that are not served at the same time: at the engine, or in front of it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from pytest_vllm_stage.serving.client import EndpointClient
from pytest_vllm_stage.serving.failures import RequestFailed

#: Seconds between two looks.
LOOK_EVERY_S = 0.02


@dataclass(frozen=True)
class SeenQueue:
    """The most that the engine reported while requests ran.

    Attributes:
        running: Requests that ran at the same time.
        waiting: Requests that waited meanwhile.
    """

    running: int
    waiting: int

    @property
    def is_serial(self) -> bool:
        """The engine itself runs one request at a time: others wait in its own queue."""
        return self.running <= 1 and self.waiting > 0

    def describe(self) -> str:
        """What was seen, in words."""
        seen = f"meanwhile the engine reports at most {self.running} running and {self.waiting} waiting"
        return seen if self.running > 1 or self.waiting else f"{seen}: the others wait in front of it"


def observe_queue(endpoint: EndpointClient, ask: Callable[[], object]) -> SeenQueue | None:
    """What the engine reports while requests run; None where its metrics do not say.

    Args:
        endpoint: The endpoint, which other threads may use meanwhile.
        ask: Sends the requests, and returns when they are answered.
    """
    finished = threading.Event()
    with endpoint.with_new_connections() as client, ThreadPoolExecutor(1) as pool:
        looking = pool.submit(_look, client, finished)
        try:
            ask()
        finally:
            finished.set()
        return looking.result()


def _look(client: EndpointClient, finished: threading.Event) -> SeenQueue | None:
    running = waiting = 0
    while not finished.is_set():
        try:
            metrics = client.metrics()
            now = [
                int(metrics.value(f"vllm:num_requests_{state}", model_name=client.target.model))
                for state in ("running", "waiting")
            ]
        except (RequestFailed, LookupError, ValueError):
            return None
        running, waiting = max(running, now[0]), max(waiting, now[1])
        finished.wait(LOOK_EVERY_S)
    return SeenQueue(running, waiting)

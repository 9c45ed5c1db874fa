"""Many requests at once, and waiting for what a server does after an answer."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Asked = TypeVar("Asked")
Got = TypeVar("Got")

#: Seconds between two looks.
LOOK_EVERY_S = 0.05
#: Seconds that a server may take to count in /metrics what it has served.
COUNTED_WITHIN_S = 10.0


def together(do: Callable[[Asked], Got], items: Iterable[Asked], *, at_once: int) -> list[Got]:
    """What ``do`` gives for each item, in the items' order, with up to ``at_once`` running at the same time.

    Raises:
        Exception: what the first item that failed raised, after all have ended.
    """
    with ThreadPoolExecutor(at_once) as pool:
        return list(pool.map(do, items))


def ask_together(requests: Mapping[str, Callable[[], Got]]) -> dict[str, Got]:
    """What each request gives, by its name, with all of them running at the same time.

    Raises:
        Exception: what the first request that failed raised, after all have ended.
    """
    return dict(zip(requests, together(lambda ask: ask(), requests.values(), at_once=len(requests)), strict=True))


def settled(look: Callable[[], bool], timeout_s: float) -> bool:
    """Whether ``look`` becomes true within ``timeout_s``; it is asked at least twice."""
    until = time.monotonic() + timeout_s
    while not look():
        if time.monotonic() > until:
            return look()
        time.sleep(LOOK_EVERY_S)
    return True


def is_counted(look: Callable[[], bool]) -> bool:
    """Whether ``look`` becomes true within the time that a server may take to count what it has served."""
    return settled(look, COUNTED_WITHIN_S)

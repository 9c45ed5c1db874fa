"""How far a clock is from the API server's, by the ``Date`` header of its answers.

``Date`` has whole seconds. An answer that was requested at ``sent`` and received at ``received`` and carries the second
``date`` bounds the offset (the server's clock minus this one): it is above ``date - received`` and below
``date + 1 - sent``. Each request is sent where its answer halves what is left between the bounds, so that about ten
requests find the offset to within the time that a request takes.
"""

from __future__ import annotations

import asyncio
import http.client
import ssl
import time
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from email.utils import parsedate_to_datetime

#: A narrower bound is not looked for.
GOOD_ENOUGH_S = 0.002
MOST_REQUESTS = 16
_TIMEOUT_S = 5.0


@dataclass(frozen=True)
class ClockOffset:
    """The difference between two clocks.

    Attributes:
        offset_s: What must be added to this clock to get the other one.
        uncertainty_s: How far the true offset may be from it.
    """

    offset_s: float = 0.0
    uncertainty_s: float = 0.0


class OffsetBounds:
    """The bounds of an offset, which every answer narrows."""

    def __init__(self) -> None:
        self.low_s, self.high_s = float("-inf"), float("inf")

    def narrow(self, sent: float, received: float, date: float) -> None:
        """Take an answer into account.

        Raises:
            ValueError: it contradicts the earlier ones: a clock was set meanwhile, or two servers answered.
        """
        low_s, high_s = max(self.low_s, date - received), min(self.high_s, date + 1 - sent)
        if low_s > high_s:
            raise ValueError(f"the server's clock differs by {low_s - high_s:.3f} s between two answers")
        self.low_s, self.high_s = low_s, high_s

    @property
    def offset(self) -> ClockOffset:
        """The middle of the bounds."""
        return ClockOffset((self.low_s + self.high_s) / 2, (self.high_s - self.low_s) / 2)

    def next_s(self, now: float, trip_s: float) -> float:
        """When to send the next request, so that the server's second changes in the middle of the bounds."""
        shown_at = now + self.offset.offset_s + trip_s / 2
        return now + (-shown_at) % 1.0


def measure_offset(
    ask: Callable[[], float], *, now: Callable[[], float] = time.time, sleep: Callable[[float], None] = time.sleep
) -> ClockOffset:
    """Find the offset of a server's clock.

    Args:
        ask: Sends a request; returns its ``Date`` in seconds since the epoch.
        now: This clock.
        sleep: Waits by it.

    Raises:
        OSError: the server does not answer.
        ValueError: its answers contradict each other.
    """
    bounds, trip_s = OffsetBounds(), 0.0
    for _ in range(MOST_REQUESTS):
        sent = now()
        date = ask()
        received = now()
        bounds.narrow(sent, received, date)
        trip_s = min(trip_s or 1.0, received - sent)
        if bounds.offset.uncertainty_s <= max(GOOD_ENOUGH_S, trip_s / 2):
            break
        sleep(max(0.0, bounds.next_s(now(), trip_s) - now()))
    return bounds.offset


class DateSource:
    """Asks one server for its date over one connection; what it answers apart from that does not matter."""

    def __init__(self, url: str, ca_file: str | None) -> None:
        parts = urllib.parse.urlsplit(url)
        self._path = parts.path or "/"
        host, port = parts.hostname or "", parts.port
        if parts.scheme == "https":
            context = ssl.create_default_context(cafile=ca_file)
            self._connection: http.client.HTTPConnection = http.client.HTTPSConnection(
                host, port, timeout=_TIMEOUT_S, context=context
            )
        else:
            self._connection = http.client.HTTPConnection(host, port, timeout=_TIMEOUT_S)

    def ask(self) -> float:
        """The answer's ``Date``, in seconds since the epoch.

        Raises:
            OSError: there is no answer, or none with a date.
        """
        try:
            self._connection.request("GET", self._path)
            response = self._connection.getresponse()
            response.read()
            return parsedate_to_datetime(response.headers["Date"]).timestamp()
        except (http.client.HTTPException, TypeError, ValueError) as error:
            raise OSError(f"no date in the answer: {type(error).__name__}: {error}") from None

    def close(self) -> None:
        self._connection.close()


async def measure_clock(url: str, ca_file: str | None) -> ClockOffset:
    """Measure this machine's clock against the server's at a URL, in a thread.

    Raises:
        OSError: it does not answer.
        ValueError: its answers contradict each other.
    """

    def measure() -> ClockOffset:
        source = DateSource(url, ca_file)
        try:
            source.ask()  # opens the connection, which takes longer than a request
            return measure_offset(source.ask)
        finally:
            source.close()

    return await asyncio.to_thread(measure)

"""Several engines behind one address: which of them a scrape of ``/metrics`` shows, and how to read all of them.

A router sends each request, or each connection, to another replica. The counters of one scrape then say nothing about
a request before it, which another replica may have answered.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pytest_vllm_stage.core.errors import StageError
from pytest_vllm_stage.serving.failures import RequestFailed
from pytest_vllm_stage.serving.metrics import BadExposition, EngineMetrics, parse

if TYPE_CHECKING:
    from pytest_vllm_stage.serving.client import EndpointClient

#: Scrapes on connections of their own before an address counts as that of one engine: of two replicas with equal
#: shares, all show the same one once in 2048 times.
LOOKS = 12
#: When a Python process started: its client library for Prometheus exports it, and an engine's replicas differ in it.
_STARTED = "process_start_time_seconds"
#: Of replicas that do not export it: counters only grow.
_COUNTERS = ("vllm:prompt_tokens", "vllm:generation_tokens", "vllm:request_success")


@dataclass(frozen=True)
class Replicas:
    """The replicas of a model whose pods are known.

    Attributes:
        count: How many serve.
        read: Reads the text of ``/metrics`` of each.
    """

    count: int
    read: Callable[[], Sequence[str]]


class ReplicaWatch:
    """Notes which engine each scrape of an address shows.

    An engine that was restarted is another one from then on; where an earlier one is seen again, there are several.

    Attributes:
        alternate: An earlier one was seen again.
    """

    def __init__(self) -> None:
        self._seen: list[tuple[float | None, Mapping[str, float]]] = []
        self._order: list[int] = []
        self.alternate = False

    @property
    def engines(self) -> int:
        """How many were seen."""
        return len(self._seen)

    def note(self, metrics: EngineMetrics) -> None:
        """Take one scrape."""
        started, counters = _started(metrics), _counters(metrics)
        if started is None and not counters:
            return
        known = [number for number, seen in enumerate(self._seen) if _may_be(seen, started, counters)]
        # Of several that it can be, the one that has counted most.
        number = max(known, key=lambda one: sum(self._seen[one][1].values()), default=len(self._seen))
        self._seen[number : number + 1] = [(started, counters)]
        if not self._order or self._order[-1] != number:
            self.alternate = self.alternate or number in self._order
            self._order.append(number)


def _may_be(
    seen: tuple[float | None, Mapping[str, float]], started: float | None, counters: Mapping[str, float]
) -> bool:
    if started is not None or seen[0] is not None:
        return started == seen[0]
    return all(counters.get(name, 0.0) >= value for name, value in seen[1].items())


def _started(metrics: EngineMetrics) -> float | None:
    found = metrics.series(_STARTED)
    return found[0].value if found else None


def _counters(metrics: EngineMetrics) -> dict[str, float]:
    values = {name: [*metrics.series(name), *metrics.series(f"{name}_total")] for name in _COUNTERS}
    return {name: sum(one.value for one in found) for name, found in values.items() if found}


class Scrapes:
    """Reads the metrics of a model.

    Args:
        url: Its address.

    Attributes:
        replicas: The replicas, where the pods are known and there are several: all are read.
        on_replicas: Called with the reason where scrapes of the address show several replicas in turn, or not all known
            ones can be read; may raise.
    """

    def __init__(self, url: str) -> None:
        self.replicas: Replicas | None = None
        self.on_replicas: Callable[[str], None] | None = None
        self._url = url
        self._watch = ReplicaWatch()

    def forget(self) -> None:
        """Know nothing of replicas: they may be others by now."""
        self.replicas, self._watch = None, ReplicaWatch()

    def read(self, scrape: Callable[[], str]) -> EngineMetrics:
        """The metrics of the engine, or of every replica.

        Args:
            scrape: Reads the text of ``/metrics`` at the address.

        Raises:
            RequestFailed: a text is not in the Prometheus format.
            StageError: a replica cannot be read.
        """
        __tracebackhide__ = True
        if self.replicas is not None:
            return EngineMetrics([one for text in self._read_all(self.replicas) for one in _parse(text).samples])
        found = _parse(scrape())
        self._watch.note(found)
        if self._watch.alternate and self.on_replicas:
            self.on_replicas(_describe(self._url))
        return found

    def _read_all(self, replicas: Replicas) -> Sequence[str]:
        __tracebackhide__ = True
        try:
            return replicas.read()
        except StageError as error:
            if self.on_replicas:
                self.on_replicas(error.message)
            raise


def _parse(text: str) -> EngineMetrics:
    __tracebackhide__ = True
    try:
        return parse(text)
    except BadExposition as error:
        raise RequestFailed(f"GET /metrics: {error}", status=200, body=text) from None


def find_replicas(endpoint: EndpointClient) -> str:
    """That several replicas answer at an address; empty where one was seen alone.

    Raises:
        RequestFailed: ``/metrics`` has no usable answer.
    """
    watch = ReplicaWatch()
    for _ in range(LOOKS):
        with endpoint.with_new_connections() as client:
            watch.note(client.metrics())
        if watch.engines > 1:
            return _describe(endpoint.target.base_url)
    return ""


def _describe(url: str) -> str:
    """Why counters read at an address decide nothing."""
    return (
        f"several replicas answer at {url}: each scrape of /metrics shows one of them, and a request may have met "
        "another; with the stage's cluster (--stage-context) each pod is read"
    )

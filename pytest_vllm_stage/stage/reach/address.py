"""Chooses the address of a server among the ways that lead to it: plain data and pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, ClassVar

#: Returns why a URL does not accept a connection from here; empty where it does.
Probe = Callable[[str], str]


class AccessWay(StrEnum):
    """How requests get to a server, in the order of preference outside the cluster."""

    ROUTE = "Route"
    INGRESS = "Ingress"
    HTTP_ROUTE = "HTTPRoute"
    STATUS_URL = "status.url"
    STATUS_ADDRESS = "status.address"
    REGISTRY_STATUS = "ModelRegistry"
    SERVICE = "Service"
    PORT_FORWARD = "port-forward"


@dataclass(frozen=True)
class Candidate:
    """One way that may lead to a server.

    Attributes:
        way: The kind of way.
        source: The object that describes it, for example ``route/full``; empty where no object does.
        url: Root of the server; empty where there is a problem.
        problem: Why it cannot be used, as known without a connection.
    """

    way: AccessWay
    source: str = ""
    url: str = ""
    problem: str = ""

    @property
    def name(self) -> str:
        """What a reader calls it."""
        return self.source or self.way.value


@dataclass(frozen=True)
class ChosenAddress:
    """The address that is used for a server, and why no better one is.

    Attributes:
        url: Root of the server.
        way: How requests get there.
        reason: Why it is used.
        passed_over: Why each better way is not used, one line each.
    """

    url: str
    way: AccessWay
    reason: str
    passed_over: tuple[str, ...] = ()

    def to_record(self) -> dict[str, Any]:
        """The fields of a journal event."""
        return {"url": self.url, "way": self.way.value, "reason": self.reason, "passed_over": list(self.passed_over)}


@dataclass(frozen=True)
class NoAddress:
    """No way leads to a server from here.

    Attributes:
        passed_over: Why each way cannot be used, one line each.
        tried: The URLs that do not accept a connection.
    """

    passed_over: tuple[str, ...] = ()
    tried: tuple[str, ...] = ()
    url: ClassVar[str] = ""

    def to_record(self) -> dict[str, Any]:
        """The fields of a journal event."""
        return {"url": "", "way": "", "reason": "no way leads there", "passed_over": list(self.passed_over)}


def choose_address(candidates: Iterable[Candidate], probe: Probe) -> ChosenAddress | NoAddress:
    """The first candidate that accepts a connection.

    Args:
        candidates: In the order of preference.
        probe: Tries a connection; each URL is tried once.
    """
    passed_over: list[str] = []
    tried: dict[str, str] = {}
    for candidate in candidates:
        problem = candidate.problem
        if not problem:
            url = candidate.url
            if url not in tried:
                tried[url] = probe(url)
            problem = f"{url} {tried[url]}" if tried[url] else ""
        if not problem:
            return ChosenAddress(url, candidate.way, f"{candidate.name} accepts connections", tuple(passed_over))
        passed_over.append(f"{candidate.name}: {problem}")
    return NoAddress(tuple(passed_over), tuple(tried))

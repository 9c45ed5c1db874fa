"""Every defect that the proxy can plant, by name."""

from __future__ import annotations

from collections.abc import Iterator

from tests.defects.proxy import answers, connections, engines, fields, requests, streams
from tests.defects.proxy.server import Defect

#: Module to the kind of its defects.
KINDS = {
    requests: "requests changed or refused on the way in",
    fields: "numbers, order, fields and names of requests",
    answers: "answers, errors and headers changed on the way out",
    streams: "events of streams",
    connections: "connections, HTTP and time limits",
    engines: "engines behind the gateway",
}


def find_defects() -> dict[str, type[Defect]]:
    """Name to defect, in the order of the modules."""
    return {defect.name: defect for module in KINDS for defect in _defined_in(module.__name__, Defect)}


def _defined_in(module: str, parent: type[Defect]) -> Iterator[type[Defect]]:
    for defect in parent.__subclasses__():
        if defect.by and defect.__module__ == module:
            yield defect
        yield from _defined_in(module, defect)

"""Faults on request, by name and with parameters: what a registry, its database or its gateway can do wrong.

A script is a JSON list of names, or of objects with ``fault`` and parameters: ``PUT /standin/faults``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, TypeVar

FaultType = TypeVar("FaultType", bound="RegistryFault")


@dataclass
class RegistryFault:
    """A fault, and which requests to the API it hits.

    Attributes:
        method: Only requests of this method; empty: all.
        path: Only requests whose path holds this text; empty: all.
        after: Requests, of those, that pass unharmed before.
        requests: Requests that are hit then; 0: all.
    """

    name: ClassVar[str] = ""

    method: str = ""
    path: str = ""
    after: int = 0
    requests: int = 0
    seen: int = field(default=0, init=False, repr=False)

    def hits(self, method: str, path: str) -> bool:
        """Whether this request is hit; counts the request."""
        if self.method not in ("", method) or self.path not in path:
            return False
        self.seen += 1
        return self.seen > self.after and (not self.requests or self.seen <= self.after + self.requests)


@dataclass
class Unavailable(RegistryFault):
    """The request is refused unread, as plain text.

    Attributes:
        status: The HTTP status.
    """

    name: ClassVar[str] = "unavailable"

    status: int = 503


@dataclass
class Latency(RegistryFault):
    """The request is answered late.

    Attributes:
        seconds: How much later.
    """

    name: ClassVar[str] = "latency"

    seconds: float = 0.1


@dataclass
class CutAnswer(RegistryFault):
    """The request is carried out, and the connection dropped instead of an answer."""

    name: ClassVar[str] = "cut-answer"


@dataclass
class LostDatabase(RegistryFault):
    """The database is gone: lists, finds and writes are 500, and a GET by id says 404."""

    name: ClassVar[str] = "lost-database"


@dataclass
class Poison(RegistryFault):
    """An entity cannot be read: it, and every list that holds it, answers 400.

    Attributes:
        kind: Its kind, such as ``model version``.
        id: Its id.
    """

    name: ClassVar[str] = "poison"

    kind: str = "model version"
    id: str = "1"


@dataclass
class OtherFirst(RegistryFault):
    """Lists return another entity first than they should, which misleads a client that reads the first item.

    Attributes:
        avoid: Entities of this name come last; empty: the first entity comes last.
    """

    name: ClassVar[str] = "other-first"

    avoid: str = ""


@dataclass
class RefuseOrphans(RegistryFault):
    """A version of a model that does not exist is refused with 404, where the real server takes it."""

    name: ClassVar[str] = "refuse-orphans"


@dataclass
class DropPatches(RegistryFault):
    """A PATCH is answered as if it had been carried out, and is not."""

    name: ClassVar[str] = "drop-patches"


FAULTS: dict[str, type[RegistryFault]] = {
    cls.name: cls
    for cls in (Unavailable, Latency, CutAnswer, LostDatabase, Poison, OtherFirst, RefuseOrphans, DropPatches)
}


class WrongScript(Exception):
    """A fault script is wrong; the message names the mistake and the valid values."""


def parse_faults(script: Any) -> list[RegistryFault]:
    """The faults of a script.

    Raises:
        WrongScript: Something in it is unknown or of the wrong type.
    """
    if not isinstance(script, list):
        raise WrongScript(f"a fault script is a list of faults, not {type(script).__name__}")
    return [_parse_fault(item if isinstance(item, dict) else {"fault": item}) for item in script]


def _parse_fault(item: dict[str, Any]) -> RegistryFault:
    arguments = dict(item)
    name = arguments.pop("fault", None)
    cls = FAULTS.get(name) if isinstance(name, str) else None
    if cls is None:
        raise WrongScript(f"there is no fault {name!r}; valid: {', '.join(sorted(FAULTS))}")
    valid = {item.name: item.default for item in fields(cls) if item.init}
    for key, value in arguments.items():
        if key not in valid:
            raise WrongScript(f"fault {name} has no parameter {key!r}; valid: {', '.join(valid)}")
        types: tuple[type, ...] = (int, float) if isinstance(valid[key], float) else (type(valid[key]),)
        if isinstance(value, bool) or not isinstance(value, types):
            raise WrongScript(f"fault {name}: {key} is {value!r}; expected a value like {valid[key]!r}")
        if isinstance(value, (int, float)) and not 0 <= value <= 86_400:
            raise WrongScript(f"fault {name}: {key} is {value!r}; expected 0 to 86400")
    if not 400 <= arguments.get("status", 503) <= 599:
        raise WrongScript(f"fault {name}: status is {arguments['status']!r}; expected an error status, 400 to 599")
    return cls(**arguments)


def select_faults(faults: Sequence[RegistryFault], cls: type[FaultType]) -> list[FaultType]:
    """The faults of one class."""
    return [fault for fault in faults if isinstance(fault, cls)]

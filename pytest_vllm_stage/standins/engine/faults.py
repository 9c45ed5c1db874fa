"""Scripted faults: what a server, gateway or proxy can do wrong, each with a name and parameters.

A fault overrides the hooks of `Fault` where it interferes; `fault` registers it. The faults are defined in the
modules of `standins.engine.catalogue`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from pytest_vllm_stage.core.errors import ConfigError

if TYPE_CHECKING:
    from pytest_vllm_stage.standins.engine.engine import Engine
    from pytest_vllm_stage.standins.engine.generation import Generated
    from pytest_vllm_stage.standins.engine.parameters import Parameters
    from pytest_vllm_stage.standins.engine.refusal import Refusal
    from pytest_vllm_stage.standins.http import Reply, Request


@dataclass
class Event:
    """One event of a stream: the token that it leaves with, and its JSON, or a text that is sent as it is."""

    place: int
    data: Any

    def encode(self) -> bytes:
        """The event's bytes; raw bytes stay what they are."""
        if isinstance(self.data, bytes):
            return self.data
        text = self.data if isinstance(self.data, str) else json.dumps(self.data, ensure_ascii=False)
        return b"data: " + text.encode() + b"\n\n"

    @property
    def text(self) -> str:
        """The text that the event carries."""
        for choice in self.data.get("choices", []) if isinstance(self.data, dict) else []:
            text = choice.get("delta", {}).get("content") or choice.get("text") or ""
            return str(text)
        return ""


@dataclass
class Fault:
    """A fault that does nothing; its hooks are what a fault may change.

    Attributes:
        share: The fraction of the requests that it affects.
    """

    name: ClassVar[str] = ""
    #: What ``/health`` answers while the fault is on.
    health_status: ClassVar[int] = 200
    #: Whether unknown paths are answered.
    knows_every_path: ClassVar[bool] = False

    share: float = 1.0

    def hits(self, dice: random.Random) -> bool:
        """Whether this request is affected."""
        return self.share >= 1.0 or dice.random() < self.share

    def start(self, engine: Engine) -> None:
        """The fault was switched on."""

    def stop(self) -> None:
        """The fault was switched off."""

    def on_request(self, request: Request) -> None:
        """Inspect the request as received, or refuse it with a `Refusal`."""

    def on_body(self, body: dict[str, Any], model: str) -> None:
        """Change the request before it is checked."""

    def refuse(self) -> Refusal | None:
        """Refuse a valid request."""
        return None

    def on_refusal(self, refusal: Refusal) -> tuple[int, bytes, str] | None:
        """Answer a refused request in another way: status, body and content type."""
        return None

    def on_parameters(self, parameters: Parameters) -> None:
        """Change the checked request."""

    def on_generated(self, generated: Generated, parameters: Parameters) -> None:
        """Change the tokens and their texts."""

    def on_usage(self, usage: dict[str, Any]) -> None:
        """Change the token counts."""

    def on_answer(self, body: dict[str, Any]) -> None:
        """Change a whole answer."""

    def on_stream(self, events: list[Event]) -> None:
        """Change a stream's events; one that is `CUT` drops the connection."""

    def on_reply(self, reply: Reply) -> None:
        """Change how a response is sent: its connection, its headers."""

    def on_disconnect(self) -> bool:
        """The client disconnected: whether the engine is notified."""
        return True

    def lets_pass(self, authorization: str) -> bool:
        """Whether a request without the right key is served."""
        return False

    def on_tokens(self, body: dict[str, Any]) -> None:
        """Change an answer of ``/tokenize`` or ``/detokenize``."""

    def on_metrics(self, text: str) -> str:
        """Change the exposition."""
        return text

    def on_version(self, body: dict[str, Any]) -> None:
        """Change the answer of ``/version``."""

    def extra_s(self) -> float:
        """Seconds added before the first token."""
        return 0.0

    def on_models(self, body: dict[str, Any]) -> None:
        """Change the model list."""


#: Data of an event that drops the connection at once.
CUT = b""

_REGISTRY: dict[str, type[Fault]] = {}

FaultType = TypeVar("FaultType", bound=type[Fault])


def fault(name: str) -> Callable[[FaultType], FaultType]:
    """Register a class of faults under a name."""

    def register(cls: FaultType) -> FaultType:
        if name in _REGISTRY:
            raise ValueError(f"two faults are called {name}")
        cls.name = name
        _REGISTRY[name] = cls
        return cls

    return register


def registry() -> dict[str, type[Fault]]:
    """Every fault of the catalogue by name."""
    from pytest_vllm_stage.standins.engine import catalogue  # noqa: F401 - registers what it defines, and itself imports this module

    return _REGISTRY


def make(script: Any) -> list[Fault]:
    """The faults of a script: a list of names, or of objects with ``fault`` and its parameters.

    Raises:
        ConfigError: naming what is unknown and what is valid.
    """
    if not isinstance(script, list):
        raise ConfigError(f"a fault script is a list of faults, not {type(script).__name__}")
    return [_make(item if isinstance(item, dict) else {"fault": item}) for item in script]


def _make(item: dict[str, Any]) -> Fault:
    arguments = dict(item)
    name = arguments.pop("fault", None)
    known = registry()
    cls = known.get(name) if isinstance(name, str) else None
    if cls is None:
        raise ConfigError(f"there is no fault {name!r}; valid: {', '.join(sorted(known))}")
    valid = {field.name: field for field in fields(cls)}
    for key, value in arguments.items():
        if key not in valid:
            raise ConfigError(f"fault {name} has no parameter {key!r}; valid: {', '.join(valid)}")
        default = valid[key].default
        if default is not MISSING and not _fits(value, default):
            raise ConfigError(f"fault {name}: {key} is {value!r}; it must be like {default!r}")
    return cls(**arguments)


def _fits(value: Any, default: Any) -> bool:
    """Whether a value has the default's type; an integer is accepted for a float."""
    if isinstance(default, bool) or isinstance(value, bool):
        return type(value) is type(default)
    return isinstance(value, (int, float) if isinstance(default, float) else type(default))


def zero_metric(text: str, prefix: str) -> str:
    """An exposition in which every sample whose name starts with the prefix is 0."""
    return "\n".join(f"{line.rpartition(' ')[0]} 0.0" if line.startswith(prefix) else line for line in text.split("\n"))

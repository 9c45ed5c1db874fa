"""A JSON document that knows the place of each value, so that errors name the place."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.core.json_text import parse_json

#: Far above any time or count; larger numbers overflow computations.
_LARGEST = 1e18
HINT = "give the JSON report of a GuideLLM 0.8 run"


class Node:
    """A value of a document.

    Args:
        where: File and place, for example ``report.json: benchmarks[0].metrics``.
        value: The value.
        hint: Advice for an error.
    """

    def __init__(self, where: str, value: Any, hint: str = HINT) -> None:
        self.where = where
        self.value = value
        self.hint = hint

    def refuse(self, problem: str) -> NoReturn:
        """Raise ConfigError with the place."""
        raise ConfigError(f"{self.where.rstrip()} {problem}", hint=self.hint)

    def expect(self, what: str) -> NoReturn:
        """Raise ConfigError with the place, what should be there and what is."""
        shown = "null" if self.value is None else str(self.value)[:40]
        shown = repr(shown) if isinstance(self.value, str) else shown
        raise ConfigError(f"{self.where.rstrip(': ')}: expected {what}, got {shown}", hint=self.hint)

    def child(self, *names: str) -> Node:
        """The value under these keys, one below the other; refused where one is missing."""
        node = self
        for name in names:
            if not isinstance(node.value, dict):
                node.expect("an object")
            if name not in node.value:
                node.refuse(f"has no {name!r}")
            where = f"{node.where}{'' if node.where.endswith(': ') else '.'}{name}"
            node = Node(where, node.value[name], node.hint)
        return node

    def items(self) -> Iterator[Node]:
        """The elements of a list; null counts as an empty one."""
        if not isinstance(self.value, list | None):
            self.expect("a list")
        for index, value in enumerate(self.value or ()):
            yield Node(f"{self.where}[{index}]", value, self.hint)

    def number(self) -> float:
        if (number := self.number_or_none()) is None:
            self.expect("a number")
        return number

    def number_or_none(self) -> float | None:
        """A finite number, or null."""
        value = self.value
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < _LARGEST:
            self.expect("a number")
        return value

    def count_or_none(self) -> int | None:
        """A whole number from 0, or null."""
        number = self.number_or_none()
        if number is None:
            return None
        if number != int(number) or number < 0:
            self.expect("a whole number from 0")
        return int(number)

    def text(self) -> str:
        """A string; null counts as an empty one."""
        if not isinstance(self.value, str | None):
            self.expect("a string")
        return self.value or ""


def read_document(path: Path) -> Node:
    """The whole document in a file.

    Raises:
        ConfigError: the file is missing or not a JSON object.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: not readable JSON: {error}") from None
    return parse_document(content, str(path))


def parse_document(content: bytes, where: str, hint: str = HINT) -> Node:
    """The whole document.

    Raises:
        ConfigError: it is not a JSON object.
    """
    try:
        value = parse_json(content)
    except ValueError as error:
        raise ConfigError(f"{where}: not readable JSON: {error}", hint=hint) from None
    if not isinstance(value, dict):
        raise ConfigError(f"{where}: must be a JSON object", hint=hint)
    return Node(f"{where}: ", value, hint)

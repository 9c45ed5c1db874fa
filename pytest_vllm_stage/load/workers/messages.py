"""What a worker writes to its output, one JSON line each, and how its measurement is put together from them.

A pod's log is the way back: it needs no right and no address inside the cluster. A measurement is the bytes of its
samples file, in numbered parts, with their digest: it arrives whole or not at all. Lines may come twice, since a log is
read from its beginning where the connection broke.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from typing import Any

KEY = "vllm-stage-load"
#: In the order in which a worker sends them; the last one instead of what it could not do.
STARTED, REHEARSED, READY, PROGRESS, PART, DONE, ERROR = (
    "started", "rehearsed", "ready", "progress", "part", "done", "error",
)  # fmt: skip
#: What the start file holds first: the worker answers `REHEARSED`, which shows how long an announcement takes.
REHEARSAL = "rehearsal"
#: A container runtime cuts lines of 16 KiB; the rest of a part's line is short.
PART_BYTES = 6000


def encode_message(kind: str, **content: Any) -> str:
    """A message as a line, without its end."""
    return json.dumps({KEY: kind, **content}, separators=(",", ":"))


def decode_message(line: str) -> tuple[str, dict[str, Any]] | None:
    """A line's kind and content; None for a line that is not a message."""
    if KEY not in line[:40]:
        return None
    try:
        content = json.loads(line)
    except ValueError:
        return None
    if not isinstance(content, dict) or KEY not in content:
        return None
    return str(content.pop(KEY)), content


def encode_result(data: bytes) -> Iterator[str]:
    """A measurement's file as lines."""
    parts = [data[start : start + PART_BYTES] for start in range(0, len(data), PART_BYTES)]
    for number, part in enumerate(parts):
        yield encode_message(PART, n=number, data=base64.b64encode(part).decode())
    yield encode_message(DONE, parts=len(parts), sha256=hashlib.sha256(data).hexdigest())


class ResultParts:
    """Collects the parts of one worker's measurement."""

    def __init__(self) -> None:
        self._parts: dict[int, bytes] = {}

    def add(self, content: dict[str, Any]) -> None:
        """Take a part; one that is not readable is left out, and the digest shows it."""
        try:
            self._parts[int(content["n"])] = base64.b64decode(str(content["data"]), validate=True)
        except (KeyError, ValueError):
            return

    def join(self, end: dict[str, Any]) -> bytes:
        """The whole file.

        Raises:
            ValueError: it is not whole; says what is missing.
        """
        expected = int(end["parts"])
        missing = [number for number in range(expected) if number not in self._parts]
        if missing:
            raise ValueError(
                f"{len(missing)} of {expected} parts of its samples are missing, the first is {missing[0]}"
            )
        data = b"".join(self._parts[number] for number in range(expected))
        if hashlib.sha256(data).hexdigest() != end["sha256"]:
            raise ValueError("its samples do not have the digest that it sent")
        return data

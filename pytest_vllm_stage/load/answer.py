"""A streamed OpenAI answer as it arrives: when each token came, and its failure, if any, at the end."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from pytest_vllm_stage.measurement.samples import Failure

DONE = b"[DONE]"
_SHOWN_CHARACTERS = 300


class EventSplitter:
    """Cuts the payloads of server-sent events out of bytes that end anywhere."""

    __slots__ = ("_pending",)

    def __init__(self) -> None:
        self._pending = b""

    @property
    def unfinished(self) -> bytes:
        """What no blank line has ended yet."""
        return self._pending.strip()

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads (joined data lines) of the events that this piece completes."""
        data = self._pending + data if self._pending else data
        if b"\r" in data:
            tail = b"\r" if data.endswith(b"\r") else b""
            data = data[: len(data) - len(tail)].replace(b"\r\n", b"\n") + tail
        *events, self._pending = data.split(b"\n\n")
        return [payload for event in events if (payload := _payload(event)) is not None]


def _payload(event: bytes) -> bytes | None:
    if event.startswith(b"data: ") and b"\n" not in event:
        return event[6:]
    lines = [line[5:].removeprefix(b" ") for line in event.split(b"\n") if line.startswith(b"data:")]
    return b"\n".join(lines) if lines else None


class TimedAnswer:
    """The content of one streamed answer so far.

    A token event is one whose choice carries new text, or an incomplete character. The first delta that only
    names the role, the finishing one without text and the usage chunk carry no token.

    Attributes:
        token_times_s: When each token event arrived.
        done_s: When ``[DONE]`` arrived; None until then.
        failure: The first thing that made the answer wrong.
    """

    __slots__ = (
        "_characters",
        "_digest",
        "cached_tokens",
        "done_s",
        "failure",
        "finish_reason",
        "output_tokens",
        "prompt_tokens",
        "response_id",
        "token_times_s",
    )

    def __init__(self) -> None:
        self.token_times_s: list[float] = []
        self.done_s: float | None = None
        self.failure: Failure | None = None
        self.finish_reason: str | None = None
        self.prompt_tokens: int | None = None
        self.output_tokens: int | None = None
        self.cached_tokens: int | None = None
        self.response_id = ""
        self._characters = 0
        self._digest = hashlib.blake2b(digest_size=8)

    @property
    def output_digest(self) -> str:
        """Short digest of the text so far; empty without any token."""
        return self._digest.hexdigest() if self.token_times_s else ""

    def take(self, payload: bytes, at_s: float) -> None:
        if payload == DONE:
            self.done_s = at_s
            return
        try:
            event = json.loads(payload)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            self._fail("protocol", f"an event is not a JSON object: {shown(payload)}")
            return
        if "error" in event or event.get("object") == "error":
            self._fail("error_in_stream", shown(payload))
            return
        if not self.response_id:
            self.response_id = str(event.get("id") or "")
        usage = event.get("usage")
        if isinstance(usage, dict):
            self._count(usage)
        for choice in event.get("choices") or ():
            self._choice(choice, at_s)

    def _fail(self, kind: str, text: str) -> None:
        self.failure = self.failure or Failure(kind, text)

    def _count(self, usage: dict[str, Any]) -> None:
        self.prompt_tokens = _whole(usage.get("prompt_tokens"))
        self.output_tokens = _whole(usage.get("completion_tokens"))
        details = usage.get("prompt_tokens_details")
        self.cached_tokens = _whole(details.get("cached_tokens")) if isinstance(details, dict) else None

    def _choice(self, choice: dict[str, Any], at_s: float) -> None:
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else _text_of(delta)
        finish = choice.get("finish_reason")
        if text or (text == "" and not finish and not (delta and "role" in delta)):
            self.token_times_s.append(at_s)
            self._characters += len(text)
            self._digest.update(text.encode("utf-8", "surrogatepass"))
        if finish:
            self.finish_reason = finish

    def check(self, expected_prompt_tokens: int, expected_output_tokens: int, unfinished: bytes) -> Failure | None:
        """The failure of the answer after its stream has ended; None where it is complete and correct."""
        if self.failure:
            return self.failure
        if self.done_s is None:
            rest = f", after {shown(unfinished)}" if unfinished else ""
            return Failure("truncated", f"no [DONE] after {len(self.token_times_s)} tokens{rest}")
        if self.finish_reason is None and self.token_times_s:
            return Failure("truncated", f"no finish reason after {len(self.token_times_s)} tokens")
        if not self._characters:
            events = len(self.token_times_s)
            return Failure("no_tokens", f"{events} events without any text, finish reason {self.finish_reason}")
        if self.prompt_tokens not in (None, expected_prompt_tokens):
            return Failure("prompt_tokens", f"{self.prompt_tokens} instead of {expected_prompt_tokens}")
        got = len(self.token_times_s) if self.output_tokens is None else self.output_tokens
        if got != expected_output_tokens:
            return Failure("output_tokens", f"{got} instead of {expected_output_tokens} ({self.finish_reason})")
        return None


def _text_of(delta: dict[str, Any]) -> str | None:
    """The new text of a delta, whatever channel it comes on; None where it carries none."""
    for name in ("content", "reasoning_content", "reasoning"):
        text = delta.get(name)
        if isinstance(text, str) and text:
            return text
    calls = delta.get("tool_calls")
    if calls:
        return json.dumps(calls)
    return "" if delta.get("content") == "" else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def shown(data: bytes) -> str:
    """Bytes for an error message, cut to a readable length."""
    text = data[:_SHOWN_CHARACTERS].decode("utf-8", "replace")
    return text + (" ..." if len(data) > _SHOWN_CHARACTERS else "")

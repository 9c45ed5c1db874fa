"""Translates GuideLLM's errors of requests to this project's failures."""

from __future__ import annotations

import re

from pytest_vllm_stage.measurement.samples import ABANDONED, FAILURES, Failure

_SHOWN_CHARACTERS = 300
_STATUS = re.compile(r"^HTTPStatusError\([\"'].*?'(\d{3})[ ']")
#: GuideLLM gives the repr of an exception: patterns of it to this project's kind of failure; the first match counts.
_KINDS = (
    (r"HTTPStatusError\(", "http_status"),
    (r"ValueError\(.Streaming response returned an error", "error_in_stream"),
    (r".*UNUSABLE_BACKEND_RESPONSE", "no_tokens"),
    (r"(Read|Write|Connect|Pool)Timeout\(", "timeout"),
    (r"(Connect|Read|Write|Close|Network|Proxy)Error\(", "connection"),
    (r"RemoteProtocolError\(.Server disconnected", "connection"),
    (r"RemoteProtocolError\(.peer closed connection", "truncated"),
    (r"Request was cancelled", "timeout"),
)


def failure_of(error: str, tokens: int) -> Failure:
    """The failure that an error text stands for.

    Args:
        error: ``info.error`` of the request.
        tokens: Token events that came before; a connection that broke after some left a truncated answer.
    """
    own, _, text = error.partition(": ")
    if own in (*FAILURES, ABANDONED):  # a report that `write_report` wrote
        return Failure(own, text)
    kind = next((kind for pattern, kind in _KINDS if re.match(pattern, error, re.DOTALL)), "protocol")
    if kind == "connection" and tokens:
        kind = "truncated"
    shown = error.partition("\\nFor more information")[0].partition("\nFor more information")[0]
    return Failure(kind, f"{shown[:_SHOWN_CHARACTERS]}{f', after {tokens} tokens' if tokens else ''}")


def status_of(error: str) -> int | None:
    """The HTTP status that an error text names; None where it names none."""
    found = _STATUS.match(error)
    return int(found[1]) if found else None


def never_sent(error: str) -> bool:
    """Whether the request was never sent for lack of a connection: GuideLLM's start time is that of the attempt."""
    return bool(re.match(r"(Connect(Error|Timeout)|PoolTimeout|ProxyError)\(", error))

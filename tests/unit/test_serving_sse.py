"""The parser of server-sent events: the specification's cases, however the bytes are cut, and what is not forgiven."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.serving.sse import NotUtf8, Parser, ServerSentEvent

STREAM = (
    "\ufeffdata: first\r\n\r\n"
    ": a comment\n\n"
    "event: crlf\r\ndata: one\r\ndata: event\r\n\r\n"
    "event: ping\rdata: two\rdata:  lines\r\r"
    "id: 7\ndata\ndata: after an empty line\n\n"
    "id: bad\0id\nretry: 10\nunknown: field\ndata: Zwölf 🙂 你好\r\n\n"
    'data: {"json": "with: colon"}\n\n'
)
EVENTS = [
    ("first", "message", ""),
    ("one\nevent", "crlf", ""),
    ("two\n lines", "ping", ""),
    ("\nafter an empty line", "message", "7"),
    ("Zwölf 🙂 你好", "message", "7"),
    ('{"json": "with: colon"}', "message", "7"),
]


def parsed(pieces: list[bytes]) -> tuple[list[ServerSentEvent], Parser]:
    parser = Parser()
    return [event for at, piece in enumerate(pieces) for event in parser.feed(piece, float(at))], parser


def essence(events: list[ServerSentEvent]) -> list[tuple[str, str, str]]:
    return [(event.data, event.type, event.id) for event in events]


def test_the_specifications_cases() -> None:
    events, parser = parsed([STREAM.encode()])
    assert essence(events) == EVENTS
    assert parser.unfinished == ""


@given(st.lists(st.integers(0, len(STREAM.encode())), max_size=30))
def test_cuts_anywhere_change_nothing(cuts: list[int]) -> None:
    data = STREAM.encode()
    edges = [0, *sorted(cuts), len(data)]
    events, _ = parsed([data[start:end] for start, end in pairwise(edges)])
    assert essence(events) == EVENTS


def test_every_byte_alone_changes_nothing() -> None:
    events, _ = parsed([bytes([byte]) for byte in STREAM.encode()])
    assert essence(events) == EVENTS


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", exclude_categories=["Cs"]), min_size=1), min_size=1))
def test_any_text_comes_through(texts: list[str]) -> None:
    events, _ = parsed(["".join(f"data: {text}\n\n" for text in texts).encode()])
    assert [event.data for event in events] == texts


def test_an_event_arrives_with_the_piece_that_completes_it() -> None:
    events, _ = parsed([b"data: a", b"\n", b"\ndata: b\n\nda", b"ta: c\r\n\r", b"\n"])
    assert [(event.data, event.arrived_at) for event in events] == [("a", 2.0), ("b", 2.0), ("c", 3.0)]


def test_the_raw_lines_are_kept() -> None:
    (event,), _ = parsed([b": note\r\nevent: x\r\ndata: y\r\n\r\n"])
    assert event.raw == ": note\nevent: x\ndata: y"


@pytest.mark.parametrize(
    ("rest", "unfinished"), [(b"data: half", "data: half"), (b"data: whole line\n", "data: whole line"), (b"\n", "")]
)
def test_what_is_left_unfinished_is_seen(rest: bytes, unfinished: str) -> None:
    events, parser = parsed([b"data: a\n\n", rest])
    assert essence(events) == [("a", "message", "")]
    assert parser.unfinished == unfinished


def test_bytes_that_are_not_utf8_raise() -> None:
    with pytest.raises(NotUtf8, match="byte 6 of the line"):
        parsed(["data: ö\n\n".encode("latin-1")])

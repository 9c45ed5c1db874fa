"""The lines and events of a stream."""

from __future__ import annotations

import pytest

from pytest_vllm_stage.checks.inference.framing import find_framing_problem

DONE = b"data: [DONE]\n\n"


@pytest.mark.parametrize(
    "body",
    [
        b'data: {"a": 1}\n\n' + DONE,
        b': ping\r\n\r\nevent: x\r\nid: 1\r\nretry: 3\r\ndata: {"a": 1}\r\n\r\ndata: [DONE]\r\n\r\n',
        'data: {"a": "one\u2028two\x85three\x0bfour \ufffd"}\n\n'.encode() + DONE,
    ],
    ids=["LF", "CRLF", "separators that end no line"],
)
def test_valid_stream_has_no_problem(body: bytes) -> None:
    assert find_framing_problem(body) == ""


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'data: {"a": "\xc3"}\n\n' + DONE, "the stream is not UTF-8 at byte 13"),
        (b'data: {"a":\n 1}\n\n' + DONE, "lines that are not a field of an event: [' 1}']"),
        (b"data: 1\n\ndata: [DONE]\n", "the last event is not ended by an empty line"),
        (b"data: 1\ndata: 2\n\n" + DONE, "no empty line follows 'data: 1'"),
    ],
    ids=["a byte of a character", "a line break in the JSON", "no last empty line", "events without a gap"],
)
def test_what_a_strict_client_loses_is_named(body: bytes, problem: str) -> None:
    assert find_framing_problem(body).startswith(problem)

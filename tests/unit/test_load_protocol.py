"""HTTP and event streams in pieces of any size, and every wrong answer by its name."""

from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_vllm_stage.core.errors import ConfigError
from pytest_vllm_stage.load.answer import EventSplitter, TimedAnswer
from pytest_vllm_stage.load.connections import parse_address
from pytest_vllm_stage.load.http1 import ProtocolError, ResponseParser
from pytest_vllm_stage.load.monitor import series

CHUNKED = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in places}), len(data)]
    return [data[a:b] for a, b in pairwise(edges)]


any_cut = st.lists(st.integers(0, 10_000), max_size=12)
thorough = settings(derandomize=True, deadline=None, max_examples=150)


@thorough
@given(chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=6), places=any_cut)
def test_a_chunked_body_is_the_same_however_it_is_cut(chunks: list[bytes], places: list[int]) -> None:
    coded = b"".join(b"%X;ext=1\r\n%b\r\n" % (len(chunk), chunk) for chunk in chunks)
    parser = ResponseParser()
    body = b"".join(parser.feed(piece) for piece in cut(CHUNKED + coded + b"0\r\nTrailer: 1\r\n\r\n", places) if piece)
    assert body == b"".join(chunks)
    assert parser.complete
    assert parser.keep_alive
    assert parser.headers[b"content-type"] == b"text/event-stream"


@thorough
@given(body=st.binary(max_size=60), places=any_cut)
def test_a_body_with_a_length_is_the_same_however_it_is_cut(body: bytes, places: list[int]) -> None:
    parser = ResponseParser()
    whole = b"HTTP/1.1 503 Busy\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b" % (len(body), body)
    assert b"".join(parser.feed(piece) for piece in cut(whole, places) if piece) == body
    assert parser.complete
    assert parser.status == 503
    assert not parser.keep_alive


def test_a_body_that_ends_with_the_connection() -> None:
    parser = ResponseParser()
    assert parser.feed(b"HTTP/1.1 200 OK\r\n\r\nabc") == b"abc"
    assert not parser.complete
    assert parser.closed()
    assert not parser.keep_alive


def test_an_early_hint_is_passed_over() -> None:
    parser = ResponseParser()
    parser.feed(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n")
    assert (parser.status, parser.complete) == (204, True)


def test_a_chunked_body_that_is_cut_off_is_not_complete() -> None:
    parser = ResponseParser()
    parser.feed(CHUNKED + b"3\r\nabc\r\n")
    assert not parser.closed()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"SSH-2.0\r\n\r\n", "not a status line"),
        (b"HTTP/1.1 abc\r\n\r\n", "not a status line"),
        (CHUNKED + b"xyz\r\n", "not a chunk size"),
        (CHUNKED + b"-5\r\n", "not a chunk size"),
        (CHUNKED + b"0\r\n\r\nmore", "bytes after the response's end"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: ten\r\n\r\n", "content-length"),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\nab", "longer than its content-length"),
        (b"x" * 70_000, "does not end"),
    ],
)
def test_bytes_that_are_not_http_are_refused(data: bytes, problem: str) -> None:
    with pytest.raises(ProtocolError, match=problem):
        ResponseParser().feed(data)


@thorough
@given(
    payloads=st.lists(st.text("ab{}: \u00e9", min_size=1, max_size=20), max_size=6), places=any_cut, crlf=st.booleans()
)
def test_events_are_the_same_however_they_are_cut(payloads: list[str], places: list[int], crlf: bool) -> None:
    text = "".join(f": comment\n\nevent: message\ndata: {payload}\nid: 1\n\n" for payload in payloads)
    data = text.replace("\n", "\r\n").encode() if crlf else text.encode()
    splitter = EventSplitter()
    found = [payload for piece in cut(data, places) for payload in splitter.feed(piece)]
    assert found == [payload.encode() for payload in payloads]
    assert splitter.unfinished == b""


def test_what_no_blank_line_ended_stays_visible() -> None:
    splitter = EventSplitter()
    assert splitter.feed(b'data: 1\n\ndata: {"tor') == [b"1"]
    assert splitter.unfinished == b'data: {"tor'


def chunk(finish: str | None = None, **delta: Any) -> bytes:
    return json.dumps({"id": "chatcmpl-1", "choices": [{"delta": delta, "finish_reason": finish}]}).encode()


USAGE = json.dumps({"choices": [], "usage": {"prompt_tokens": 8, "completion_tokens": 3}}).encode()
HEALTHY = [
    chunk(role="assistant", content=""),
    chunk(content="a"),
    chunk(content=""),
    chunk(content="\u00e9"),
    chunk("length", content=""),
    USAGE,
    b"[DONE]",
]


def answered(payloads: list[bytes]) -> TimedAnswer:
    answer = TimedAnswer()
    for at, payload in enumerate(payloads):
        answer.take(payload, float(at))
    return answer


def test_a_healthy_stream_of_vllm_counts_its_tokens() -> None:
    """The role chunk, the empty finishing delta and the usage chunk are none; half a character is one."""
    answer = answered(HEALTHY)
    assert answer.token_times_s == [1.0, 2.0, 3.0]
    assert answer.check(8, 3, b"") is None
    assert answer.done_s == 6.0
    assert (answer.response_id, answer.prompt_tokens, answer.output_tokens) == ("chatcmpl-1", 8, 3)


def test_the_last_token_may_come_with_the_finish_reason() -> None:
    answer = answered([chunk(content="a"), chunk("length", content="b"), b"[DONE]"])
    assert answer.token_times_s == [0.0, 1.0]
    assert answer.check(8, 2, b"") is None


@pytest.mark.parametrize("delta", [{"reasoning_content": "a"}, {"reasoning": "a"}, {"tool_calls": [{"index": 0}]}])
def test_tokens_come_on_other_channels_too(delta: dict[str, Any]) -> None:
    assert len(answered([chunk(**delta)]).token_times_s) == 1


def test_a_plain_completion_counts_its_tokens() -> None:
    events = [
        {"choices": [{"text": "a", "finish_reason": None}]},
        {"choices": [{"text": "", "finish_reason": "length"}]},
    ]
    answer = answered([*(json.dumps(event).encode() for event in events), b"[DONE]"])
    assert len(answer.token_times_s) == 1
    assert answer.check(8, 1, b"") is None


def without(place: int) -> list[bytes]:
    return HEALTHY[:place] + HEALTHY[place + 1 :]


@pytest.mark.parametrize(
    ("payloads", "kind", "text"),
    [
        (HEALTHY[:3], "truncated", "no [DONE] after 2 tokens"),
        (without(4), "truncated", "no finish reason after 3 tokens"),
        ([HEALTHY[0], chunk("stop"), USAGE, b"[DONE]"], "no_tokens", "0 events without any text, finish reason stop"),
        ([chunk(content=""), chunk("length"), b"[DONE]"], "no_tokens", "1 events without any text"),
        ([*HEALTHY[:3], b'{"error": {"message": "boom", "code": 500}}', b"[DONE]"], "error_in_stream", "boom"),
        ([*HEALTHY[:3], b'{"object": "error", "message": "boom"}'], "error_in_stream", "boom"),
        ([*HEALTHY[:3], b"{cut", b"[DONE]"], "protocol", "an event is not a JSON object: {cut"),
        ([*HEALTHY[:3], b"[1]"], "protocol", "an event is not a JSON object"),
        (HEALTHY, "prompt_tokens", "8 instead of 9"),
    ],
)
def test_a_wrong_answer_is_named(payloads: list[bytes], kind: str, text: str) -> None:
    failure = answered(payloads).check(9, 3, b"")
    assert failure is not None
    assert failure.kind == kind
    assert text in failure.text


def test_another_number_of_tokens_is_named_by_the_usage_or_by_the_events() -> None:
    by_usage = answered(HEALTHY).check(8, 16, b"")
    by_events = answered(without(5)).check(8, 16, b"")
    for failure in (by_usage, by_events):
        assert failure is not None
        assert (failure.kind, failure.text) == ("output_tokens", "3 instead of 16 (length)")


def test_the_digest_is_the_texts() -> None:
    assert (
        answered([chunk(content="ab")]).output_digest
        == answered([chunk(content="a"), chunk(content="b")]).output_digest
    )
    assert answered([chunk(content="a")]).output_digest != answered([chunk(content="b")]).output_digest
    assert answered([]).output_digest == ""


@pytest.mark.parametrize(
    ("url", "host", "port", "tls", "prefix", "authority"),
    [
        ("http://a", "a", 80, False, "", "a"),
        ("https://a:8443/models/x/", "a", 8443, True, "/models/x", "a:8443"),
        ("http://[::1]:8000", "::1", 8000, False, "", "[::1]:8000"),
    ],
)
def test_an_address_is_taken_apart(url: str, host: str, port: int, tls: bool, prefix: str, authority: str) -> None:
    address = parse_address(url)
    assert (address.host, address.port, address.tls, address.prefix) == (host, port, tls, prefix)
    assert address.authority == authority


@pytest.mark.parametrize("url", ["a:80", "ftp://a", "http://", "http://a:port", "http://user:pw@a"])
def test_invalid_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="is not the URL of a server"):
        parse_address(url)


PAGE = b"""# HELP vllm:num_requests_running x
vllm:num_requests_running{engine="0",model_name="small"} 3.0
vllm:num_requests_running{engine="1",model_name="small"} 4.0
vllm:num_requests_running{engine="0",model_name="large"} 50.0
vllm:num_requests_running_total{model_name="small"} 9.0
plain 1.5
"""


def test_series_are_found_by_their_whole_name_and_model() -> None:
    assert series(PAGE, b"vllm:num_requests_running", b"small") == [3.0, 4.0]
    assert series(PAGE, b"vllm:num_requests_running") == [3.0, 4.0, 50.0]
    assert series(PAGE, b"plain", b"small") == [1.5]
    assert series(PAGE, b"vllm:num_requests") == []
    assert series(b"first 1", b"first") == [1.0]

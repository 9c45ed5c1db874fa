"""The matrix of relations: its covering array covers, its requests are what their names say, differences are named."""

from __future__ import annotations

import unittest.mock
from contextlib import nullcontext
from itertools import combinations
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.checks.inference.relations.ahead import group_for_alone
from pytest_vllm_stage.checks.inference.relations.asking import Asker, RelationBroken
from pytest_vllm_stage.checks.inference.relations.covering import Choice, cover_pairs, pairs_to_cover
from pytest_vllm_stage.checks.inference.relations.features import FACTORS, GUIDED, MATRIX, Case, exclusion
from pytest_vllm_stage.checks.inference.relations.reading import (
    Reading,
    describe_change,
    find_difference,
    read_answer,
    read_chunks,
)
from pytest_vllm_stage.serving.client import EndpointClient, Target
from pytest_vllm_stage.serving.failures import RequestFailed

#: Values are unique across factors, as in the matrix.
factors_ = st.lists(st.integers(1, 5), min_size=2, max_size=5).map(
    lambda sizes: {f"f{place}": [f"{place}.{value}" for value in range(size)] for place, size in enumerate(sizes)}
)


@given(factors_)
def test_every_pair_stands_in_a_row(factors: dict[str, list[str]]) -> None:
    rows = cover_pairs(factors, lambda one, other: "")
    covered = {pair for row in rows for pair in combinations(row.items(), 2)}
    assert covered == set(pairs_to_cover(factors, lambda one, other: ""))
    sizes = sorted(map(len, factors.values()))
    assert sizes[-1] * sizes[-2] <= len(rows) <= len(covered)


def test_excluded_pairs_stand_in_no_row_and_a_pair_that_fits_nowhere_is_refused() -> None:
    factors = {"a": ["1", "2"], "b": ["3", "4"], "c": ["5", "6"]}

    def excluded(one: Choice, other: Choice) -> str:
        return "never" if {one[1], other[1]} == {"1", "3"} else ""

    rows = cover_pairs(factors, excluded)
    assert all((row["a"], row["b"]) != ("1", "3") for row in rows)
    with pytest.raises(ValueError, match="no value of c fits"):
        cover_pairs(factors, lambda one, other: "never" if "c" in (one[0], other[0]) else "")


def test_the_matrix_covers_every_pair_that_is_not_excluded() -> None:
    covered = {pair for case in MATRIX for pair in combinations(case.row.items(), 2)}
    assert covered == set(pairs_to_cover(FACTORS, exclusion))
    assert len({case.id for case in MATRIX}) == len(MATRIX) < 60


def test_every_value_is_in_the_request() -> None:
    """Each value but a neutral one changes the body, or is of the way or the stop text, which are added later."""
    later = {*FACTORS["way"], "stop text", "bias"}
    neutral = {values[0] for values in FACTORS.values()}
    plain = {"chat": dict(MATRIX[0].row), "completions": MATRIX[0].row | {"api": "completions"}}
    for factor, values in FACTORS.items():
        for value in set(values) - later - neutral - {"completions"}:
            api = "chat" if not exclusion(("api", "chat"), (factor, value)) else "completions"
            changed = Case(0, plain[api] | {factor: value})
            assert changed.body("m") != Case(0, plain[api]).body("m"), value
            assert value in changed.features, value


@pytest.mark.parametrize(
    ("expected", "got", "change"),
    [
        ("1, 2, 3, 4, 5", "1, 2, 3, 4", "lost ', 5' after '1, 2, 3, 4'"),
        ("abc", "bc", "lost 'a'"),
        ("ab", "axb", "added 'x' after 'a'"),
        ("abc", "axc", "says 'x' instead of 'b' after 'a'"),
        ("aa", "aaa", "added 'a' after 'aa'"),
    ],
)
def test_a_change_is_named(expected: str, got: str, change: str) -> None:
    assert describe_change(expected, got) == change


@given(st.text(max_size=8), st.text(max_size=8))
def test_any_change_is_named(expected: str, got: str) -> None:
    assert describe_change(expected, got) or expected == got


CALL = {"id": "c0", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
USAGE = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}


def whole(**changes: Any) -> dict[str, Any]:
    message = {"content": changes.pop("content", "ab"), "tool_calls": changes.pop("tool_calls", [CALL])}
    choice = {"index": 0, "message": message, "finish_reason": "stop", **changes}
    return {"choices": [choice], "usage": {**USAGE, "prompt_tokens_details": None}}


def chunk(delta: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": delta, **more}]}


CHUNKS: list[dict[str, Any]] = [
    chunk({"role": "assistant", "content": ""}),
    chunk({"content": "a"}, logprobs={"content": [{"token": "a", "logprob": -0.1}]}),
    chunk({"content": "b"}),
    chunk({"tool_calls": [{"index": 0, "id": "c1", "function": {"name": "f", "arguments": ""}}]}),
    chunk({"tool_calls": [{"index": 0, "function": {"arguments": '{"a": 1}'}}]}),
    chunk({}, finish_reason="stop"),
    {"choices": [], "usage": USAGE},
]


def test_a_stream_and_a_whole_answer_are_read_alike() -> None:
    plain = read_answer(whole(logprobs={"content": [{"token": "a", "logprob": -0.2}]}))
    assert find_difference(plain, read_chunks(CHUNKS), "the stream") == ""


@pytest.mark.parametrize(
    ("changes", "difference"),
    [
        ({"content": "abc"}, "the stream lost 'c' after 'ab'"),
        ({"tool_calls": []}, "the stream has the tool calls [('f', '{\"a\": 1}')], expected []"),
        ({"finish_reason": "length"}, "the stream ends with finish_reason 'stop', expected 'length'"),
        ({"logprobs": None}, "the stream has logprobs of 1 tokens, 'a', expected 0, ''"),
        (
            {"logprobs": {"content": [{"token": token, "logprob": -0.1} for token in "ba"]}},
            "the stream has logprobs of 1 tokens, 'a', expected 2, 'ba'",
        ),
        ({"logprobs": {"content": [{"token": "a", "logprob": -1.0}]}}, "the stream has logprobs that differ by 0.90"),
    ],
)
def test_a_difference_is_named(changes: dict[str, Any], difference: str) -> None:
    scores = {"content": [{"token": "a", "logprob": -0.1}]}
    expected = read_answer(whole(**{"logprobs": scores, **changes}))
    assert find_difference(expected, read_chunks(CHUNKS), "the stream") == difference


def test_calls_without_ids_of_their_own_are_named() -> None:
    twice = whole(tool_calls=[CALL, CALL])
    assert "tool calls with the ids ['c0', 'c0']" in find_difference(
        read_answer(twice), read_answer(twice), "the answer"
    )


class Scripted(Asker):
    """An asker whose scores of the two likeliest tokens are known."""

    def __init__(self, gap: float) -> None:
        super().__init__(EndpointClient(Target("full", "m", "http://127.0.0.1:9")))
        self.gap = gap

    def _gap_at(self, case: Case, place: int) -> float:
        return self.gap


@pytest.mark.parametrize(("gap", "is_broken"), [(0.01, False), (3.0, True)])
def test_a_near_tie_is_not_a_broken_relation(gap: float, is_broken: bool) -> None:
    expected, got = read_answer(whole(content="a b")), read_answer(whole(content="a c"))
    if not is_broken:
        Scripted(gap).compare("streamed != plain", MATRIX[0], expected, got, "the stream")
        return
    with pytest.raises(RelationBroken, match="streamed != plain for plain text on chat: the stream says 'c' instead"):
        Scripted(gap).compare("streamed != plain", MATRIX[0], expected, got, "the stream")


def test_a_text_that_is_cut_is_never_a_near_tie() -> None:
    expected, got = read_answer(whole(content="1, 2, 3")), read_answer(whole(content="1, 2"))
    with pytest.raises(RelationBroken, match="the stream lost ', 3'"):
        Scripted(0.0).compare("streamed != plain", MATRIX[0], expected, got, "the stream")


ECHOED = {
    "tokens": ["Hi", " a", " b"],
    "token_logprobs": [None, -0.5, -0.7],
    "top_logprobs": [None, {" a": -0.5, " b": -2.0}, {" b": -0.70, " c": -0.71}],
    "text_offset": [0, 2, 4],
}


@pytest.mark.parametrize(
    ("logprobs", "is_broken"),
    [
        (ECHOED, False),
        (ECHOED | {"top_logprobs": [None, {" a": -0.5, " b": -2.0}, {" b": -0.1, " c": -3.0}]}, True),
        (None, True),
        ({"tokens": ["Hi"], "top_logprobs": None}, True),
        ({"tokens": ["Hi"], "top_logprobs": []}, True),
        ({"content": [{"token": "Hi"}]}, True),
    ],
)
def test_near_tie_behind_an_echoed_prompt_is_found(logprobs: dict[str, Any] | None, is_broken: bool) -> None:
    """An echoed prompt's first token has no alternatives; whatever shape the scores have, the difference is named."""
    (case, *_) = (one for one in MATRIX if one.row["extra"] == "echo" and one.row["answer"] == "text")
    asker = Asker(EndpointClient(Target("full", "m", "http://127.0.0.1:9")))
    answer = httpx.Response(200, json={"choices": [{"logprobs": logprobs}]})
    expected, got = (read_answer(whole(content=text)) for text in ("Hi a b", "Hi a c"))
    with (
        unittest.mock.patch.object(asker.endpoint, "raw", return_value=answer),
        pytest.raises(RelationBroken, match="says 'c' instead") if is_broken else nullcontext(),
    ):
        asker.compare("after != before", case, expected, got, "the answer")


@pytest.mark.parametrize("kind", ["named tool", "several tool calls"])
def test_white_space_in_json_is_free_and_its_values_are_not(kind: str) -> None:
    """The parser of vLLM writes the arguments of a plain answer again, and streams them as they were generated."""
    (case, *_) = (case for case in MATRIX if case.row["answer"] == kind)
    expected, asker = read_answer(whole()), Scripted(0.0)

    def answer(arguments: str) -> Any:
        return read_answer(whole(tool_calls=[CALL | {"function": {"name": "f", "arguments": arguments}}]))

    asker.compare("streamed != plain", case, expected, answer('{"a" : 1}'), "the stream")
    for wrong in ('{"a": 2}', '{"a": 1'):
        with pytest.raises(RelationBroken, match="the stream has the tool calls"):
            asker.compare("streamed != plain", case, expected, answer(wrong), "the stream")


def scored(*tokens: str, completion_tokens: int) -> Reading:
    answer = whole(content="amber", logprobs={"content": [{"token": one, "logprob": -0.1} for one in tokens]})
    counts = {"completion_tokens": completion_tokens, "total_tokens": 3 + completion_tokens}
    return read_answer(answer | {"usage": USAGE | counts})


def test_a_guided_text_may_have_other_tokens_and_none_may_be_lost() -> None:
    """A near tie decides between "a" + "mber" and "amber" where a grammar allows both."""
    expected = scored("a", "mber", completion_tokens=3)
    for one_text in (scored("amber", completion_tokens=2), scored("am", "b", "er", completion_tokens=4)):
        assert find_difference(expected, one_text, "the answer", free_tokens=True) == ""
        assert "has logprobs of" in find_difference(expected, one_text, "the answer")
    lost = find_difference(expected, scored("mber", completion_tokens=3), "the stream", free_tokens=True)
    assert lost == "the stream has logprobs of 1 tokens, 'mber', expected 2, 'amber'"
    for count in (0, 1, 7):
        wrong = scored("a", "mber", completion_tokens=count)
        assert "the stream counts" in find_difference(expected, wrong, "the stream", free_tokens=True)
    unlike = (
        read_answer(whole(content="amber")),
        read_answer(whole(content="amber") | {"usage": USAGE | {"total_tokens": 9}}),
    )
    assert "counts" in find_difference(*unlike, "the stream", free_tokens=True)


def test_tokens_of_a_guided_answer_are_free_and_those_of_a_text_are_not() -> None:
    fewer, more = scored("amber", completion_tokens=2), scored("a", "mber", completion_tokens=3)
    for case in MATRIX:
        if case.row["answer"] not in ("text", "no tool call"):
            Scripted(3.0).compare("streamed != plain", case, fewer, more, "the stream")
            continue
        with pytest.raises(RelationBroken, match=r"has logprobs of the tokens \['a', 'mber'\], expected"):
            Scripted(3.0).compare("streamed != plain", case, fewer, more, "the stream")


class Refusing(Asker):
    """An asker whose server fails where the request has each of these values."""

    def __init__(self, *values: str) -> None:
        super().__init__(EndpointClient(Target("full", "m", "http://127.0.0.1:9")))
        self.values = set(values)

    def _unused_token(self) -> int:
        return 1

    def ask(self, case: Case, body: dict[str, Any], *, stream: bool = False, way: str = "") -> Reading:
        if self.values <= set(case.row.values()):
            raise RequestFailed("answered 500", status=500)
        return read_answer(whole())


@pytest.mark.parametrize(
    ("values", "named"),
    [
        (["several tool calls"], "no plain answer for several tool calls on chat: answered 500"),
        (["chat", "n"], "no plain answer for n on chat: answered 500"),
        (["regex", "logprobs"], "no plain answer for regex x logprobs on chat: answered 500"),
        (["chat"], "no plain answer for plain text on chat: answered 500"),
    ],
)
def test_one_cause_of_missing_answers_is_one_failure(values: list[str], named: str) -> None:
    """It is named by the fewest features that it needs; every other case with them is known to have no answer."""
    asker, failures = Refusing(*values), []
    for case in (case for case in MATRIX if case.row["api"] == "chat"):
        known = asker.explain_unanswered(case)
        if known:
            assert set(values) <= set(case.row.values())
            assert known == named
            continue
        try:
            asker.alone(case)
        except RelationBroken as error:
            failures.append(str(error))
    assert failures == [named]


class Early(Asker):
    """An asker whose server answers requests that are sent ahead, and later ones, with different texts."""

    def __init__(self, ahead: str, later: str) -> None:
        super().__init__(EndpointClient(Target("full", "m", "http://127.0.0.1:9")))
        self.ahead, self.later = ahead, later
        self.is_ahead = True

    def ask(self, case: Case, body: dict[str, Any], *, stream: bool = False, way: str = "") -> Reading:
        if not stream:
            return read_answer(whole())
        return read_answer(whole(content=self.ahead if self.is_ahead else self.later))


@pytest.mark.parametrize(
    ("ahead", "later", "expected"),
    [
        ("ab", "never asked", ""),
        ("a", "ab", "lost 'b' after 'a'; asked again without these other requests, it is equal"),
        ("a", "b", "lost 'a'"),
    ],
)
def test_answer_asked_ahead_is_compared_and_a_difference_is_asked_again(ahead: str, later: str, expected: str) -> None:
    """An answer that is wrong only among others fails too, and its error says so."""
    asker, case = Early(ahead, later), MATRIX[0]
    assert asker.learn(case)
    asker.ask_early(case, True, case.row["way"])
    asker.is_ahead = False
    if not expected:
        asker.check("streamed != plain", case, "the stream", stream=True, way=case.row["way"])
        return
    with pytest.raises(RelationBroken) as raised:
        asker.check("streamed != plain", case, "the stream", stream=True, way=case.row["way"])
    assert str(raised.value).endswith(expected)


class Drifting(Asker):
    """An asker whose server answers each request with the next text."""

    def __init__(self, *texts: str) -> None:
        super().__init__(EndpointClient(Target("full", "m", "http://127.0.0.1:9")))
        self.texts = list(texts)

    def ask(self, case: Case, body: dict[str, Any], *, stream: bool = False, way: str = "") -> Reading:
        return read_answer(whole(content=self.texts.pop(0)))


@pytest.mark.parametrize(
    ("plain_again", "expected"),
    [
        ("b", "again != first for plain text on chat: the plain answer says 'b' instead of 'a'"),
        ("a", "streamed != plain for plain text on chat: the stream says 'b' instead of 'a'"),
    ],
)
def test_plain_answer_that_changes_is_not_taken_for_a_broken_way(plain_again: str, expected: str) -> None:
    asker, case = Drifting("a", "b", plain_again), MATRIX[0].without("way")
    with pytest.raises(RelationBroken) as raised:
        asker.check("streamed != plain", case, "the stream", stream=True)
    assert str(raised.value) == expected


def test_failure_of_a_request_asked_ahead_is_reported_by_its_check() -> None:
    """Also where the server would answer by then: a failure that passes is a failure."""
    asker, case = Refusing("chat"), MATRIX[0]
    assert not asker.learn(case)
    asker.values = {"nothing has this"}
    with pytest.raises(RelationBroken, match="no plain answer for plain text on chat: answered 500"):
        asker.alone(case)


def test_only_answers_with_one_grammar_are_asked_at_the_same_time() -> None:
    groups = group_for_alone(MATRIX)
    assert sorted(case.place for group in groups for case in group) == list(range(len(MATRIX)))
    shared = [{case.row["answer"] for case in group} for group in groups if len(group) > 1]
    assert sorted(map(sorted, shared)) == [[answer] for answer in sorted(GUIDED)]

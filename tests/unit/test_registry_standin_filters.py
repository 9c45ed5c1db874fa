"""The stand-in's filterQuery language and LIKE, alone."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_vllm_stage.standins.registry.filters import MAX_DEPTH, MAX_LITERALS, Both, Comparison, Condition, parse
from pytest_vllm_stage.standins.registry.like import like
from pytest_vllm_stage.standins.registry.refusal import Refusal

OPERATORS = ("=", "!=", "<>", ">=", "<=", ">", "<", "LIKE", "ILIKE", "IN")
TYPES = ("", "string_value", "int_value", "double_value", "bool_value")
KEYWORDS = {"AND", "OR", "LIKE", "ILIKE", "IN"}

names = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,8}", fullmatch=True)
odd_names = st.text(st.characters(exclude_characters="`\\", exclude_categories=["Cs"]), min_size=1, max_size=8)
texts = st.text(st.characters(exclude_characters="\\'\"", exclude_categories=["Cs"]), max_size=10)
literals = st.one_of(
    texts, st.integers(-(2**63), 2**63 - 1), st.floats(allow_nan=False, allow_infinity=False), st.booleans()
)
comparisons = st.builds(
    Comparison,
    st.one_of(names, odd_names),
    st.sampled_from(OPERATORS),
    st.one_of(literals, st.lists(literals, max_size=3).map(tuple)),
    st.sampled_from(TYPES),
)
conditions: st.SearchStrategy[Condition] = st.recursive(
    comparisons, lambda inner: st.builds(Both, st.sampled_from(["AND", "OR"]), inner, inner), max_leaves=8
)


def written(condition: Condition) -> str:
    """A condition in the language's words, every part in parentheses."""
    if isinstance(condition, Both):
        return f"({written(condition.left)}) {condition.operator} ({written(condition.right)})"
    value_type = f".{condition.value_type}" if condition.value_type else ""
    return f"`{condition.property}`{value_type} {condition.operator} {literal(condition.value)}"


def literal(value: object) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(literal(item) for item in value)})"
    if isinstance(value, bool):
        return "true" if value else "FALSE"
    if isinstance(value, str):
        return f"'{value}'"
    if isinstance(value, float):
        text = repr(value)
        return text if "." in text or "e" in text else f"{text}.0"
    return str(value)


@given(conditions)
def test_what_is_written_is_read_back(condition: Condition) -> None:
    assert parse(written(condition)) == condition


@given(st.text(max_size=60))
def test_any_text_is_a_condition_or_is_refused(text: str) -> None:
    refusal = refusal_of(text)
    assert refusal is None or (refusal.status, refusal.message[:26]) == (400, "error parsing filter query")


def refusal_of(text: str) -> Refusal | None:
    try:
        parse(text)
    except Refusal as refusal:
        return refusal
    return None


@given(names, st.lists(st.sampled_from([" ", "\t", "\n", "-- a remark\n"]), min_size=4, max_size=4))
def test_blanks_and_comments_separate_and_mean_nothing(name: str, blanks: list[str]) -> None:
    a, b, c, d = blanks
    assert parse(f"{a}{name}{b}={c}'x'{d}") == Comparison(name, "=", "x")


@pytest.mark.parametrize(
    ("text", "condition"),
    [
        ("acc > 0.5", Comparison("acc", ">", 0.5)),
        ("acc.double_value > 0.5", Comparison("acc", ">", 0.5, "double_value")),
        ("n.int_value >= 3", Comparison("n", ">=", 3, "int_value")),
        ("ok = true", Comparison("ok", "=", True)),
        ("ok=FALSE", Comparison("ok", "=", False)),
        ("tag = 't3'", Comparison("tag", "=", "t3")),
        ('tag = "t\'3"', Comparison("tag", "=", "t'3")),
        (r"tag = 't\'3'", Comparison("tag", "=", "t'3")),
        (r"tag LIKE 'a\\_b'", Comparison("tag", "LIKE", r"a\_b")),
        ("`a b.c` = -5", Comparison("a b.c", "=", -5)),
        ("x = +5", Comparison("x", "=", 5)),
        ("x = .5e-3", Comparison("x", "=", 0.0005)),
        ("x = 1e3", Comparison("x", "=", 1000.0)),
        ("name IN ('a', 'b')", Comparison("name", "IN", ("a", "b"))),
        ("name IN 'a'", Comparison("name", "IN", "a")),
        ("a=1 OR b=2 AND c=3", Both("OR", Comparison("a", "=", 1), Both("AND", Comparison("b", "=", 2),
                                                                         Comparison("c", "=", 3)))),
        ("(a=1 OR b=2) AND c=3", Both("AND", Both("OR", Comparison("a", "=", 1), Comparison("b", "=", 2)),
                                      Comparison("c", "=", 3))),
        ("  ", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_grammar(text: str, condition: Condition | None) -> None:
    assert parse(text) == condition


@pytest.mark.parametrize(
    "text",
    [
        "name like 'x'",
        "a = 1 and b = 2",
        "a = 1 or b = 2",
        "NOT a = 1",
        "a IS NULL",
        "a BETWEEN 1 AND 2",
        "a = True",
        "a = null",
        "a == 1",
        "a",
        "a =",
        "= 1",
        "'a' = 1",
        "(a = 1",
        "a = 1)",
        "a = 1 b = 2",
        "a = 'open",
        "a.b = 1",
        "a.text_value = 1",
        "a IN (1 2)",
        "a IN (1,,2)",
        "a = 1e999",
        "a = 99999999999999999999",
        "a = é",
        "a; DROP",
        "-- only a remark",
        "(" * (MAX_DEPTH + 1) + "a = 1" + ")" * (MAX_DEPTH + 1),
        " AND ".join(["a = 1"] * (MAX_LITERALS + 1)),
    ],
)
def test_what_is_not_in_the_grammar_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match="error parsing filter query") as refused:
        parse(text)
    assert refused.value.status == 400


@given(st.text(max_size=8))
def test_a_text_is_like_itself_when_escaped(text: str) -> None:
    escaped = re.sub(r"([%_\\])", r"\\\1", text)
    assert like(escaped, text)
    assert not like(escaped, text + "x")
    assert like(escaped + "%", text + "x")


@given(st.text("ab%_\\", max_size=7), st.text("ab%_\\", max_size=7))
def test_like_agrees_with_a_regular_expression(pattern: str, text: str) -> None:
    parts: list[str] = []
    characters = iter(pattern)
    ends_in_escape = False
    for character in characters:
        if character == "\\":
            escaped = next(characters, None)
            ends_in_escape = escaped is None
            parts.append(re.escape(escaped or ""))
        else:
            parts.append({"%": ".*", "_": "."}.get(character, re.escape(character)))
    expected = not ends_in_escape and re.fullmatch("".join(parts), text, re.DOTALL) is not None
    assert like(pattern, text) is expected


def test_like_is_not_slow_on_a_pattern_of_wildcards() -> None:
    """With backtracking over every ``%`` it would not end before the run's own limit."""
    assert not like("%a" * 200 + "b", "a" * 5000)


def test_like_knows_case() -> None:
    assert not like("A%", "ab")
    assert like("a_b", "aXb")
    assert not like("back\\slash", "back\\slash")
